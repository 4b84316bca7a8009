"""The text tasks on the real rows: sizes, splits that are apart, every gold answer right, prompts.

Runs where `T2EVAL_ROWS` names a folder of the real data sets' rows, `<owner>__<dataset>/<configuration>/<split>.jsonl`, one JSON object a
line, as in tests/fixtures/hub; it takes some minutes. Elsewhere it is skipped, and the tasks are tested on hand-written rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from t2eval.environment.documents import content_hash
from t2eval.environment.environment import Environment, Split, make_task_manager
from t2eval.environment.harness import compiled_once
from t2eval.sandbox import available
from tests.offline_datasets import datasets_cache, hub_rows, write_hub
from tests.tasks.names import raw
from tests.tiny import chat_tokenizer

ROWS = os.environ.get("T2EVAL_ROWS", "")
pytestmark = pytest.mark.skipif(not ROWS, reason="T2EVAL_ROWS names no folder of real rows")

TASKS = ["t2_gsm8k", "t2_math", "t2_mbpp_pro", "t2_arc_easy", "t2_arc_challenge", "t2_dispatch"]
SPLITS: tuple[Split, ...] = ("train", "validation", "adaptation", "test")
GOLD: dict[str, Callable[[Any], str]] = {
    "t2_gsm8k": lambda doc: doc["solution"],
    "t2_math": lambda doc: doc["solution"],
    "t2_mbpp_pro": lambda doc: f"```python\n{doc['code']}\n```",
    "t2_arc_easy": lambda doc: f" and so on. The answer is ({doc['answerKey']}).",
    "t2_arc_challenge": lambda doc: f" and so on. The answer is ({doc['answerKey']}).",
    "t2_dispatch": lambda doc: doc["answer"],
}
"""What a model that is right would write."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Environment]]:
    """Environments by name, over the real rows, each loaded once."""
    cache = tmp_path_factory.mktemp("real")
    write_hub(cache, hub=Path(ROWS))
    known: dict[str, Environment] = {}

    def get(name: str) -> Environment:
        if name not in known:
            known[name] = Environment(name, task_manager=make_task_manager(task=name))
        return known[name]

    with datasets_cache(cache):
        yield get


def _own_splits(environment: Environment) -> dict[str, Split]:
    """The splits that a task has of its own: source → the role that reads it."""
    found: dict[str, Split] = {}
    for split in SPLITS:
        if split == "train" and not raw(environment.name).get("training_split"):
            continue
        if split == "validation" and not (raw(environment.name).get("training_split") or raw(environment.name).get("validation_split")):
            continue
        found.setdefault(environment.split_source(split), split)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_the_yaml_states_the_sizes(real: Callable[[str], Environment], name: str) -> None:
    environment = real(name)
    sizes = {source: len(environment.examples(role)) for source, role in _own_splits(environment).items()}
    assert sizes == raw(name)["metadata"]["t2"]["sizes"]


@pytest.mark.parametrize("name", TASKS)
def test_no_question_is_in_two_splits(real: Callable[[str], Environment], name: str) -> None:
    environment = real(name)
    field = raw(name)["metadata"]["t2"]["question_field"]
    seen: dict[str, str] = {}
    for source, role in _own_splits(environment).items():
        for example in environment.examples(role):
            key = content_hash(str(example.doc[field]))
            assert seen.setdefault(key, source) == source, f"{example.doc[field][:200]!r} is in {seen[key]} and in {source}"


@pytest.mark.parametrize("name", TASKS)
def test_every_gold_answer_is_right_and_a_wrong_one_wrong(real: Callable[[str], Environment], name: str) -> None:
    if raw(name).get("unsafe_code") and available().kind is None:
        pytest.skip(f"no sandbox: {available().reason}")
    environment = real(name)
    for role in _own_splits(environment).values():
        examples = environment.examples(role)
        right = environment.score_many([(example, GOLD[name](example.doc)) for example in examples])
        assert [examples[place].doc for place, score in enumerate(right) if score != 1.0] == []
        assert not any(environment.score_many([(example, "I do not know.") for example in examples[:200]]))


@pytest.mark.parametrize("name", TASKS)
def test_every_prompt_has_its_question_whole(real: Callable[[str], Environment], name: str) -> None:
    """Separators of lines inside a row (U+2028) as well, and the task's instruction once."""
    environment = real(name)
    field, instruction = raw(name)["metadata"]["t2"]["question_field"], str(raw(name).get("description") or "").strip()
    with compiled_once():
        for role in _own_splits(environment).values():
            for example in environment.examples(role):
                assert str(example.doc[field]).strip() in example.prompt
                assert example.prompt.count(instruction) == 1 or not instruction


@pytest.mark.parametrize("template", ["llama3", "mistral"])
@pytest.mark.parametrize("name", TASKS)
def test_prompts_in_a_chat_template_have_the_golden_form(real: Callable[[str], Environment], name: str, template: str) -> None:
    """The golden prompt of the hand-written row (tests/golden), with a real question in its place."""
    real(name)  # the rows are there
    tokenizer = chat_tokenizer(template)
    environment = Environment(name, task_manager=make_task_manager(task=name), tokenizer=tokenizer, apply_chat_template=True)
    golden = (Path(__file__).parents[1] / "golden" / "prompts" / template / f"{name}.txt").read_bytes().decode()
    instruction = str(raw(name).get("description") or "").strip()
    for example in environment.examples("test", limit=20):
        head, tail = _around(example.prompt), _around(golden)
        assert head == tail, (head, tail)
        assert instruction in example.prompt
        assert example.prompt.endswith(str(raw(name).get("gen_prefix") or ""))


def _around(prompt: str) -> tuple[str, str]:
    """The first 20 and the last 10 characters: the template's own."""
    return prompt[:20], prompt[-10:]


def test_a_row_with_a_line_separator_is_one_row() -> None:
    rows = [row for split in ("train", "test") for row in hub_rows("openai/gsm8k", "main", split, Path(ROWS))]
    assert len(rows) == 7473 + 1319 and any("\u2028" in row["question"] + row["answer"] for row in rows)
