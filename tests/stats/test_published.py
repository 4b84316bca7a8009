"""The statistics against worked examples that others have published."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as theirs

from t2eval.stats.means import mean_stderr
from t2eval.stats.paired import mcnemar, paired, sign_flips, unpaired
from t2eval.stats.power import examples_needed

DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
"""Heights of crossed less self-fertilised maize, in eighths of an inch (Darwin 1876); Fisher, The Design of Experiments, section 21."""


def ones(right: int, n: int) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def test_fishers_permutation_of_darwins_maize() -> None:
    # Of the 2^15 = 32,768 patterns of signs, 863 have a sum of 314 or more, and as many one of -314 or less.
    assert sum(DARWIN) == 314
    assert sign_flips(np.array(DARWIN, dtype=float)) == pytest.approx(2 * 863 / 32_768)
    named = {str(place): value / 8 for place, value in enumerate(DARWIN)}
    found = paired(named, dict.fromkeys(named, 0.0))
    assert found is not None and found.low is not None and found.high is not None
    # Fisher's t is 2.148 on 14 degrees of freedom: the mean is 2.617 inches, its standard error 1.218, the interval 0.0036 to 5.230.
    assert (found.difference, found.low, found.high) == pytest.approx((2.6167, 0.0036, 5.2297), abs=2e-3)
    assert found.test == "paired sign flips" and found.p == pytest.approx(0.0527, abs=5e-5)


def test_mcnemar_on_the_prime_ministers_approval() -> None:
    # Agresti, Categorical Data Analysis: 1,600 people asked twice; 150 went from yes to no, 86 from no to yes: z = -4.17.
    first, second = ones(794 + 150, 1600), [1.0] * 794 + [0.0] * 150 + [1.0] * 86 + [0.0] * 570
    p = mcnemar(first, second)
    assert p == pytest.approx(theirs([[794, 150], [86, 570]], exact=True).pvalue, rel=1e-9)
    assert p == pytest.approx(math.erfc(4.17 / math.sqrt(2)), rel=0.25) and p < 5e-5


@pytest.mark.parametrize(
    "n, galleon, dreadnought, error", [(5000, 0.655, 0.630, 0.007), (164, 0.836, 0.867, 0.029), (2500, 0.753, 0.780, 0.009)]
)
def test_miller_s_evaluations(n: int, galleon: float, dreadnought: float, error: float) -> None:
    # arXiv 2411.00640, the table of MATH, HumanEval and MGSM with two models that he made up: errors of means of zeros and ones.
    one, other = (mean_stderr(ones(round(score * n), n)) for score in (galleon, dreadnought))
    assert one[1] == pytest.approx(math.sqrt(galleon * (1 - galleon) / n), rel=1e-2) and one[1] == pytest.approx(error, abs=6e-4)
    found = unpaired((*one, n), (*other, n))
    assert found is not None and (found.p < 0.05) == (n != 164), "on 164 questions three points are no difference"


def test_miller_s_paired_error() -> None:
    # Section 4: SE_paired = √(SE_A² + SE_B² - 2 SE_A SE_B Corr). With a correlation of 0.5 and equal errors it is an unpaired one over √2.
    generator = np.random.default_rng(2)
    shared = generator.normal(size=4000)
    a, b = (shared + generator.normal(size=4000) for _ in range(2))
    first, second = ({str(place): float(value) for place, value in enumerate(side)} for side in (a, b))
    found = paired(first, second)
    assert found is not None and found.low is not None and found.high is not None
    error_a, error_b = (mean_stderr(side.tolist())[1] or 0.0 for side in (a, b))
    error = math.sqrt(error_a**2 + error_b**2 - 2 * error_a * error_b * np.corrcoef(a, b)[0, 1])
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert error == pytest.approx(math.hypot(error_a, error_b) / math.sqrt(2), rel=0.03)


def test_miller_s_number_of_questions() -> None:
    # Section 5: three points, 80% at 5%, with a variance of 1/9 between questions: 969.
    assert examples_needed(0.03, math.sqrt(1 / 9)) == pytest.approx((1.959964 + 0.841621) ** 2 / 9 / 0.03**2, abs=3)
