"""TextVQA: the hub's train split cut into train, validation and adaptation by pictures; its validation split is the test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from t2eval.grading.vqa_accuracy import modal
from t2eval.vision.questions import load_rows, picture, slices

DATA_SET = "lmms-lab/textvqa"
SIZES = {"validation": 1000, "adaptation": 60, "train": 33_500}


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """The documents by split, as lm-eval's `custom_dataset` wants them. From a smaller copy of the data set, tenths and twentieths."""
    test = load_rows(DATA_SET, "validation", lambda row: row["image_id"])
    scored = {row["picture"] for row in test}
    learned = [row for row in load_rows(DATA_SET, "train", lambda row: row["image_id"]) if row["picture"] not in scored]
    few = {"validation": len(learned) // 10, "adaptation": len(learned) // 20}
    parts = slices(learned, {part: min(size, few.get(part, size)) for part, size in SIZES.items()})
    return {part: datasets.Dataset.from_list(rows) for part, rows in {**parts, "test": test}.items()}


def doc_to_image(doc: Mapping[str, Any]) -> list[Any]:
    """The document's one picture."""
    return [picture(DATA_SET, doc)]


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """What most people answered."""
    return modal(doc["answers"])
