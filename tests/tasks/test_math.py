"""t2_math: seven subjects in one task, ten problems held out, boxed answers graded by meaning, bad rows named."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM

from t2eval.environment.documents import cluster_of
from t2eval.environment.environment import Environment, make_task_manager
from t2eval.errors import T2Error
from tests.offline_datasets import datasets_cache, hub_rows, write_dataset
from tests.tasks.names import MANAGER, raw
from tests.tiny import tiny_model, tiny_tokenizer

NAME = "EleutherAI/hendrycks_math"
SUBJECTS = ["algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus"]


@pytest.fixture
def task(environment: Callable[[str], Environment]) -> Environment:
    return environment("t2_math")


def test_ten_problems_are_held_out_and_the_rest_is_scored(task: Environment) -> None:
    rows = [row for subject in SUBJECTS for row in hub_rows(NAME, subject, "test")]
    held_out, scored = task.examples("adaptation"), task.examples("test")
    chosen = sorted(random.Random(16).sample(range(len(rows)), 10))
    assert [example.doc["problem"] for example in held_out] == [rows[place]["problem"] for place in chosen]
    assert [example.doc["problem"] for example in scored] == [row["problem"] for place, row in enumerate(rows) if place not in chosen]
    assert len(held_out) == 10 and len(held_out) + len(scored) == len(rows)
    assert (task.split_source("adaptation"), task.split_source("test")) == ("adaptation", "test")
    assert not task.task.has_training_docs() and not task.task.has_validation_docs()  # an unseen task
    assert len(task.examples("test")) == len(scored)  # also after the adaptation examples were asked for
    assert raw("t2_math")["metadata"]["t2"]["sizes"] == {"adaptation": 10, "test": 5000 - 10}
    assert raw("t2_math")["dataset_path"] == NAME


def test_levels_and_subjects_are_kept(task: Environment) -> None:
    docs = [example.doc for example in (*task.examples("test"), *task.examples("adaptation"))]
    assert {doc["level"] for doc in docs} == {f"Level {level}" for level in range(1, 6)}
    assert {doc["type"].lower().replace("&", "and").replace(" ", "_") for doc in docs} == set(SUBJECTS)
    assert {cluster_of(task.task, doc) for doc in docs} == {doc["type"] for doc in docs}, "the subjects are the clusters"


def test_worked_solutions_are_right_and_others_are_wrong(task: Environment) -> None:
    examples = task.examples("test")
    assert [task.score(example, example.answer) for example in examples] == [1.0] * len(examples)
    assert all(example.answer == " " + example.doc["solution"] for example in examples)
    others = [*examples[1:], examples[0]]
    assert sum(task.score(example, other.answer) for example, other in zip(examples, others, strict=True)) == 0.0
    assert [task.score(example, f"It is {example.doc['answer']}.") for example in examples] == [0.0] * len(examples)
    assert (task.until, task.max_new_tokens, task.metric, task.num_fewshot) == (["\nProblem:"], 1024, "exact_match", 0)


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        (r"\frac{1}{2}", r"It is $\boxed{0.5}$.", 1.0),
        (r"\frac{1}{2}", r"It is $\boxed{\dfrac{2}{4}}$.", 1.0),
        (r"\frac{1}{2}", r"It is $\boxed{0.55}$.", 0.0),
        (r"[5,\infty)", r"\boxed{\left[5, \infty\right)}", 1.0),
        (r"[5,\infty)", r"\boxed{(5,\infty)}", 0.0),
        ("1,2", r"\boxed{2, 1}", 1.0),
        ("(1,2)", r"\boxed{(2, 1)}", 0.0),
        (r"\text{odd}", r"\boxed{Odd}", 1.0),
        (r"\text{odd}", r"\boxed{\text{even}}", 0.0),
        ("5", r"\boxed{5", 0.0),
        ("5", "", 0.0),
        ("5", r"\boxed{" + "5" * 10_000_000 + "}", 0.0),
        ("5", r"答案是 \boxed{5}。", 1.0),
    ],
)
def test_process_results_compares_meanings(task: Environment, gold: str, answer: str, score: float) -> None:
    doc = {**task.examples("test", limit=1)[0].doc, "answer": gold}
    assert task.task.process_results(doc, [answer]) == {"exact_match": score}


def test_a_document_without_an_answer_is_an_error_not_a_zero(task: Environment) -> None:
    doc = {**task.examples("test", limit=1)[0].doc, "answer": ""}
    with pytest.raises(T2Error, match="A document of t2_math has no answer, to "):
        task.task.process_results(doc, [r"\boxed{5}"])


@pytest.mark.parametrize("shots", [0, 2])
def test_lm_eval_runs_it(hub: None, shots: int) -> None:
    model = HFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), batch_size=2, device="cpu")
    found: Any = lm_eval.simple_evaluate(
        model=model,
        tasks=["t2_math"],
        num_fewshot=shots,
        limit=2,
        task_manager=MANAGER,
        gen_kwargs="max_gen_toks=8",
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found["n-samples"]["t2_math"] == {"original": 18, "effective": 2}
    assert found["results"]["t2_math"]["exact_match,none"] == 0.0
    prompt = found["samples"]["t2_math"][0]["arguments"][0][0]
    assert prompt.startswith("You solve") and prompt.endswith("\nSolution:")
    # lm-eval's shots come from the held-out problems
    held_out = [doc["solution"] for doc in MANAGER.load(["t2_math"])["tasks"]["t2_math"].dataset["adaptation"]]
    assert sum(solution in prompt for solution in held_out) == shots


# ---------------------------------------------------------------------- bad rows
@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"solution": "It is 5."}, r"its solution has no \\boxed"),
        ({"solution": r"It is \boxed{5."}, r"its solution has no \\boxed"),
        ({"solution": r"It is \boxed{}."}, r"its solution has no \\boxed"),
        ({"solution": r"\boxed{" + "5" * 2001 + "}"}, r"its solution has no \\boxed"),
        ({"solution": None}, "its solution is None, and should be text"),
        ({"problem": ""}, "its problem is '', and should be text"),
        ({"type": None}, "its type is None, and should be text"),
        ({"problem": "x" * 10_000_000}, "its problem has 10000000 characters"),
    ],
    ids=["unboxed", "open", "empty", "long", "none", "blank", "subject", "huge"],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], wrong: str) -> None:
    columns = datasets.Features({field: datasets.Value("string") for field in ("problem", "level", "type", "solution")})
    for subject in SUBJECTS:
        rows = hub_rows(NAME, subject, "test")
        if subject == "geometry":
            rows[2] = {**rows[2], **change}
        write_dataset(tmp_path, NAME, subject, columns, {"test": rows})
    with datasets_cache(tmp_path), pytest.raises(T2Error, match=rf"Row 2 of split 'test' of data set {NAME} \(geometry\).*: {wrong}"):
        Environment("t2_math", task_manager=make_task_manager(task="t2_math"))


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    columns = datasets.Features({field: datasets.Value("string") for field in ("problem", "level", "type", "solution")})
    for subject in SUBJECTS:
        write_dataset(tmp_path, NAME, subject, columns, {"test": hub_rows(NAME, subject, "test")[:1]})
    with datasets_cache(tmp_path), pytest.raises(T2Error, match="cannot hold 10 of 7 problems out"):
        Environment("t2_math", task_manager=make_task_manager(task="t2_math"))
