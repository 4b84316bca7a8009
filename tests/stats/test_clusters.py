import math

import numpy as np
import pytest
import statsmodels.api as sm

from t2eval.errors import T2Error
from t2eval.stats.clusters import clustered_stderr, paired_clusters
from t2eval.stats.means import mean_stderr


def test_miller_s_formula_on_a_worked_example():
    # mean 0.5; deviations +-1/2. Clusters (1, 1), (0, 0), (1, 0): crossed terms 2*(1/4), 2*(1/4), 2*(-1/4); SE_CLT^2 = (6/4/5)/6.
    scores, clusters = [1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"]
    assert clustered_stderr(scores, clusters) == pytest.approx(math.sqrt(0.05 + 0.5 / 36))


def test_it_is_the_cluster_robust_error_of_a_regression_on_a_constant():
    generator = np.random.default_rng(0)
    clusters = generator.integers(0, 12, size=90)
    scores = generator.normal(size=90) + generator.normal(size=12)[clusters]
    fit = sm.OLS(scores, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    # The regression divides each square by n, Miller's SE_CLT by n - 1.
    beside = (1 / 89 - 1 / 90) * ((scores - scores.mean()) ** 2).sum() / 90
    assert clustered_stderr(scores.tolist(), clusters.tolist()) == pytest.approx(math.sqrt(fit.bse[0] ** 2 + beside))
    assert clustered_stderr(scores.tolist(), clusters.tolist()) > mean_stderr(scores.tolist())[1]


def test_clusters_of_one_change_nothing_and_one_cluster_says_nothing():
    scores = [0.1, 0.9, 0.4, 0.4]
    assert clustered_stderr(scores, range(4)) == pytest.approx(mean_stderr(scores)[1])
    assert clustered_stderr(scores, ["one"] * 4) is None
    assert clustered_stderr([1.0], ["one"]) is None
    with pytest.raises(ValueError, match="4 scores and 2 clusters"):
        clustered_stderr(scores, ["a", "b"])


def test_the_test_of_clusters_holds_its_level_where_that_of_examples_does_not():
    from t2eval.stats.paired import paired

    generator = np.random.default_rng(1)
    repeats, clustered, plain = 300, 0, 0
    for number in range(repeats):
        cluster = np.repeat(np.arange(12), 10)
        values = generator.normal(size=12)[cluster] + generator.normal(0, 0.3, size=120)
        first = {str(place): float(value) for place, value in enumerate(values)}
        zero = dict.fromkeys(first, 0.0)
        of = {str(place): int(kind) for place, kind in enumerate(cluster)}
        clustered += paired_clusters(first, zero, of, draws=400, seed=number).p < 0.05
        plain += paired(first, zero, draws=400, seed=number).p < 0.05
    assert clustered / repeats <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repeats) < 0.2 < plain / repeats


def test_the_interval_is_students_with_the_clustered_error():
    first = {"a": 1.0, "b": 0.5, "c": 1.0, "d": 0.0}
    result = paired_clusters(first, dict.fromkeys(first, 0.0), {"a": 1, "b": 1, "c": 2, "d": 3})
    error = clustered_stderr(list(first.values()), [1, 1, 2, 3])
    assert (result.n, result.p, result.test) == (4, 0.5, "paired sign flips of 3 clusters")
    assert (result.low, result.high) == pytest.approx((0.625 - 4.302653 * error, 0.625 + 4.302653 * error))
    assert paired_clusters({"a": 1.0}, {"b": 1.0}, {}) is None
    with pytest.raises(T2Error, match="'d' has no cluster"):
        paired_clusters(first, first, {"a": 1, "b": 1, "c": 2})
