"""The searchers: the cross-entropy method against an independent one, and all of them on functions with a known optimum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2eval.errors import UsageError
from t2eval.models.options import FewshotOptions
from t2eval.strategies.search import SEARCHES, SearchConfig, registry, start_search
from t2eval.strategies.search.cross_entropy import CrossEntropy
from t2eval.strategies.search.uniform import RandomSearch

METHODS = tuple(SEARCHES)
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


def test_the_papers_preset_is_the_papers() -> None:
    preset = SearchConfig.paper(seed=7)
    assert (preset.method, preset.population, preset.elites, preset.iterations, preset.sigma) == ("cem", 32, 6, 100, 0.5)
    search = start_search(3, 3, preset)
    assert np.allclose(search.mean, 1 / 3)
    first = np.random.default_rng(7).standard_normal((32, 3)) * 0.5 + 1 / 3
    assert np.allclose(search.ask(), first.clip(0, 1))


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


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_asks_the_same_and_another_seed_something_else(method: str) -> None:
    config = SearchConfig(method=method, seed=3)
    one, other = start_search(4, 2, config), start_search(4, 2, config)
    stranger = start_search(4, 2, config.model_copy(update={"seed": 4}))
    for _ in range(3):
        population = one.ask()
        assert np.array_equal(population, other.ask()) and not np.array_equal(population, stranger.ask())
        for search in (one, other):
            search.tell(population, list(range(len(population))))


@settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    dimensions=st.integers(2, 12),
    population=st.integers(4, 12),
    seed=st.integers(0, 10_000),
    target=st.floats(-0.5, 1.5),
)
def test_every_candidate_and_mean_stays_in_the_box(method: str, dimensions: int, population: int, seed: int, target: float) -> None:
    search = start_search(dimensions, 3, SearchConfig(method=method, population=population, seed=seed))
    for _ in range(5):
        asked = search.ask()
        assert asked.shape == (population, dimensions) and asked.dtype == np.float64
        assert asked.min() >= 0 and asked.max() <= 1
        search.tell(asked, [int(row) for row in np.argsort(np.abs(asked - target).sum(axis=1), kind="stable")])
        assert search.mean.shape == (dimensions,) and search.mean.min() >= 0 and search.mean.max() <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("transform", [np.exp, lambda scores: 3 * scores - 7, lambda scores: scores**3])
def test_increasing_transforms_of_the_scores_change_nothing(method: str, transform: Callable[[np.ndarray], np.ndarray]) -> None:
    plain, transformed = (start_search(3, 3, SearchConfig(method=method, seed=2)) for _ in range(2))
    for _ in range(6):
        population = plain.ask()
        assert np.array_equal(population, transformed.ask())
        scores = -((population - TARGET) ** 2).sum(axis=1)
        plain.tell(population, [int(row) for row in np.argsort(-scores, kind="stable")])
        transformed.tell(population, [int(row) for row in np.argsort(-transform(scores), kind="stable")])


def test_random_search_keeps_the_best_it_has_seen() -> None:
    search = RandomSearch(np.full(3, 1 / 3), SearchConfig(population=8, seed=1))
    best = float(((search.mean - TARGET) ** 2).sum())
    for round_ in range(40):
        population = search.ask()
        assert np.array_equal(population[0], search.mean)
        distances = ((population - TARGET) ** 2).sum(axis=1)
        best = min(best, float(distances.min()))
        search.tell(population, _ranking(population))
        assert float(((search.mean - TARGET) ** 2).sum()) == best
        assert not search.converged or round_ < 0
    assert best < 0.02


def test_both_optimisers_beat_random_search_at_the_same_budget() -> None:
    def distance(method: str, seed: int) -> float:
        search = start_search(3, 3, SearchConfig(method=method, seed=seed))
        for _ in range(10):
            search.tell(population := search.ask(), _ranking(population))
        return float(np.abs(search.mean - TARGET).max())

    means = {method: np.mean([distance(method, seed) for seed in range(10)]) for method in METHODS}
    assert means["cem"] < 0.5 * means["random"] and means["cmaes"] < 0.5 * means["random"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer than population"):
        CrossEntropy(np.zeros(2), SearchConfig(population=4, elites=4))
    with pytest.raises(UsageError, match="at least two"):
        start_search(1, 1, SearchConfig(method="cmaes"))
    with pytest.raises(UsageError, match=r"Unknown search 'cmas'.*Did you mean 'cmaes'"):
        SearchConfig(method="cmas")
    with pytest.raises(ValueError, match="each of the"):
        start_search(2, 2, SearchConfig()).tell(np.zeros((3, 2)), [0, 0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_the_smallest_population_that_the_settings_take_is_one_that_the_search_can_use(method: str) -> None:
    smallest = registry.search_class(method).smallest_population
    search = start_search(3, 3, SearchConfig(method=method, population=smallest))
    for _ in range(4):
        search.tell(population := search.ask(), _ranking(population))
    assert np.isfinite(search.mean).all()
    with pytest.raises(UsageError, match=rf"population={smallest - 1} is too small for search={method}"):
        start_search(3, 3, SearchConfig().model_copy(update={"method": method, "population": smallest - 1}))


class _Still:
    """A search that stays where it is: what a new one has to have."""

    smallest_population = 2

    def __init__(self, start: np.ndarray, config: SearchConfig) -> None:
        self.mean, self.converged, self._population = start, True, config.population

    @staticmethod
    def check(dimensions: int, config: SearchConfig) -> None:
        pass

    def ask(self) -> np.ndarray:
        return np.tile(self.mean, (self._population, 1))

    def tell(self, candidates: np.ndarray, ranking: list[int]) -> None:
        pass


def test_a_new_search_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEARCHES, "still", f"{__name__}:_Still")
    config = SearchConfig(method="still", population=2)
    assert start_search(2, 2, config).ask().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert FewshotOptions(search="still", population=2).config(2).search.method == "still"
