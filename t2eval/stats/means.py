"""Means: the mean of scores with its standard error, scores averaged over seeds, and the spread between seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from t2eval.errors import T2Error


def mean_stderr(scores: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error: the sample standard deviation over √n, as lm-eval's. One score has no error: None, and not 0.

    Args:
        scores: one a example, at least one, all finite.

    Raises:
        T2Error: no scores, or one that is not a number.
    """
    n = len(scores)
    if not n:
        raise T2Error("No scores to average: there are no examples.")
    for place, score in enumerate(scores):
        if not math.isfinite(score):
            raise T2Error(f"Score {place} of {n} is {score}: a mean of it would say nothing. Mend the metric, or leave that example out.")
    mean = math.fsum(scores) / n
    return mean, stdev(scores, mean) / math.sqrt(n) if n > 1 else None


def stdev(scores: Sequence[float], mean: float | None = None) -> float:
    """The sample standard deviation (n - 1 below the sum) of two scores or more.

    Args:
        scores: at least two.
        mean: theirs, where it is known.
    """
    mean = math.fsum(scores) / len(scores) if mean is None else mean
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1))


def spread(scores: Sequence[float]) -> float | None:
    """The standard deviation between the scores of several seeds; None for one seed."""
    return stdev(scores) if len(scores) > 1 else None


def average_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per-example scores averaged over runs, for the examples that every run has.

    Args:
        runs: one mapping (example → score) per seed, at least one.
    """
    shared = set(runs[0]).intersection(*runs[1:])
    return {key: math.fsum(run[key] for run in runs) / len(runs) for key in runs[0] if key in shared}
