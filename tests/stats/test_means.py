import math

import pytest
from scipy import stats

from t2eval.errors import T2Error
from t2eval.stats.means import average_seeds, mean_stderr, spread


def test_mean_stderr_equals_the_formula_for_a_proportion():
    scores = [1.0] * 30 + [0.0] * 70
    mean, error = mean_stderr(scores)
    assert mean == pytest.approx(0.3)
    assert error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert mean_stderr([0.5]) == (0.5, None), "one example says nothing about its error"
    with pytest.raises(T2Error, match="No scores"):
        mean_stderr([])


def test_mean_stderr_of_graded_scores_is_scipys():
    scores = [0.1, 0.25, 0.9, 1.0, 0.3]
    assert mean_stderr(scores) == pytest.approx((sum(scores) / 5, stats.sem(scores)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_named_and_not_averaged(bad):
    with pytest.raises(T2Error, match=f"Score 1 of 3 is {bad}"):
        mean_stderr([0.5, bad, 1.0])


def test_spread_between_seeds():
    assert spread([0.5]) is None
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(1.5275, abs=1e-4)


def test_average_seeds_keeps_shared_examples():
    assert average_seeds([{"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 1.0, "c": 1.0}]) == {"a": 1.0, "b": 0.5}
