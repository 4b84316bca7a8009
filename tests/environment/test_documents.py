"""Documents of hub data sets: bad rows are named, and no question is in two splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from t2eval.environment.documents import LONGEST, check_rows, cluster_of, disjoint, load_documents, question_of
from t2eval.errors import T2Error
from tests.offline_datasets import datasets_cache, write_dataset

FEATURES = datasets.Features({"id": datasets.Value("string"), "q": datasets.Value("string")})


def _problem(row: Mapping[str, Any]) -> str | None:
    return None if row["q"] else "its q is empty"


def _rows(*questions: str | None) -> list[dict[str, Any]]:
    return [{"id": f"r{index}", "q": question} for index, question in enumerate(questions)]


def test_a_question_stays_in_the_last_split_that_has_it(tmp_path: Path) -> None:
    splits = {"train": _rows("a", "b", "A ", "c"), "validation": _rows("d", "b"), "test": _rows("c", "e", "e")}
    write_dataset(tmp_path, "someone/letters", "small", FEATURES, splits)
    with datasets_cache(tmp_path):
        found = load_documents(
            "someone/letters", "small", splits=("train", "validation", "test"), problem=_problem, content=lambda row: row["q"]
        )
    assert {split: rows["q"] for split, rows in found.items()} == {"train": ["A "], "validation": ["d", "b"], "test": ["c", "e", "e"]}
    assert list(found) == ["train", "validation", "test"]


def test_splits_without_repeats_are_left_as_they_are() -> None:
    rows = datasets.Dataset.from_list(_rows("a", "b"))
    assert disjoint({"test": rows}, lambda row: row["q"])["test"] is rows


@pytest.mark.parametrize(
    ("question", "wrong"), [("", "its q is empty"), (None, "its q is empty"), ("x" * (LONGEST + 1), f"its q has {LONGEST + 1} characters")]
)
def test_a_bad_row_is_named(question: str | None, wrong: str) -> None:
    with pytest.raises(T2Error, match=rf"Row 1 \(id 'r1'\) of split 'train' of data set someone/letters cannot be used: {wrong}\."):
        check_rows(_rows("a", question), "someone/letters", "train", _problem)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, "someone/letters", "small", FEATURES, {"test": _rows("a")})
    with datasets_cache(tmp_path), pytest.raises(T2Error, match=r"someone/letters \(small\) has no split 'train'\. It has: test\."):
        load_documents("someone/letters", "small", splits=("train", "test"), problem=_problem, content=lambda row: row["q"])


def test_the_cluster_of_a_document_is_the_field_that_its_task_names() -> None:
    def task(field: object) -> SimpleNamespace:
        return SimpleNamespace(config=SimpleNamespace(task="vqa", metadata={"t2": {"cluster": field}} if field else None))

    assert cluster_of(task(None), {"picture": "a"}) is None
    assert cluster_of(task("picture"), {"picture": "a"}) == "a" and cluster_of(task("picture"), {"picture": 7}) == "7"
    for doc in ({"question": "?"}, {"picture": None}, {"picture": ""}, {"picture": [1]}, {"picture": True}):
        with pytest.raises(T2Error, match=r"'vqa': metadata.t2.cluster names 'picture', which a document does not have .*has: "):
            cluster_of(task("picture"), doc)


def _choosing(asked: Any, choices: list[Any], **changes: Any) -> Any:
    config = SimpleNamespace(**{"task": "t", "metadata": None, "output_type": "multiple_choice", "doc_to_choice": "choices", **changes})
    return SimpleNamespace(config=config, doc_to_text=lambda doc: asked, doc_to_choice=lambda doc: choices)


@pytest.mark.parametrize(
    ("task", "question"),
    [
        (
            _choosing("Question: Which flies?\nAnswer:", [" a bird", "a stone"]),
            "Question: Which flies?\nAnswer:\nOptions:\nA. a bird\nB. a stone",
        ),
        (_choosing("Which flies?\nA. a bird\nB. a stone\nAnswer:", ["A", "B"]), "Which flies?\nA. a bird\nB. a stone\nAnswer:"),
        (_choosing("Is it 3?", ["no", 3]), "Is it 3?\nOptions:\nA. no\nB. 3"),
        (_choosing("How many?", list(range(27))), "How many?\nOptions:\n" + "\n".join(f"{n + 1}. {n}" for n in range(27))),
        (_choosing(1, ["It flew.", "It fell."]), ""),  # the choices are contexts
        (_choosing("Which flies?", ["a bird"], output_type="generate_until"), "Which flies?"),
        (_choosing("Which flies?", ["a bird"], doc_to_choice=None), "Which flies?"),
        (_choosing("The prompt", ["a bird"], metadata={"t2": {"question_field": "q"}}), "the field"),
    ],
)
def test_what_a_document_asks_has_the_choices_that_its_prompt_does_not_show(task: Any, question: str) -> None:
    assert question_of(task, {"q": " the field "}) == question
