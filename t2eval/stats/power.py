"""Power: the smallest difference that so many examples could show, and how many examples a difference needs.

For a paired comparison: the spread is the standard deviation of the per-example differences. Solved with the t distribution, so it holds at
small n too; for large n it is Miller's formula (arXiv 2411.00640, section 5), δ = (z_{1-α/2} + z_power) · spread / √n.
"""

from __future__ import annotations

import functools
import math

from t2eval.errors import UsageError
from t2eval.stats.corrections import LEVEL

POWER = 0.8
"""The chance, by convention, with which a difference of the smallest detectable size is found."""


def smallest_difference(spread: float, n: int, *, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest true difference that a paired test on n examples finds with the given chance; None for n = 1, which finds none.

    Args:
        spread: standard deviation of the per-example differences, in the scores' unit.
        n: examples.
        power: the chance to find it.
        level: of the two-sided test; divided by the number of comparisons where several are corrected together.

    Raises:
        UsageError: a power or level that is no chance, or a negative spread.
    """
    _check(spread, power, level)
    return None if n < 2 else _effect(n, power, level) * spread


@functools.lru_cache(maxsize=4096)
def _effect(n: int, power: float, level: float) -> float:
    """The smallest difference in units of the spread; a table asks for few numbers of examples, and for each of them often."""
    from scipy.optimize import brentq  # these two take half a second to import: not for those who only read rows
    from statsmodels.stats.power import TTestPower

    # Its own solve_power ends at a negative effect, or at none, for one number of examples in thirty. The tail on the other side of zero
    # is left out: at four times in five it is less than a millionth, and scipy has no number for it where effects are large.
    def missing(effect: float) -> float:
        return float(TTestPower().power(effect, n, level / 2, alternative="larger")) - power

    above = 1 / math.sqrt(n)
    while missing(above) < 0:
        above *= 2
    return float(brentq(missing, 0.0, above, xtol=1e-12))


def could_show(error: float | None, units: int, *, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest true difference that a comparison with this standard error finds with the given chance.

    Args:
        error: the standard error of the mean difference; None where it is not known.
        units: what is independent of each other: examples, or their clusters.
        power, level: as in `smallest_difference`.

    Returns:
        In the scores' unit; None where there is none: with no error known, where nothing differs on any example (so that the spread is not
        known), and where units are so few that the exact tests reject nothing (of five examples that all got better, p is 0.0625).
    """
    if not error or 2.0 ** (1 - units) > level:
        return None
    return smallest_difference(error * math.sqrt(units), units, power=power, level=level)


def examples_needed(difference: float, spread: float, *, power: float = POWER, level: float = LEVEL) -> int:
    """How many examples a paired test needs to find a true difference with the given chance.

    Args:
        difference: above 0, in the scores' unit.
        spread, power, level: as in `smallest_difference`.

    Raises:
        UsageError: as there, or a difference that is not positive.
    """
    _check(spread, power, level)
    if not difference > 0:
        raise UsageError(f"A difference to be found must be above 0, not {difference}.")
    if spread == 0:
        return 2
    from scipy.stats import norm

    wanted = float(norm.ppf(1 - level / 2) + norm.ppf(power)) * spread / difference
    n = max(2, math.floor(wanted**2))
    while (found := smallest_difference(spread, n, power=power, level=level)) is None or found > difference:
        n += max(1, n // 1000)
    return n


def spread_of_differences(score: float, agreement: float = 0.5) -> float:
    """The spread that differences of 0/1 scores will have, before anything was run: √(2 p (1 − p) (1 − agreement)).

    Args:
        score: p, what both sides are expected to score, 0 to 1.
        agreement: the correlation of the two sides' scores over examples. Models of one base agree on most.

    Raises:
        UsageError: a score or a correlation out of its range.
    """
    if not (0 <= score <= 1 and -1 <= agreement <= 1):
        raise UsageError(f"A score lies between 0 and 1 and a correlation between -1 and 1, not {score} and {agreement}.")
    return math.sqrt(2 * score * (1 - score) * (1 - agreement))


def _check(spread: float, power: float, level: float) -> None:
    if not (0 < power < 1 and 0 < level < 1 and spread >= 0 and math.isfinite(spread) and level < power):
        raise UsageError(
            f"Power ({power}) and level ({level}) lie between 0 and 1, the level lower, and a spread ({spread}) is not negative."
        )
