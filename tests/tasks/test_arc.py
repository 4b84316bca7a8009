"""t2_arc_easy and t2_arc_challenge: prompts with the row's own labels, the label that an answer names, and rows that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from t2eval.environment.documents import question_of
from t2eval.environment.environment import Environment
from t2eval.errors import T2Error
from tests.offline_datasets import datasets_cache, hub_rows, write_dataset
from tests.tasks.names import MANAGER

pytestmark = pytest.mark.usefixtures("hub")
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("labels", ["ABCD", "1234", "ABCDE", "ABC"])
def test_the_prompt_shows_the_row_s_own_labels(environment: Callable[[str], Environment], labels: str) -> None:
    task = environment("t2_arc_easy").task
    row = next(doc for doc in task.test_docs() if "".join(doc["choices"]["label"]) == labels)
    options = "\n".join(f"{label}. {text}" for label, text in zip(labels, row["choices"]["text"], strict=True))
    assert task.doc_to_text(row) == f"Question: {row['question']}\nOptions:\n{options}"
    assert question_of(task, row) == f"{row['question']}\nOptions:\n{options}"
    assert task.doc_to_target(row) == f"\nThe answer is ({row['answerKey']})."


@pytest.mark.parametrize(
    ("labels", "answer", "named"),
    [
        ("ABCD", ": iron is a metal.\nThe answer is (B).", "B"),
        ("ABCD", ". So the answer is B", "B"),
        ("ABCD", "The answer is (A). The answer is (B).", "A"),  # the first one
        ("ABCD", "(C) cannot be. Answer: D", "D"),
        ("ABCD", "Final answer:\n B", "B"),
        ("ABCD", "The answer is copper, that is (B).", "B"),  # not the C of copper
        ("ABCD", "The answer is Carbon, so B", "B"),  # not the C of Carbon
        ("ABCD", "A is wrong, B is wrong, so it must be C", "C"),  # the last one that stands alone
        ("ABCD", "I would say it is B", "B"),
        ("ABCD", "B, as far as I can tell", "B"),  # "I" is no option here
        ("ABCD", "It is a metal.", None),
        ("ABCD", "the answer is 2", None),
        ("ABCD", "the answer is (E)", None),
        ("ABCD", "", None),
        ("ABCDE", "the answer is (E)", "E"),
        ("ABC", "the answer is (D), or (C)", "C"),
        ("1234", "the answer is (3).", "3"),
        ("1234", "Answer: 4", "4"),
        ("1234", "There are 2 of them, 10 in all, so (1)", "1"),
        ("1234", "the answer is (C)", None),
        ("1234", "it weighs 12 kg", None),
    ],
)
def test_the_label_that_an_answer_names(environment: Callable[[str], Environment], labels: str, answer: str, named: str | None) -> None:
    easy = environment("t2_arc_easy")
    example = next(example for example in easy.examples("test") if "".join(example.doc["choices"]["label"]) == labels)
    for key in labels:
        doc = {**example.doc, "answerKey": key}
        assert easy.score(replace(example, doc=doc), answer) == float(key == named)


def _ids(environment: Environment, split: Any) -> list[str]:
    return [example.doc["id"] for example in environment.examples(split)]


def test_splits_are_the_hub_s_and_the_unseen_task_has_no_training_split(environment: Callable[[str], Environment]) -> None:
    easy, challenge = environment("t2_arc_easy"), environment("t2_arc_challenge")
    for split in SPLITS:
        assert _ids(easy, split) == [row["id"] for row in hub_rows("allenai/ai2_arc", "ARC-Easy", split)]
    assert _ids(challenge, "adaptation") == [row["id"] for row in hub_rows("allenai/ai2_arc", "ARC-Challenge", "validation")]
    assert challenge.split_source("adaptation") == "validation"
    assert "train" not in challenge.task.dataset
    with pytest.raises(T2Error, match="no training split"):
        challenge.examples("train")


CHOICES = {"text": ["a cat", "a stone"], "label": ["A", "B"]}
GOOD = {"id": "x", "question": "Which one purrs?", "choices": CHOICES, "answerKey": "A"}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"answerKey": "C"}, r"its answerKey 'C' is not one of its option labels A, B"),
        ({"answerKey": ""}, r"its answerKey '' is not one of its option labels A, B"),
        ({"answerKey": None}, r"its answerKey None is not one of its option labels A, B"),
        ({"question": " \n"}, "its question is empty"),
        ({"question": None}, "its question is empty"),
        ({"question": "why? " * 2_000_000}, "its question has 10000000 characters"),
        ({"choices": {"text": ["a cat", "x" * 10_000_000], "label": ["A", "B"]}}, "its choices has 10000000 characters"),
        ({"choices": {"text": ["a cat"], "label": ["A", "B"]}}, "it has 1 option texts and 2 labels"),
        ({"choices": {"text": ["a cat"], "label": ["A"]}}, "it has 1 option texts and 1 labels"),
        ({"choices": {"text": ["a cat", ""], "label": ["A", "B"]}}, "one of its options is empty"),
        ({"choices": {"text": ["a cat", "a stone"], "label": ["A", "A"]}}, "its option labels repeat: A, A"),
        ({"choices": None}, "it has 0 option texts and 0 labels"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], wrong: str) -> None:
    rows = {split: [{**GOOD, "id": f"{split}-0", "question": f"{split}: which one purrs?"}] for split in SPLITS}
    rows["validation"].append({**GOOD, "id": "bad-1", **change})
    text = datasets.Value("string")
    features = datasets.Features(
        {"id": text, "question": text, "choices": {"text": datasets.List(text), "label": datasets.List(text)}, "answerKey": text}
    )
    for config in ("ARC-Easy", "ARC-Challenge"):
        write_dataset(tmp_path, "allenai/ai2_arc", config, features, rows)
    with datasets_cache(tmp_path):
        for task, config in (("t2_arc_easy", "ARC-Easy"), ("t2_arc_challenge", "ARC-Challenge")):
            match = rf"Row 1 \(id 'bad-1'\) of split 'validation' of data set allenai/ai2_arc \({config}\) cannot be used: {wrong}\."
            with pytest.raises(T2Error, match=match):
                Environment(task, task_manager=MANAGER)
