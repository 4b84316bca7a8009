"""t2_dispatch: whose questions it asks, that its prompt is the strategies', and how it grades."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from t2eval.environment import runs
from t2eval.environment.documents import question_of
from t2eval.environment.environment import Environment, Split
from t2eval.errors import T2Error
from t2eval.models.questions import question_text
from t2eval.strategies.dispatch import Dispatcher, paper_format
from tests.offline_datasets import datasets_cache, hub_rows, write_dataset, write_hub
from tests.tasks.names import MANAGER, raw
from tests.tiny import chat_tokenizer

pytestmark = pytest.mark.usefixtures("hub")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SEEN = {"math": "t2_gsm8k", "code": "t2_mbpp_pro", "reasoning": "t2_arc_easy"}


@pytest.fixture(scope="module")
def docs(environment: Callable[[str], Environment]) -> dict[str, list[dict[str, Any]]]:
    return {split: [example.doc for example in environment("t2_dispatch").examples(split)] for split in SPLITS}


def test_labels_are_balanced_and_the_order_tells_nothing(docs: dict[str, list[dict[str, Any]]]) -> None:
    for rows in docs.values():
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == {*SEEN, "others"} and len(set(counts.values())) == 1
        labels = [row["label"] for row in rows]
        assert labels != sorted(labels, key=labels.index)
    assert len(docs["train"]) > len(docs["validation"]) == len(docs["test"])


def test_every_question_is_from_a_training_split(docs: dict[str, list[dict[str, Any]]], environment: Callable[[str], Environment]) -> None:
    asked = {label: {row["question"] for rows in docs.values() for row in rows if row["label"] == label} for label in (*SEEN, "others")}
    for label, task in SEEN.items():
        one = environment(task)
        trained, rest = (
            {question_of(one.task, example.doc) for split in splits for example in one.examples(split)}  # type: ignore[arg-type]
            for splits in (["train"], ["validation", "test"])
        )
        assert asked[label] and asked[label] <= trained and not asked[label] & rest
    dolly = {row["instruction"]: row for row in hub_rows("databricks/databricks-dolly-15k", "default", "train")}
    assert {dolly[question]["category"] for question in asked["others"]} == {"brainstorming", "creative_writing"}
    assert not any(dolly[question]["context"] for question in asked["others"])


def test_it_is_the_same_each_time(docs: dict[str, list[dict[str, Any]]]) -> None:
    again = Environment("t2_dispatch", task_manager=MANAGER)
    assert {split: [example.doc for example in again.examples(split)] for split in SPLITS} == docs


@pytest.mark.parametrize("template", [None, "llama3", "mistral", "strict-mistral"])
def test_the_prompt_is_the_one_that_the_strategies_ask(environment: Callable[[str], Environment], template: str | None) -> None:
    tokenizer = chat_tokenizer(template) if template else None
    task = Environment("t2_dispatch", task_manager=MANAGER, tokenizer=tokenizer, apply_chat_template=template is not None)
    skills = {label: raw(name)["metadata"]["t2"]["description"] for label, name in SEEN.items()}
    form = paper_format(skills)

    def chat(user: str, lead: str) -> str:
        history = [{"role": "user", "content": user}] + ([{"role": "assistant", "content": lead.lstrip()}] if lead else [])
        rendered: str = tokenizer.apply_chat_template(  # type: ignore[union-attr]
            history, tokenize=False, add_generation_prompt=not lead, continue_final_message=bool(lead)
        )
        return rendered

    generating, scoring = (
        Dispatcher(None, form, mode=mode, chat=chat if template else None)  # type: ignore[arg-type]
        for mode in ("generate", "score")
    )
    for example in task.examples("test"):
        question = example.doc["question"]
        assert example.prompt == generating.prompt(question)
        # what supervised training learns is what the strategy scores, from the first letter of the label on
        assert scoring.prompt(question) + scoring.outcomes[example.doc["label"]] in (
            example.prompt + example.answer,
            example.prompt + " " + example.answer,  # Mistral's template has a space before an answer that has begun
        )
    assert tuple(task.until) == form.until and task.max_new_tokens == 1024


def test_the_first_pass_reads_the_question_that_the_task_was_made_of(environment: Callable[[str], Environment]) -> None:
    runs.record()
    for name in [*SEEN.values(), "t2_math", "t2_humaneval", "t2_arc_challenge"]:
        one = environment(name)
        one.task.build_all_requests(limit=1, rank=0, world_size=1)
        request = one.task.instances[0]
        text = question_text(request, plain=False)
        assert text == question_of(one.task, request.doc) and not text.startswith(("Question:", "Problem:"))


@pytest.mark.parametrize(
    ("label", "answer", "score"),
    [
        ("math", " \\boxed{math}", 1.0),
        ("math", "It asks for a sum. \\boxed{code} No: \\boxed{\\text{Math}}", 1.0),
        ("others", "\\boxed{others}", 1.0),
        ("math", "\\boxed{code}", 0.0),
        ("others", "", 0.0),  # the strategy falls back to the base weights; nothing is learned from that
        ("others", "\\boxed{poetry}", 0.0),
        ("code", "This is code", 1.0),
    ],
)
def test_grading(environment: Callable[[str], Environment], label: str, answer: str, score: float) -> None:
    task = environment("t2_dispatch")
    example = next(example for example in task.examples("train") if example.doc["label"] == label)
    assert task.score(example, answer) == score
    assert task.score(example, example.answer) == 1.0


DOLLY = "databricks/databricks-dolly-15k"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"instruction": ""}],
            r"Row 17 of split 'train' of data set databricks/\S+ cannot be used: its instruction is empty",
        ),
        ([{"category": None}], r"Row 17 of split 'train' of data set .* cannot be used: its category is empty"),
        ([{"context": "x" * 10_000_000}], r"Row 17 of split 'train' of data set .* cannot be used: its context has 10000000 characters"),
        (None, "needs at least 5 questions a label, and has 2"),
    ],
)
def test_data_that_cannot_be_used_is_named(tmp_path: Path, rows: list[dict[str, Any]] | None, message: str) -> None:
    write_hub(tmp_path, "openai/gsm8k", "evalplus/mbppplus", "allenai/ai2_arc")
    good = hub_rows(DOLLY, "default", "train")
    given = good[:2] if rows is None else good + [{**good[0], **row} for row in rows]
    features = datasets.Features(dict.fromkeys(good[0], datasets.Value("string")))
    write_dataset(tmp_path, DOLLY, "default", features, {"train": json.loads(json.dumps(given))})
    with datasets_cache(tmp_path), pytest.raises(T2Error, match=message):
        Environment("t2_dispatch", task_manager=MANAGER)
