"""OK-VQA: the one split of the hub, less the adaptation examples, is the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import datasets

from t2eval.grading.vqa_accuracy import modal
from t2eval.vision.questions import load_rows, picture, slices

DATA_SET = "lmms-lab/OK-VQA"
SPLIT = "val2014"
ADAPTATION = 60


def picture_of(row: Mapping[str, Any]) -> str:
    """COCO's number of the picture: a question's number is its picture's with one more figure."""
    return str(row["question_id"])[:-1] or str(row["question_id"])


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """The documents by split, as lm-eval's `custom_dataset` wants them. Adaptation examples have pictures that no test question has."""
    rows = load_rows(DATA_SET, SPLIT, picture_of)
    questions = Counter(row["picture"] for row in rows)
    single = [row for row in rows if questions[row["picture"]] == 1]
    adaptation = slices(single, {"adaptation": min(ADAPTATION, len(single) // 4)})["adaptation"]
    held_out = {row["row"] for row in adaptation}
    test = [row for row in rows if row["row"] not in held_out]
    return {"adaptation": datasets.Dataset.from_list(adaptation), "test": datasets.Dataset.from_list(test)}


def doc_to_image(doc: Mapping[str, Any]) -> list[Any]:
    """The document's one picture."""
    return [picture(DATA_SET, doc)]


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """What most people answered."""
    return modal(doc["answers"])
