"""t2_gsm8k: splits dealt out by place, answers graded by their last number, bad rows named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM

from t2eval.environment.environment import Environment, make_task_manager
from t2eval.errors import T2Error
from tests.offline_datasets import datasets_cache, hub_rows, write_dataset
from tests.tasks.names import MANAGER, raw
from tests.tiny import tiny_model, tiny_tokenizer

NAME = "openai/gsm8k"
SPLITS = ("train", "validation", "adaptation", "test")


@pytest.fixture
def gsm8k(environment: Callable[[str], Environment]) -> Environment:
    return environment("t2_gsm8k")


def test_training_rows_are_dealt_out_by_their_place(gsm8k: Environment) -> None:
    rows = [row["question"] for row in hub_rows(NAME, "main", "train")]
    asked = {split: [example.doc["question"] for example in gsm8k.examples(split)] for split in SPLITS}  # type: ignore[arg-type]
    assert asked["train"] == rows[0::2]
    assert asked["validation"] == [row for place, row in enumerate(rows) if place % 8 in (1, 3, 5)]
    assert asked["adaptation"] == rows[7::8]
    assert asked["test"] == [row["question"] for row in hub_rows(NAME, "main", "test")]
    assert sorted(asked["train"] + asked["validation"] + asked["adaptation"]) == sorted(rows)
    assert [gsm8k.split_source(split) for split in SPLITS] == list(SPLITS)  # type: ignore[arg-type]


def test_the_sizes_in_the_yaml_follow_from_the_real_data_set_s() -> None:
    train = range(7473)
    sizes = {"train": len(train[0::2]), "validation": sum(place % 8 in (1, 3, 5) for place in train), "adaptation": len(train[7::8])}
    assert raw("t2_gsm8k")["metadata"]["t2"]["sizes"] == {**sizes, "test": 1319}
    assert raw("t2_gsm8k")["dataset_path"] == NAME


def test_supervised_answers_have_no_calculator_annotations(gsm8k: Environment) -> None:
    for example in gsm8k.examples("train"):
        assert "<<" not in example.answer and example.answer.startswith(" ")
        assert example.answer.splitlines()[-1] == f"#### {example.doc['final']}"
        assert gsm8k.score(example, example.answer) == 1.0
    assert (gsm8k.until, gsm8k.max_new_tokens, gsm8k.metric, gsm8k.num_fewshot) == (["\nQuestion:"], 512, "exact_match", 0)


@pytest.mark.parametrize(
    ("final", "answer", "score"),
    [
        ("1,092,000", "It took $1092000.", 1.0),
        ("1,092,000", "It took $1,092.", 0.0),
        ("4.50", "They cost $4.5", 1.0),
        ("4.50", "They cost 9/2 dollars", 1.0),
        ("-7", "It was −7 degrees.", 1.0),
        ("-7", "It was 7 degrees below zero.", 0.0),
        ("75", "75%", 1.0),
        ("18", "First 18, and then 20.", 0.0),
        ("18", "", 0.0),
        ("18", "eighteen", 0.0),
        ("18", "答案是18。", 1.0),
        ("18", "1" * 10_000_000, 0.0),
        ("18", "x" * 10_000_000 + " 18", 1.0),
    ],
)
def test_process_results_compares_numbers(gsm8k: Environment, final: str, answer: str, score: float) -> None:
    doc = {**gsm8k.examples("test", limit=1)[0].doc, "final": final}
    assert gsm8k.task.process_results(doc, [answer]) == {"exact_match": score}


def test_a_document_without_a_number_is_an_error_not_a_zero(gsm8k: Environment) -> None:
    doc = {**gsm8k.examples("test", limit=1)[0].doc, "final": "none"}
    with pytest.raises(T2Error, match="no number as its final answer: 'none', to 'A potter"):
        gsm8k.task.process_results(doc, ["5"])


def test_lm_eval_runs_it(hub: None) -> None:
    model = HFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), batch_size=2, device="cpu")
    found: Any = lm_eval.simple_evaluate(
        model=model, tasks=["t2_gsm8k"], limit=2, task_manager=MANAGER, gen_kwargs="max_gen_toks=8", bootstrap_iters=0, log_samples=True
    )
    assert found["n-samples"]["t2_gsm8k"] == {"original": 14, "effective": 2}
    assert found["results"]["t2_gsm8k"]["exact_match,none"] == 0.0
    prompt = found["samples"]["t2_gsm8k"][0]["arguments"][0][0]
    assert prompt.startswith("You solve") and prompt.endswith("\nAnswer:") and "\n\nQuestion: A potter" in prompt


# ---------------------------------------------------------------------- bad rows
def _broken(tmp_path: Path, features: dict[str, str], row: dict[str, Any], split: str) -> Iterator[None]:
    good = {name: {"question": "How many?", "answer": "#### 1"}.get(name) for name in features}
    columns = datasets.Features({name: datasets.Value(kind) for name, kind in features.items()})
    rows = {"train": [good] * 8, "test": [good]}
    rows[split] = [*rows[split], row]
    write_dataset(tmp_path, NAME, "main", columns, rows)
    with datasets_cache(tmp_path):
        yield


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("features", "row", "wrong"),
    [
        ({"question": "string"}, {"question": "Why?"}, "its answer is None"),
        ({"question": "string", "answer": "string"}, {"question": None, "answer": "#### 1"}, "its question is None"),
        ({"question": "string", "answer": "string"}, {"question": " ", "answer": "#### 1"}, "its question is ' '"),
        ({"question": "string", "answer": "string"}, {"question": "Why?", "answer": ""}, "its answer is ''"),
        ({"question": "string", "answer": "string"}, {"question": "Why?", "answer": "It is 5."}, "no number after '####'"),
        ({"question": "string", "answer": "string"}, {"question": "Why?", "answer": "#### fünf"}, "no number after '####'"),
        ({"question": "string", "answer": "string"}, {"question": "x" * 10_000_000, "answer": "#### 1"}, "has 10000000 characters"),
    ],
    ids=["missing", "none", "blank", "empty", "unmarked", "words", "huge"],
)
def test_a_bad_row_is_named(tmp_path: Path, features: dict[str, str], row: dict[str, Any], wrong: str, split: str) -> None:
    for _ in _broken(tmp_path, features, row, split):
        # where a column is missing, every row is bad, and the first is named
        number, where = (0, "train") if "answer" not in features else ({"train": 8, "test": 1}[split], split)
        with pytest.raises(T2Error, match=rf"Row {number} of split '{where}' of data set openai/gsm8k \(main\) cannot be used: .*{wrong}"):
            Environment("t2_gsm8k", task_manager=make_task_manager(task="t2_gsm8k"))


def test_an_answer_that_is_no_text_is_named(tmp_path: Path) -> None:
    columns = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value("float64")})
    rows = [{"question": "Why?", "answer": float("nan")}]
    write_dataset(tmp_path, NAME, "main", columns, {"train": rows, "test": rows})
    with datasets_cache(tmp_path), pytest.raises(T2Error, match=r"Row 0 of split 'train'.*its answer is nan, and should be text"):
        Environment("t2_gsm8k", task_manager=make_task_manager(task="t2_gsm8k"))
