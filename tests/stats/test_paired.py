import math

import numpy as np
import pytest
from scipy import stats

from t2eval.stats.paired import bootstrap_means, mcnemar, paired, paired_draws, sign_flips, unpaired


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


def test_paired_pairs_by_example_and_not_by_position():
    first = {"a": 1.0, "b": 0.0, "c": 1.0, "only here": 1.0}
    second = {"c": 1.0, "b": 0.0, "a": 1.0, "only there": 0.0}
    result = paired(first, second)
    assert (result.difference, result.p, result.n, result.test) == (0.0, 1.0, 3, "McNemar exact")
    assert paired({"a": 1.0}, {"b": 1.0}) is None


def test_many_graded_scores_take_the_bootstrap_and_agree_with_a_t_test():
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


def _thirds(generator, n):
    """Differences between two scores averaged over three seeds: many ties, and no difference in truth."""
    first, second = generator.choice([0, 1 / 3, 2 / 3, 1], size=(2, n), p=[0.5, 0.1, 0.1, 0.3])
    return first - second


def _normal(generator, n):
    return generator.normal(size=n)


def _of(values):
    return {str(i): float(x) for i, x in enumerate(values)}


@pytest.mark.parametrize("differences", [_thirds, _normal])
@pytest.mark.parametrize(("n", "repeats"), [(1, 20), (5, 1000), (20, 1000), (100, 600), (200, 400), (1000, 200)])
def test_where_nothing_differs_one_test_in_twenty_says_so_at_most(differences, n, repeats):
    generator = np.random.default_rng(n)
    found = [paired(_of(differences(generator, n)), _of(np.zeros(n)), draws=400, seed=i).p for i in range(repeats)]
    rejected = sum(p < 0.05 for p in found) / repeats
    assert rejected <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repeats)
    if n == 1:
        assert set(found) == {1.0}


def test_a_real_difference_is_found_at_small_n():
    assert paired(_of(np.full(8, 0.5)), _of(np.zeros(8))).p == pytest.approx(2 / 2**8)
    assert paired(_of(np.full(12, 0.5)), _of(np.zeros(12))).p == pytest.approx(2 / 2**12)


@pytest.mark.parametrize("n", [5, 9, 14, 40])
def test_sign_flips_are_scipys_permutation_test(n):
    generator = np.random.default_rng(n)
    for differences in (generator.normal(0.3, 1, size=n), generator.choice([-1 / 3, 0, 1 / 3, 2 / 3], size=n)):

        def mean(values, axis=-1):
            return values.mean(axis=axis)

        few = n <= 14
        theirs = stats.permutation_test((differences,), mean, permutation_type="samples", n_resamples=2**n if few else 20_000, rng=0)
        # Theirs doubles the smaller tail, which for a symmetric null is the same.
        assert sign_flips(differences, 20_000) == pytest.approx(theirs.pvalue, abs=1e-9 if few else 0.015)


def test_one_example_has_neither_an_interval_nor_a_verdict():
    for first in (1.0, 0.7):
        result = paired({"a": first}, {"a": 0.0})
        assert (result.p, result.low, result.high, result.n) == (1.0, None, None, 1)
    result = paired_draws([{"a": 1.0}, {"a": 0.9}, {"a": 1.0}], [{"a": 0.0}])
    assert (result.p, result.low, result.high) == (1.0, None, None)


def test_few_examples_are_not_significant_over_draws_either():
    generator = np.random.default_rng(4)
    rejected = 0
    for number in range(200):
        truth = generator.normal(size=5)  # what the examples do, whatever the draw
        runs = [_of(truth + generator.normal(0, 0.05, size=5)) for _ in range(3)]
        rejected += paired_draws(runs, [_of(np.zeros(5))], resamples=400, seed=number).p < 0.05
    assert rejected / 200 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 200)


def test_a_small_samples_interval_is_students():
    values = [0.1, 0.4, -0.2, 0.5, 0.3]
    result = paired(_of(values), _of([0.0] * 5))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_no_difference_at_all_is_not_significant():
    scores = {str(i): 0.25 for i in range(10)}
    result = paired(scores, scores)
    assert (result.p, result.low, result.high, result.smallest) == (1.0, None, None, None), "10 differences of 0 have no known spread"


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


def test_bootstrap_draws_the_number_asked_for():
    assert bootstrap_means(np.array([0.0, 1.0]), draws=2500).shape == (2500,)


def test_unpaired_is_welch():
    result = unpaired((0.8, 0.02, 400), (0.7, 0.03, 300))
    z = 0.1 / math.hypot(0.02, 0.03)
    assert result.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=2e-3)
    assert unpaired((1.0, 0.0, 10), (1.0, 0.0, 10)) is None
    assert unpaired((0.8, None, 1), (0.7, 0.03, 300)) is None
    few = unpaired((0.8, 0.1, 5), (0.4, 0.1, 5))
    a = 0.8 + 0.1 * math.sqrt(5) * np.array([-1, -1, 0, 1, 1])
    b = 0.4 + 0.1 * math.sqrt(5) * np.array([-1, -1, 0, 1, 1])
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (few.low, few.high) == pytest.approx((expected.low, expected.high))
