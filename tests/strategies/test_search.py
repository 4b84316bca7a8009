"""The searchers: the cross-entropy method against an independent one, and both on functions with a known optimum."""

from __future__ import annotations

import numpy as np
import pytest

from t2eval.errors import UsageError
from t2eval.strategies.search import CrossEntropy, SearchConfig, start_search

TARGET = np.array([0.8, 0.1, 0.45])


def _ranking(candidates: np.ndarray) -> list[int]:
    return [int(row) for row in np.argsort(((candidates - TARGET) ** 2).sum(axis=1), kind="stable")]


def test_cem_matches_a_plain_implementation() -> None:
    config = SearchConfig.paper(seed=5)
    search = CrossEntropy(np.full(3, 1 / 3), config)
    random, mean, sigma = np.random.default_rng(5), [1 / 3] * 3, [0.5] * 3
    for _ in range(12):
        population = search.ask()
        noise = random.standard_normal((32, 3))
        plain = [[min(1.0, max(0.0, mean[d] + sigma[d] * noise[p][d])) for d in range(3)] for p in range(32)]
        assert np.allclose(population, plain)
        elites = sorted(plain, key=lambda row: sum((a - b) ** 2 for a, b in zip(row, TARGET, strict=True)))[:6]
        mean = [sum(row[d] for row in elites) / 6 for d in range(3)]
        sigma = [max(0.01, (sum((row[d] - mean[d]) ** 2 for row in elites) / 6) ** 0.5) for d in range(3)]
        search.tell(population, _ranking(population))
        assert np.allclose(search.mean, mean) and np.allclose(search.sigma, sigma)


@pytest.mark.parametrize("method", ["cem", "cmaes"])
def test_reaches_the_optimum_of_a_quadratic_and_converges(method: str) -> None:
    search = start_search(3, 3, SearchConfig.paper(seed=1).model_copy(update={"method": method}))
    assert np.allclose(search.mean, 1 / 3) and not search.converged
    for _ in range(100):
        population = search.ask()
        assert population.shape == (32, 3) and population.min() >= 0 and population.max() <= 1
        search.tell(population, _ranking(population))
        if search.converged:
            break
    assert search.converged
    assert np.abs(search.mean - TARGET).max() < 0.03


def test_the_floor_keeps_the_spread_alive() -> None:
    search = CrossEntropy(np.array([0.5]), SearchConfig(sigma_floor=0.2, population=10))
    for _ in range(5):
        search.tell(population := search.ask(), list(range(10)))
        assert len(np.unique(population)) > 1 and (search.sigma >= 0.2).all()


@pytest.mark.parametrize("method", ["cem", "cmaes"])
def test_the_same_seed_asks_the_same(method: str) -> None:
    config = SearchConfig(method=method, seed=3)
    one, other = start_search(4, 2, config), start_search(4, 2, config)
    for _ in range(3):
        population = one.ask()
        assert np.array_equal(population, other.ask())
        for search in (one, other):
            search.tell(population, list(range(len(population))))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer than population"):
        CrossEntropy(np.zeros(2), SearchConfig(population=4, elites=4))
    with pytest.raises(UsageError, match="at least two"):
        start_search(1, 1, SearchConfig(method="cmaes"))
    with pytest.raises(ValueError, match="each of the"):
        start_search(2, 2, SearchConfig()).tell(np.zeros((3, 2)), [0, 0, 1])
