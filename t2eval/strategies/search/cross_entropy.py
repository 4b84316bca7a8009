"""Cross-entropy: the paper's search, a Gaussian that is fitted again and again to the best of its samples.

Deviation from the paper: it gives no floor for the spread; when the elites agree it becomes 0, and the search stands still for its
remaining iterations. We keep a floor, and call a search converged when it is reached everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2eval.errors import UsageError
from t2eval.strategies.search.base import Array, SearchConfig, checked


class CrossEntropy:
    """The cross-entropy method: sample a diagonal Gaussian, keep the elites, refit mean and standard deviation to them.

    Args:
        start: the first mean, shape (D,); the paper's is 1/K for each of K experts.
        config: population, elites (a quarter of the population unless given), first σ and its floor, seed.
    """

    smallest_population = 3  # two elites, and one that is none

    def __init__(self, start: Array, config: SearchConfig) -> None:
        self.check(len(start), config)
        self._mean = np.array(start, dtype=np.float64)
        self._sigma = np.full_like(self._mean, config.sigma)
        self._config = config
        self._elites = _elites(config)
        self._random = np.random.default_rng(config.seed)

    @staticmethod
    def check(dimensions: int, config: SearchConfig) -> None:
        if _elites(config) >= config.population:
            raise UsageError(f"elites={_elites(config)} must be fewer than population={config.population}.")

    @property
    def mean(self) -> Array:
        return self._mean.copy()

    @property
    def sigma(self) -> Array:
        return self._sigma.copy()

    @property
    def converged(self) -> bool:
        return bool((self._sigma <= self._config.sigma_floor).all())

    def ask(self) -> Array:
        noise = self._random.standard_normal((self._config.population, len(self._mean)))
        return np.clip(self._mean + self._sigma * noise, 0.0, 1.0)

    def tell(self, candidates: Array, ranking: Sequence[int]) -> None:
        checked(candidates, ranking)
        elites = candidates[list(ranking[: self._elites])]
        self._mean = elites.mean(axis=0)
        self._sigma = np.maximum(elites.std(axis=0), self._config.sigma_floor)


def _elites(config: SearchConfig) -> int:
    return config.elites or max(2, config.population // 4)
