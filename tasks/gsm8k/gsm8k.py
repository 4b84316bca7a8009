"""GSM8K: the splits of the task, and the grading of an answer by its last number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import datasets

from t2eval.documents import defect, documents, text_field
from t2eval.metrics.numbers import last_number

SOURCE, CONFIGURATION = "openai/gsm8k", "main"
# The calculator annotations of the training answers: <<48/2=24>>.
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def _document(row: Mapping[str, Any], name: str) -> dict[str, str]:
    question, answer = text_field(row, "question", name), text_field(row, "answer", name)
    _, mark, final = answer.rpartition("####")
    if not mark or last_number(final) is None:
        raise defect(name, f"field 'answer' has no number after '####' (it ends with {answer[-40:]!r})")
    return {"question": question, "solution": _ANNOTATION.sub("", answer), "final": final.strip(), "row": name}


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """The splits, as lm-eval's `custom_dataset` wants them. Training rows are dealt out by their position, so they cannot overlap."""
    source = datasets.load_dataset(SOURCE, CONFIGURATION)
    train, test = (documents(source, f"{SOURCE} {CONFIGURATION}", split, _document) for split in ("train", "test"))
    dealt = {
        "train": train[0::2],
        "validation": [row for index, row in enumerate(train) if index % 8 in (1, 3, 5)],
        "adaptation": train[7::8],
        "test": test,
    }
    return {split: datasets.Dataset.from_list(rows) for split, rows in dealt.items()}


def grade(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Exact match of one answer: 1 if its last number is the document's, as a number."""
    answer = results[0][0] if isinstance(results[0], list) else results[0]
    name = str(doc.get("row", "a document of t2_gsm8k"))
    gold = last_number(text_field(doc, "final", name))
    if gold is None:
        raise defect(name, f"field 'final' holds no number ({doc['final'][:40]!r})")
    return {"exact_match": float(last_number(answer) == gold)}
