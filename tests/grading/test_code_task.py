"""Code tasks: n and k from the YAML or from lm-eval's metadata, programs run once and side by side, the main metric pass@1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

import t2eval.grading.code_task as module
from t2eval.bench.plan import Cell
from t2eval.bench.scores import main_metric, scored
from t2eval.environment.environment import Environment
from t2eval.errors import T2Error, UsageError
from t2eval.sandbox import available
from t2eval.store.digests import object_digest

pytestmark = pytest.mark.skipif(available().kind is None, reason=f"no sandbox: {available().reason}")

SOURCE = """
import datasets
from t2eval.grading.code_task import CodeTask


class Sums(CodeTask):
    def program(self, doc, answer):
        return answer, doc["test"]


def load(**_):
    return {"test": datasets.Dataset.from_list([{"ask": f"f{i}?", "test": f"assert f() == {i}"} for i in range(6)])}
"""
YAML = """
task: sums
class: !function sums.Sums
custom_dataset: !function sums.load
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{ask}}"
doc_to_target: "def f(): return 0"
generation_kwargs: {until: ["Q:"], max_gen_toks: 8, do_sample: false}
metadata: {version: 1.0, t2: {label: code, sandbox: true}}
"""
SAMPLED = """
include: sums.yaml
task: sums_n4
generation_kwargs: {until: ["Q:"], max_gen_toks: 8, do_sample: true, temperature: 0.8}
metadata: {version: 1.0, n: 4, k: [2], t2: {label: code, sandbox: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sums")
    for name, text in {"sums.py": SOURCE, "sums.yaml": YAML, "sums_n4.yaml": SAMPLED}.items():
        (path / name).write_text(text)
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)  # lists packages with pip: seconds


class Parrot(LM):
    """Says `def f(): return c` where c counts the answers that it has given to a prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, int] = {}

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            number = self.said[request.args[0]] = self.said.get(request.args[0], -1) + 1
            answers.append(f"def f(): return {number}")
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood  # type: ignore[assignment]


def _evaluate(folder: Path, task: str, metadata: dict[str, Any] | None = None, **options: Any) -> Any:
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    return lm_eval.simple_evaluate(Parrot(), tasks=[task], task_manager=manager, bootstrap_iters=0, confirm_run_unsafe_code=True, **options)


def test_one_answer_a_problem(folder: Path) -> None:
    results = _evaluate(folder, "sums")
    assert results["results"]["sums"]["pass@1,none"] == pytest.approx(1 / 6)  # only the first problem wants 0
    assert results["samples"]["sums"][0]["filtered_resps"] == ["def f(): return 0"]


def test_n_and_k_from_the_yaml(folder: Path) -> None:
    results = _evaluate(folder, "sums_n4")
    # The answers 0 to 3: one of four is right for four of the six problems.
    assert results["results"]["sums_n4"]["pass@1,none"] == pytest.approx(4 / 6 * 1 / 4)
    assert results["results"]["sums_n4"]["pass@2,none"] == pytest.approx(4 / 6 * 2 / 4)
    assert len(results["samples"]["sums_n4"][0]["filtered_resps"][0]) == 4
    json.dumps(results["configs"], default=str)


def test_n_and_k_from_the_command_line(folder: Path) -> None:
    results = _evaluate(folder, "sums", {"n": 2, "k": 2}, gen_kwargs="do_sample=true,temperature=0.8")
    assert results["results"]["sums"]["pass@1,none"] == pytest.approx(2 / 6 / 2)
    assert results["results"]["sums"]["pass@2,none"] == pytest.approx(2 / 6)


def test_several_greedy_answers_are_refused_before_any_is_made(folder: Path) -> None:
    with pytest.raises(UsageError, match="n=2 answers a problem, but decoding is greedy"):
        _evaluate(folder, "sums", {"n": 2})


@pytest.mark.parametrize(
    "metadata", [{"k": [2]}, {"n": 0}, {"n": 2.5}, {"n": 2, "k": [0]}, {"n": True}, {"n": 3, "k": "2"}, {"n": 3, "k": [1, 4]}]
)
def test_impossible_n_and_k(folder: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sums: n="):
        TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata).load(["sums"])


def test_too_few_answers_for_k_is_no_silent_score(folder: Path) -> None:
    task = TaskManager(include_path=str(folder), include_defaults=False).load(["sums_n4"])["tasks"]["sums_n4"]
    with pytest.raises(UsageError, match="pass@2 needs"):
        task.process_results(task.eval_docs[0], ["def f(): return 0"])


def test_all_programs_run_in_one_batch_and_equal_ones_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    plain = module.judge_many

    def counting(pairs: Any, **options: Any) -> list[Any]:
        batches.append(len(pairs))
        return plain(pairs, **options)

    monkeypatch.setattr(module, "judge_many", counting)
    _evaluate(folder, "sums_n4")
    assert batches == [24]
    environment = Environment("sums", include_path=folder)
    examples = environment.examples("test")
    scored = environment.score_many([(example, f"def f(): return {index % 2}") for example in examples for index in range(4)])
    assert scored == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0] + [0.0] * 16
    assert batches[1:] == [12]


def test_the_batch_changes_no_result(folder: Path) -> None:
    environment = Environment("sums_n4", include_path=folder)
    answers = ["def f(): return 1", "", "def f(", "\0", "\ud800", "x" * 3_000_000, "while True: break", "def f(): return 1  # once more"]
    for example in environment.examples("test", limit=2):
        alone = [environment.score(example, answer) for answer in answers]
        fresh = [environment.task.process_results(example.doc, [[answer] * 4])["pass@1"] for answer in answers]
        assert environment.score_many([(example, answer) for answer in answers]) == alone == fresh
    assert alone == [1.0, 0, 0, 0, 0, 0, 0, 1.0]


def test_the_configuration_has_one_hash_and_leaves_the_task_behind(folder: Path) -> None:
    configs = [
        TaskManager(include_path=str(folder), include_defaults=False).load(["sums"])["tasks"]["sums"].dump_config() for _ in range(2)
    ]
    assert object_digest(configs[0]) == object_digest(configs[1])
    assert " at 0x" not in json.dumps({key: value for key, value in configs[0].items() if key != "custom_dataset"}, default=str)


def test_environment_and_benchmark_take_pass_at_1(folder: Path, tmp_path: Path) -> None:
    environment = Environment("sums_n4", include_path=folder)
    assert environment.metric == "pass@1"
    task = environment.task
    assert main_metric(task, {"pass@2,none": 1.0, "pass@1,none": 0.5}) == ("pass@1", "none")
    outcome = _evaluate(folder, "sums_n4")
    row = scored(tmp_path, Cell("m", "base", "sums_n4", 0).key, task, outcome, {})
    assert row["metric"] == "pass@1" and row["n"] == 6 and row["score"] == pytest.approx(1 / 6)


def test_without_a_sandbox_nothing_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> list[Any]:
        raise T2Error("Programs are not run here")

    monkeypatch.setattr(module, "judge_many", refuse)
    with pytest.raises(T2Error, match="not run here"):
        _evaluate(folder, "sums")


def test_a_task_says_how_each_program_ended(folder: Path) -> None:
    task = TaskManager(include_path=str(folder), include_defaults=False).load(["sums"])["tasks"]["sums"]
    doc = task.eval_docs[0]
    task.process_results(doc, ["def f(): return 0 / 0"])
    assert "ZeroDivisionError" in str(task.why(doc, ["def f(): return 0 / 0"]))
    assert task.why(doc, ["def f(): return 1"]) is None, "it was not run"
