"""Documents and grading of the embedded tasks."""

from functools import lru_cache

import datasets

from t2eval.embedded import corpus
from t2eval.sandbox.programs import passes

# A right program of this world needs microseconds.
SECONDS = 2.0


def load(t2, **_):
    """The splits of one task, from `metadata.t2` of its YAML."""
    if t2["family"].startswith("vision"):
        from t2eval.embedded import vision  # tasks in text do without it

        splits = vision.dispatch_documents() if t2["family"] == "vision-dispatch" else vision.documents(t2["level"])
    else:
        splits = corpus.dispatch_documents() if t2["family"] == "dispatch" else corpus.documents(t2["family"], t2["level"])
    return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}


@lru_cache(maxsize=100_000)
def _passes(program, test):
    return passes(program, test, timeout=SECONDS)


def pass_at_1(doc, results):
    """1 if the program passes its asserts in the sandbox; one program and its asserts are run once a process."""
    return {"pass@1": float(_passes(results[0].strip(), doc["test"]))}


def doc_to_image(doc):
    """The document's one picture, drawn from its seed."""
    from t2eval.embedded.pictures import draw

    return [draw(doc["picture"], doc["seed"])]
