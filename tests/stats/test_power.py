import math

import numpy as np
import pytest
from scipy import stats

from t2eval.errors import UsageError
from t2eval.stats.paired import sign_flips
from t2eval.stats.power import could_show, examples_needed, smallest_difference, spread_of_differences


def test_miller_s_worked_numbers():
    # (1.95996 + 0.84162)^2 * (1/9) / 0.03^2 = 969.0: variance of the questions alone, 3 points, 80% at 5%.
    assert examples_needed(0.03, 1 / 3) == pytest.approx(969, abs=3)
    assert smallest_difference(1 / 3, 969) == pytest.approx(0.03, rel=2e-3)


@pytest.mark.parametrize("level", [0.05, 0.0025])
def test_it_has_the_chance_that_is_asked_for_at_any_number_of_examples(level):
    for n in (*range(2, 130), 1000, 20_000):
        effect = smallest_difference(1.0, n, level=level)
        quantile = stats.t.ppf(1 - level / 2, n - 1)
        assert effect > 0 and stats.nct.sf(quantile, n - 1, effect * math.sqrt(n)) == pytest.approx(0.8, abs=1e-3), n


def test_what_a_comparison_could_show():
    assert could_show(0.02, 100) == pytest.approx(smallest_difference(0.2, 100))
    assert could_show(0.02, 5) is None, "five examples that all got better have p = 0.0625"
    assert could_show(0.02, 6) > 0.02
    assert could_show(None, 1) is could_show(0.0, 100) is None
    assert could_show(0.02, 9, level=0.05 / 20) is None


def test_a_difference_of_that_size_is_found_four_times_in_five():
    generator = np.random.default_rng(0)
    n, repeats = 40, 400
    difference = smallest_difference(1.0, n)
    found = sum(sign_flips(generator.normal(difference, 1.0, size=n), 400, seed) < 0.05 for seed in range(repeats))
    assert found / repeats == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / repeats))


def test_the_two_functions_are_inverse():
    for difference in (0.01, 0.1, 0.5, 3.0):
        n = examples_needed(difference, 1.0)
        assert smallest_difference(1.0, n) <= difference
        assert n == 2 or smallest_difference(1.0, max(2, int(n * 0.995) - 1)) > difference
    assert smallest_difference(1.0, 1) is None
    assert smallest_difference(1.0, 100, level=0.05 / 20) > smallest_difference(1.0, 100)


def test_the_spread_before_anything_was_run():
    assert spread_of_differences(0.5, 0.0) == pytest.approx(math.sqrt(0.5))
    assert spread_of_differences(0.9, 1.0) == spread_of_differences(0.0) == 0.0


@pytest.mark.parametrize("call", [
    lambda: smallest_difference(-1.0, 10), lambda: smallest_difference(math.nan, 10), lambda: smallest_difference(1.0, 10, power=1.0),
    lambda: smallest_difference(1.0, 10, level=0.0), lambda: examples_needed(0.0, 1.0), lambda: examples_needed(math.nan, 1.0),
    lambda: spread_of_differences(1.5), lambda: spread_of_differences(0.5, 2.0),
])  # fmt: skip
def test_what_is_no_chance_is_refused(call):
    with pytest.raises(UsageError):
        call()
