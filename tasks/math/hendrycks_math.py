"""MATH: seven subjects as one task, and the grading of an answer by what its box means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from t2eval.documents import defect, documents, held_out, parted, text_field
from t2eval.metrics.latex import LONGEST, boxed
from t2eval.metrics.mathematics import boxed_equivalent

SOURCE = "EleutherAI/hendrycks_math"
SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
# The paper's ten examples for few-shot adaptation, which leave the test split for every model alike.
ADAPTATION_EXAMPLES, ADAPTATION_SEED = 10, 16


def _document(row: Mapping[str, Any], name: str) -> dict[str, str]:
    fields = {field: text_field(row, field, name) for field in ("problem", "level", "type", "solution")}
    answer = boxed(fields["solution"])
    if not answer:
        raise defect(name, f"field 'solution' has no \\boxed{{…}} that is closed, not empty and at most {LONGEST:,} characters long")
    return {**fields, "answer": answer, "row": name}


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """The splits, as lm-eval's `custom_dataset` wants them: training rows halved by position, test rows less the seeded sample."""
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for subject in SUBJECTS:
        source = datasets.load_dataset(SOURCE, subject)
        train += documents(source, f"{SOURCE} {subject}", "train", _document)
        test += documents(source, f"{SOURCE} {subject}", "test", _document)
    adaptation, scored = parted(test, held_out(len(test), ADAPTATION_EXAMPLES, ADAPTATION_SEED))
    dealt = {"train": train[0::2], "validation": train[1::2], "adaptation": adaptation, "test": scored}
    return {split: datasets.Dataset.from_list(rows) for split, rows in dealt.items()}


def grade(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Exact match of one answer: 1 if its last box means what the document's does."""
    answer = results[0][0] if isinstance(results[0], list) else results[0]
    gold = text_field(doc, "answer", str(doc.get("row", "a document of t2_math")))
    return {"exact_match": float(boxed_equivalent(gold, answer))}
