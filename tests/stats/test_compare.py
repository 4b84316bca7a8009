import math

import numpy as np
import pytest

from t2eval.errors import T2Error
from t2eval.stats.compare import average_seeds, bootstrap_means, holm, mcnemar, mean_stderr, paired, paired_draws, unpaired


def test_mean_stderr_equals_the_formula_for_a_proportion():
    scores = [1.0] * 30 + [0.0] * 70
    mean, error = mean_stderr(scores)
    assert mean == pytest.approx(0.3)
    assert error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert mean_stderr([0.5]) == (0.5, 0.0)
    with pytest.raises(T2Error, match="No scores"):
        mean_stderr([])


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (0, 5), (6, 6), (3, 17), (0, 0)])
def test_mcnemar_equals_the_binomial_sum(wins, losses):
    first = [1] * wins + [0] * losses + [1] * 13 + [0] * 4
    second = [0] * wins + [1] * losses + [1] * 13 + [0] * 4
    n, k = wins + losses, min(wins, losses)
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_textbook_value():
    # 9 against 1 discordant pairs: 2 * (1 + 10) / 1024.
    assert mcnemar([1] * 9 + [0], [0] * 9 + [1]) == pytest.approx(22 / 1024)


def test_holm_on_a_worked_example():
    # 0.01*4, 0.02*3, max(0.06, 0.03*2), 0.2*1
    assert holm([0.02, 0.2, 0.01, 0.03]) == pytest.approx([0.06, 0.2, 0.04, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_pairs_by_example_and_not_by_position():
    first = {"a": 1.0, "b": 0.0, "c": 1.0, "only here": 1.0}
    second = {"c": 1.0, "b": 0.0, "a": 1.0, "only there": 0.0}
    result = paired(first, second)
    assert (result.difference, result.p, result.n, result.test) == (0.0, 1.0, 3, "McNemar exact")
    assert paired({"a": 1.0}, {"b": 1.0}) is None


def test_graded_scores_take_the_bootstrap_and_agree_with_a_t_test():
    generator = np.random.default_rng(3)
    n = 200
    base = generator.uniform(size=n)
    lifted = base + generator.normal(0.02, 0.12, size=n)
    first, second = ({str(i): float(x) for i, x in enumerate(values)} for values in (lifted, base))
    result = paired(first, second)
    difference = lifted - base
    z = abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(n))
    normal = math.erfc(z / math.sqrt(2))
    assert result.test == "paired bootstrap"
    assert result.p == pytest.approx(normal, abs=0.02)
    assert result.low < result.difference < result.high
    half = 1.96 * difference.std(ddof=1) / math.sqrt(n)
    assert result.high - result.low == pytest.approx(2 * half, rel=0.05)
    assert paired(first, second) == result, "seeded"


def test_bootstrap_seldom_rejects_when_nothing_differs():
    generator = np.random.default_rng(0)
    rejections = 0
    for _ in range(100):
        a, b = generator.choice([0, 1 / 3, 2 / 3, 1], size=(2, 60))
        result = paired({str(i): float(x) for i, x in enumerate(a)}, {str(i): float(x) for i, x in enumerate(b)}, draws=1000)
        rejections += result.p < 0.05
    assert rejections <= 12


def test_no_difference_at_all_is_not_significant():
    scores = {str(i): 0.25 for i in range(10)}
    assert paired(scores, scores).p == 1.0


def test_paired_draws_has_both_variances():
    """Against the variance of a mean over crossed draws and examples, from the components that made the numbers."""
    generator = np.random.default_rng(1)
    draws, n, of_draw, of_example, noise = 60, 80, 0.2, 0.3, 0.1
    table = (
        0.05 + generator.normal(0, of_draw, (draws, 1)) + generator.normal(0, of_example, (1, n)) + generator.normal(0, noise, (draws, n))
    )
    runs = [{str(i): float(x) for i, x in enumerate(row)} for row in table]
    zero = [dict.fromkeys(runs[0], 0.0)]
    result = paired_draws(runs, zero)
    assert result.difference == pytest.approx(table.mean()) and result.n == n
    components = table.mean(axis=1).var(ddof=1) / draws + table.mean(axis=0).var(ddof=1) / n
    assert result.high - result.low == pytest.approx(2 * 1.96 * math.sqrt(components), rel=0.08)
    assert paired_draws(runs, runs).p == 1.0
    shuffled = [dict(reversed(run.items())) for run in runs]
    assert paired_draws(shuffled, zero) == result
    assert paired_draws([{"a": 1.0}], [{"b": 1.0}]) is None
    with pytest.raises(ValueError, match="3 and 2 draws"):
        paired_draws(runs[:3], runs[:2])


def test_average_seeds_keeps_shared_examples():
    assert average_seeds([{"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 1.0, "c": 1.0}]) == {"a": 1.0, "b": 0.5}


def test_bootstrap_draws_the_number_asked_for():
    assert bootstrap_means(np.array([0.0, 1.0]), draws=2500).shape == (2500,)


def test_unpaired_is_welch():
    result = unpaired((0.8, 0.02, 400), (0.7, 0.03, 300))
    z = 0.1 / math.hypot(0.02, 0.03)
    assert result.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=2e-3)
    assert unpaired((1.0, 0.0, 10), (1.0, 0.0, 10)) is None
