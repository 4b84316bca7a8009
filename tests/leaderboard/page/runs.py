"""Benchmark folders for the page: rows as workers write them, with documents, dispatch, α, and what a hostile model might answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2eval.bench.documents import write_documents
from t2eval.bench.plan import Cell
from t2eval.bench.rows import Row, Sample, append, write_samples
from t2eval.stats.means import mean_stderr
from t2eval.store.digests import object_digest

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--page--> \u2028\u2029 \u0000\u0007\u001b[31m \u202egnp.exe <a href='javascript:alert(1)'>x</a> &lt; ${1} `"
)
SCORES = {"base": 5, "expert": 14, "cls": 11, "fewshot": 13}
LABELS = ("math", "code")


def right(method: str, seed: int, doc: int, n: int) -> float:
    """Whether a method solves a document: the first ones, some more with each seed, and the base one that no other does."""
    solved = SCORES[method] * n // 16 + (seed if method != "base" else 0)
    return float(doc < solved if not (method != "base" and doc == 1) else False)


def put(folder: Path, method: str, task: str, seed: int = 0, n: int = 16, response: str | None = None) -> None:
    """One finished cell."""
    folder.mkdir(parents=True, exist_ok=True)
    cell = Cell("embedded", method, task, seed)
    digest = object_digest([task, n])
    scores = [right(method, seed, doc, n) for doc in range(n)]
    shares = {"math": 0.75, "code": 0.2, "others": 0.05} if method == "cls" else None
    samples = [
        Sample(
            doc_id=doc,
            doc_hash=f"{object_digest([task, doc])}",
            score=score,
            response=(HOSTILE if response is None else response) if doc == 0 else f"answer {doc}",
            raw=f"so the answer is {doc}" if doc else None,
            dispatch="math" if shares else None,
            probabilities=shares,
            why="error: ZeroDivisionError" if doc == 2 else None,
        )
        for doc, score in enumerate(scores)
    ]
    questions = [
        {"doc_id": doc, "arguments": [(HOSTILE if doc == 0 else f"Question {doc} of {task}?", {})], "target": f"{doc}"} for doc in range(n)
    ]
    write_documents(folder, digest, questions)
    mean, stderr = mean_stderr(scores)
    t2: dict[str, Any] = {"strategy": method, "experts": [{"name": "math", "label": "math"}]}
    if method == "cls":
        t2 |= {"dispatch": {task: {"math": n - 3, "code": 3}}, "mix": "hard"}
    if method == "fewshot":
        adaptation = {"split": "train", "examples": 8, "doc_ids": [1], "overlaps_test": False, "metric": "acc", "score": 0.5}
        t2 |= {"alphas": {task: [0.25, 0.75]}, "alpha_order": list(LABELS), "adaptation": {task: adaptation}}
    append(
        folder,
        Row(
            cell=cell.key, model="embedded", method=method, task=task, seed=seed, status="ok", metric="acc", score=mean, stderr=stderr, n=n,
            seconds=2.5, first_pass_seconds=1.5 if t2["strategy"] in ("cls", "fewshot") else 0.0, second_pass_seconds=1.0,
            trainable_parameters=0 if method == "base" else 1200, samples=write_samples(folder, cell.key, samples),
            t2=None if method == "base" else t2, hashes={"prompts": digest},
        ),
    )  # fmt: skip


def benchmark(folder: Path, n: int = 16, response: str | None = None) -> Path:
    """Four methods on two tasks, two seeds, and one cell that failed."""
    for task in ("sums_seen", "sums_unseen"):
        put(folder, "base", task, n=n, response=response)
        for method in ("expert", "cls", "fewshot"):
            for seed in (0, 1):
                put(folder, method, task, seed, n=n, response=response)
    broken = Cell("embedded", "lora", "sums_seen", 0)
    error = f"KeyError: {HOSTILE}"
    append(folder, Row(cell=broken.key, model="embedded", method="lora", task="sums_seen", seed=0, status="failed", error=error))
    return folder
