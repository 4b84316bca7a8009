"""Error bars and paired tests: whether one method's scores differ from another's on the same examples.

1. Two single runs with 0/1 scores: McNemar's exact test on the examples that exactly one of them got right.
2. Anything else (graded scores, or scores averaged over several training seeds): a paired bootstrap over examples.
3. Many runs, one for each draw of adaptation examples: a paired bootstrap over draws and examples.
In 1 and 2 examples are what is resampled, so the tests speak about new examples of the task, for these seeds. The spread between seeds is
reported beside them (`seed_std`), and not folded in: three seeds are too few to resample.
P-values of one family of comparisons are corrected by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2eval.errors import T2Error

DRAWS = 10_000
LEVEL = 0.05
_CHUNK = 1_000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """A difference `first - second` on `n` shared examples, its 95% bootstrap interval, and a two-sided p-value."""

    difference: float
    low: float
    high: float
    n: int
    p: float
    test: str


def mean_stderr(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample standard deviation over √n; 0 for a single example), as lm-eval's.

    Raises:
        T2Error: no scores.
    """
    if not scores:
        raise T2Error("No scores to average: the cell has no examples.")
    values = np.asarray(scores, dtype=np.float64)
    spread = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(values.mean()), spread


def average_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per-example scores averaged over runs, for the examples that every run has.

    Args:
        runs: one mapping (example → score) per seed, at least one.
    """
    shared = set(runs[0]).intersection(*runs[1:])
    return {key: float(np.mean([run[key] for run in runs])) for key in runs[0] if key in shared}


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact two-sided McNemar test: a binomial test on the discordant pairs.

    Args:
        first: 0/1 scores.
        second: 0/1 scores of the same examples in the same order.

    Returns:
        p; 1 where the two never disagree.
    """
    wins = sum(a > b for a, b in zip(first, second, strict=True))
    losses = sum(a < b for a, b in zip(first, second, strict=True))
    if wins + losses == 0:
        return 1.0
    from scipy import stats  # a second to import: not for those who only read rows

    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def bootstrap_means(differences: Floats, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Means of `draws` resamples with replacement of per-example differences, shape (draws,)."""
    generator = np.random.default_rng(seed)
    n = len(differences)
    means = [differences[generator.integers(0, n, size=(min(_CHUNK, draws - start), n))].mean(axis=1) for start in range(0, draws, _CHUNK)]
    return np.concatenate(means)


def _bootstrap_p(differences: Floats, means: Floats) -> float:
    """Two-sided p of a mean of zero: how often a resample strays from the observed mean as far as that lies from zero."""
    observed = differences.mean()
    if not differences.any():
        return 1.0
    # The tolerance keeps ties (common with scores of 0, 1/3, 2/3, 1) ties under rounding.
    strays = np.abs(means - observed) >= abs(observed) - 1e-12
    return float((1 + strays.sum()) / (1 + len(means)))


def paired(first: Mapping[str, float], second: Mapping[str, float], draws: int = DRAWS, seed: int = 0) -> Paired | None:
    """Compare two sets of scores on the examples that both have.

    Args:
        first: example → score.
        second: example → score.
        draws: bootstrap resamples.
        seed: of the resampling.

    Returns:
        The difference `first - second` and its test, or None where they share no example.
    """
    keys = [key for key in first if key in second]
    if not keys:
        return None
    a = np.array([first[key] for key in keys], dtype=np.float64)
    b = np.array([second[key] for key in keys], dtype=np.float64)
    differences = a - b
    means = bootstrap_means(differences, draws, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    if np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
        p, test = mcnemar(a.tolist(), b.tolist()), "McNemar exact"
    else:
        p, test = _bootstrap_p(differences, means), "paired bootstrap"
    return Paired(float(differences.mean()), float(low), float(high), len(keys), p, test)


def paired_draws(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]], resamples: int = DRAWS, seed: int = 0
) -> Paired | None:
    """Compare two sets of runs, one for each draw of adaptation examples, on the test examples that all have.

    Draws and examples are resampled independently of each other, so that the test speaks about new draws and new examples. Where both
    matter this counts their interaction twice, and errs on the side of no difference.

    Args:
        first: a mapping (example → score) a draw; a single one is the same for every draw.
        second: the same, in the same order of draws.
        resamples: of the bootstrap.
        seed: of the resampling.

    Returns:
        The difference `first - second` and its test, `n` being the examples, or None where they share none.

    Raises:
        ValueError: the two have different numbers of draws, both more than one.
    """
    runs = max(len(first), len(second))
    if {len(first), len(second)} - {1, runs}:
        raise ValueError(f"{len(first)} and {len(second)} draws cannot be paired")
    keys = sorted(set(first[0]).intersection(*first, *second))
    if not keys:
        return None
    a, b = (np.array([[run[key] for key in keys] for run in side], dtype=np.float64) for side in (first, second))
    differences = np.broadcast_to(a - b, (runs, len(keys)))
    generator = np.random.default_rng(seed)
    by_draw = generator.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
    by_example = generator.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=resamples) / len(keys)
    means: Floats = np.einsum("kr,rn,kn->k", by_draw, differences, by_example, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    p = _bootstrap_p(differences, means)
    return Paired(float(differences.mean()), float(low), float(high), len(keys), p, "paired bootstrap over draws and examples")


def unpaired(first: tuple[float, float, int], second: tuple[float, float, int]) -> Paired | None:
    """Welch's t test from (mean, standard error, n), for results whose examples cannot be paired.

    Returns:
        None where a side has fewer than two examples or neither has any spread.
    """
    (mean_a, error_a, n_a), (mean_b, error_b, n_b) = first, second
    error = float(np.hypot(error_a, error_b))
    if min(n_a, n_b) < 2 or error == 0.0:
        return None
    from scipy import stats

    outcome = stats.ttest_ind_from_stats(mean_a, error_a * np.sqrt(n_a), n_a, mean_b, error_b * np.sqrt(n_b), n_b, equal_var=False)
    difference = mean_a - mean_b
    low, high = difference - 1.96 * error, difference + 1.96 * error
    return Paired(difference, low, high, min(n_a, n_b), float(outcome.pvalue), "Welch (unpaired)")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction.

    Args:
        p_values: of one family of comparisons, in any order.

    Returns:
        Adjusted p-values in the same order, at most 1.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted
