"""Paired tests: whether one method's scores differ from another's on the same examples.

1. Scores of 0 and 1 of two single runs: McNemar's exact test on the examples that exactly one of them got right.
2. Anything else (graded scores, or scores averaged over several training seeds), below 200 examples: the sign-flip test of the
   per-example differences. Where neither side is better, each difference could as well have had the other sign; p is the share of sign
   patterns whose mean lies as far from zero as the observed one. All 2ⁿ patterns are gone through for up to 16 differences, a seeded sample
   of them beyond. So p holds its level at any n, and a single example never says anything (p = 1). From 200 examples on: a paired bootstrap
   over examples, which holds its level there (the tests simulate n = 5, 20, 100, 200 and 1,000) and not below (11% instead of 5% at n = 5).
3. Many runs, one for each draw of adaptation examples: a bootstrap over draws and examples; below 200 examples its p is never smaller than
   that of the sign flips of the differences averaged over the draws.

In 1 and 2 examples are what is resampled, so the tests speak about new examples of the task, for these seeds. The spread between seeds is
reported beside them (`seed_std`), and not folded in: three seeds are too few to resample.

Intervals are Student's below 200 examples and percentiles of the bootstrap from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2eval.stats.power import could_show

DRAWS = 10_000
_CHUNK = 1_000
_ALL_PATTERNS = 16  # 2^16 sign patterns are gone through in some milliseconds
_BOOTSTRAP_FROM = 200  # examples: the bootstrap holds its level from here on, whatever the differences look like
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """A difference `first - second` on `n` shared examples, its 95% interval (None where there is none: `interval`), and a two-sided p.

    `clusters` is how many groups of dependent examples they are of, None where examples are independent. `smallest` is the smallest true
    difference that such a comparison would find four times in five at 5% (`power.could_show`); None where it would find none.
    """

    difference: float
    low: float | None
    high: float | None
    n: int
    p: float
    test: str
    clusters: int | None = None
    smallest: float | None = None


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
    return sign_test(wins, losses)


def sign_test(gained: int, lost: int) -> float:
    """The exact two-sided sign test; p is 1 where nothing was gained and nothing lost.

    Args:
        gained: examples that got better.
        lost: examples that got worse.
    """
    if gained + lost == 0:
        return 1.0
    from scipy.stats import binomtest  # a second to import: not for those who only read rows

    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def sign_flips(differences: Floats, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of the sign-flip test that a mean difference is zero.

    The same as `scipy.stats.permutation_test(permutation_type="samples")` of one sample, in a thirtieth of the time.

    Args:
        differences: (n,) per-example differences.
        draws: sign patterns to sample where there are too many to go through them all; the observed one is counted too.
        seed: of the sampling.
    """
    moved = differences[differences != 0.0]  # a difference of zero stays one whatever its sign
    n = len(moved)
    if n == 0:
        return 1.0
    observed = abs(moved.sum())
    least = observed - 1e-9 * np.abs(moved).sum()  # keeps ties (common with scores of 0, 1/3, 2/3, 1) ties under rounding
    if n <= _ALL_PATTERNS:
        patterns = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # (2ⁿ, n), +1 or -1
        return float((np.abs(patterns @ moved) >= least).mean())
    generator = np.random.default_rng(seed)
    strays = 1
    for start in range(0, draws, _CHUNK):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(_CHUNK, draws - start), n), dtype=np.int8)  # (chunk, n)
        strays += int((np.abs(signs @ moved) >= least).sum())
    return strays / (1 + draws)


def bootstrap_means(differences: Floats, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Means of `draws` resamples with replacement of per-example differences, shape (draws,)."""
    generator = np.random.default_rng(seed)
    n = len(differences)
    means = [differences[generator.integers(0, n, size=(min(_CHUNK, draws - start), n))].mean(axis=1) for start in range(0, draws, _CHUNK)]
    return np.concatenate(means)


def bootstrap(differences: Floats, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of a mean of zero: how often a resample strays from the observed mean as far as that lies from zero.

    Args:
        differences: (n,) per-example differences.
        draws: resamples.
        seed: of the resampling.
    """
    return _strays(differences, bootstrap_means(differences, draws, seed))


def _strays(differences: Floats, means: Floats) -> float:
    """The p-value of `bootstrap`, from the resamples' means. `differences` may be of any shape."""
    observed = differences.mean()
    if not differences.any():
        return 1.0
    # The tolerance keeps ties (common with scores of 0, 1/3, 2/3, 1) ties under rounding.
    strays = np.abs(means - observed) >= abs(observed) - 1e-12
    return float((1 + strays.sum()) / (1 + len(means)))


def interval(differences: Floats, draws: int = DRAWS, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """The 95% interval of a mean difference: Student's where n is small, else percentiles of a bootstrap.

    (None, None) for n = 1, and where all differences are the same: their spread on other examples is not known, and it is not 0.

    Args:
        differences: (n,) per-example differences.
        draws: bootstrap resamples.
        seed: of the resampling.
    """
    n = len(differences)
    if n < 2 or np.ptp(differences) == 0.0:
        return None, None
    if n < _BOOTSTRAP_FROM:
        from scipy.stats import t

        half = float(t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
        return float(differences.mean()) - half, float(differences.mean()) + half
    low, high = np.quantile(bootstrap_means(differences, draws, seed), [0.025, 0.975])
    return float(low), float(high)


def paired(first: Mapping[str, float], second: Mapping[str, float], draws: int = DRAWS, seed: int = 0) -> Paired | None:
    """Compare two sets of scores on the examples that both have.

    Args:
        first: example → score.
        second: example → score.
        draws: sign patterns, and bootstrap resamples, to sample.
        seed: of the sampling.

    Returns:
        The difference `first - second` and its test, or None where they share no example.
    """
    keys = [key for key in first if key in second]
    if not keys:
        return None
    a = np.array([first[key] for key in keys], dtype=np.float64)
    b = np.array([second[key] for key in keys], dtype=np.float64)
    differences = a - b
    if np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
        p, test = mcnemar(a.tolist(), b.tolist()), "McNemar exact"
    elif len(keys) < _BOOTSTRAP_FROM:
        p, test = sign_flips(differences, draws, seed), "paired sign flips"
    else:
        p, test = bootstrap(differences, draws, seed), "paired bootstrap"
    low, high = interval(differences, draws, seed)
    error = float(differences.std(ddof=1) / np.sqrt(len(keys))) if len(keys) > 1 else None
    return Paired(float(differences.mean()), low, high, len(keys), p, test, smallest=could_show(error, len(keys)))


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
    differences = np.broadcast_to(a - b, (runs, len(keys)))  # (draws, examples)
    generator = np.random.default_rng(seed)
    by_draw = generator.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
    by_example = generator.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=resamples) / len(keys)
    means: Floats = np.einsum("kr,rn,kn->k", by_draw, differences, by_example, optimize=True)  # (resamples,)
    low, high = (None, None) if len(keys) < 2 else (float(bound) for bound in np.quantile(means, [0.025, 0.975]))
    p = _strays(differences, means)
    if len(keys) < _BOOTSTRAP_FROM:
        p = max(p, sign_flips(differences.mean(axis=0), resamples, seed))
    return Paired(float(differences.mean()), low, high, len(keys), p, "paired bootstrap over draws and examples")


def unpaired(first: tuple[float, float | None, int], second: tuple[float, float | None, int]) -> Paired | None:
    """Welch's t test from (mean, standard error, n), for results whose examples cannot be paired.

    Returns:
        None where a side has fewer than two examples (or no standard error), or neither has any spread.
    """
    (mean_a, error_a, n_a), (mean_b, error_b, n_b) = first, second
    if error_a is None or error_b is None or min(n_a, n_b) < 2 or error_a == error_b == 0.0:
        return None
    from scipy import stats

    outcome = stats.ttest_ind_from_stats(mean_a, error_a * np.sqrt(n_a), n_a, mean_b, error_b * np.sqrt(n_b), n_b, equal_var=False)
    squares = error_a**2, error_b**2
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / (n_a - 1) + squares[1] ** 2 / (n_b - 1))  # Welch and Satterthwaite
    difference, half = mean_a - mean_b, float(stats.t.ppf(0.975, freedom) * np.sqrt(sum(squares)))
    smallest = could_show(float(np.sqrt(sum(squares))), int(freedom) + 1)
    n = min(n_a, n_b)
    return Paired(difference, difference - half, difference + half, n, float(outcome.pvalue), "Welch (unpaired)", smallest=smallest)
