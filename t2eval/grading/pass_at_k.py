"""pass@k: the chance that at least one of k sampled programs passes, estimated without bias from n samples a problem.

Every program runs in the sandbox. As a metric of `evaluate`, without the hub:

    metric = evaluate.load("<folder of t2eval>/grading/metrics/pass_at_k.py")
    metric.compute(references=["assert f(1) == 2"], predictions=[["def f(x): return x + 1", "def f(x): return x"]], k=[1, 2])

In the YAML of a task whose filter makes whole programs of the answers and whose target is the test:

    metric_list:
      - {metric: !function t2eval.grading.pass_at_k.pass_at_k, k: [1, 10], aggregation: mean, higher_is_better: true}
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from t2eval.errors import UsageError
from t2eval.sandbox.programs import pass_many


def estimate(n: int, passed: int, k: int) -> float:
    """The unbiased estimate of pass@k: the share of the subsets of k of the n samples that hold one that passed (Chen et al., 2021).

    1 - C(n - passed, k) / C(n, k), in whole numbers up to the last division.

    Args:
        n: samples of one problem.
        passed: how many of them passed.
        k: the size of the subsets.

    Raises:
        UsageError: k is not in 1..n, or `passed` not in 0..n.
    """
    if not 1 <= k <= n:
        raise UsageError(f"pass@{k} needs at least {max(k, 1)} answers a problem (and k of at least 1), and there are {n}.")
    if not 0 <= passed <= n:
        raise UsageError(f"{passed} of {n} programs cannot have passed.")
    return 1.0 - comb(n - passed, k) / comb(n, k)


def scores(outcomes: Sequence[bool], ks: Sequence[int]) -> dict[str, float]:
    """`pass@k` for each k, of one problem.

    Args:
        outcomes: whether each sample passed.
        ks: the values of k.

    Raises:
        UsageError: a k without enough samples.
    """
    return {f"pass@{k}": estimate(len(outcomes), sum(outcomes), k) for k in ks}


def pass_at_k(
    references: Sequence[str],
    predictions: Sequence[str | Sequence[str]],
    k: int | Sequence[int] = 1,
    timeout: float = 5.0,
    workers: int | None = None,
    together: bool = False,
) -> dict[str, float]:
    """Run every program of every problem in the sandbox, side by side, and estimate pass@k.

    Args:
        references: the problems' tests.
        predictions: for each problem one program or several; the numbers may differ.
        k: one or several values of k.
        timeout: seconds for each program, as `t2eval.sandbox.run_program` counts them; one that uses them up has failed.
        workers: how many programs at a time; default: one a processor, at most 8.
        together: run a test behind its program in one process, as `t2eval.sandbox.programs.judge_many` says.

    Returns:
        `pass@k` → the mean over the problems, for each k.

    Raises:
        UsageError: no problem, another number of problems than of tests, or a problem with fewer programs than k.
        T2Error: programs cannot be isolated on this machine.
    """
    ks = [k] if isinstance(k, int) else list(k)
    answers = [[programs] if isinstance(programs, str) else list(programs) for programs in predictions]
    if len(answers) != len(references) or not answers or not ks:
        raise UsageError(f"pass@k needs a k, and programs for each test: {len(ks)} k, {len(answers)} problems, {len(references)} tests.")
    for programs in answers:  # before anything is run
        scores([False] * len(programs), ks)
    flat = [(program, test) for programs, test in zip(answers, references, strict=True) for program in programs]
    passed = iter(pass_many(flat, together=together, timeout=timeout, workers=workers))
    each = [scores([next(passed) for _ in programs], ks) for programs in answers]
    return {name: sum(problem[name] for problem in each) / len(each) for name in each[0]}
