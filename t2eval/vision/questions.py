"""VQA rows: the questions of a hub data set with the answers that people gave, and their pictures, which stay in the file until asked for.

A document has no picture in it, only its place: tens of thousands of them fit into memory, and are hashed and logged as text. The picture
is read, and checked, when lm-eval builds the request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import datasets

from t2eval.errors import T2Error
from t2eval.vision.decoding import Place, read

if TYPE_CHECKING:
    from PIL import Image

SEED = 16
"""Of the slices, as of the halves that t2eval makes of a training split."""


@lru_cache(maxsize=16)
def _stored(data_set: str, split: str, cache: str) -> Any:
    """The split with its pictures undecoded. `cache` is the folder that it was found in."""
    return datasets.load_dataset(data_set, split=split).cast_column("image", datasets.Image(decode=False))


def load_rows(data_set: str, split: str, picture_of: Callable[[Mapping[str, Any]], Hashable]) -> list[dict[str, Any]]:
    """The rows of one split of the hub as documents.

    Args:
        data_set: the hub id; its rows have `question_id`, `image`, `question` and `answers`.
        split: the hub's name of the split.
        picture_of: what tells a row's picture from others'.

    Returns:
        Documents with `question_id`, `question`, `answers`, `picture` (as text), and the `split` and `row` that the picture is read from.

    Raises:
        T2Error: a row has no question or no answers; the message names it.
    """
    stored = _stored(data_set, split, str(datasets.config.HF_DATASETS_CACHE)).remove_columns("image")
    found = []
    for row, content in enumerate(stored):
        question, answers = content.get("question"), content.get("answers")
        where = f"{data_set}, split {split!r}, row {row}"
        if not isinstance(question, str) or not question.strip():
            raise T2Error(f"{where}, has no question. Leave out that row.")
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise T2Error(f"{where}, has no answers that people gave, so nothing can be scored or learned. Use a split that has them.")
        fields = {"question_id": str(content["question_id"]), "question": question.strip(), "answers": list(answers)}
        found.append({**fields, "picture": str(picture_of(content)), "split": split, "row": row})
    return found


def picture(data_set: str, doc: Mapping[str, Any]) -> Image.Image:
    """The picture of a document of `load_rows`.

    Raises:
        T2Error: it cannot be used; see `t2eval.vision.decoding.read`.
    """
    stored = _stored(data_set, doc["split"], str(datasets.config.HF_DATASETS_CACHE))
    return read(stored[int(doc["row"])]["image"], Place(data_set, str(doc["split"]), int(doc["row"])))


def slices(rows: Sequence[dict[str, Any]], sizes: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Rows cut into parts so that no picture stands in two.

    Pictures are shuffled by `SEED` and dealt to the parts, in order, until each has its rows; the questions by which the last picture of a
    part exceeds it are left out. Within a part the rows keep their order.

    Args:
        rows: documents with `picture`.
        sizes: part → rows. What is over stays unused.

    Returns:
        part → documents. A part is smaller than asked only if there are too few rows.
    """
    pictures = sorted({row["picture"] for row in rows})
    random.Random(SEED).shuffle(pictures)
    questions: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        questions.setdefault(row["picture"], []).append(place)
    parts: dict[str, list[int]] = {}
    left = iter(pictures)
    for part, size in sizes.items():
        chosen: list[int] = []
        while len(chosen) < size and (name := next(left, None)) is not None:
            chosen += questions[name]
        parts[part] = sorted(chosen[:size])
    return {part: [rows[place] for place in places] for part, places in parts.items()}
