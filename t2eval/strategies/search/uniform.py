"""Uniform: random search, the floor that a search has to beat. Not in the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2eval.strategies.search.base import Array, SearchConfig, checked


class RandomSearch:
    """The floor that a search has to beat: uniform candidates in [0, 1]^D, of which the best so far is kept.

    The incumbent (at first the start) is row 0 of each population, so a population compares it with `population - 1` new candidates.

    Args:
        start: the first incumbent, shape (D,).
        config: population, seed.
    """

    smallest_population = 2  # the incumbent and one other

    def __init__(self, start: Array, config: SearchConfig) -> None:
        self._best = np.clip(np.array(start, dtype=np.float64), 0.0, 1.0)
        self._population = config.population
        self._random = np.random.default_rng(config.seed)

    @staticmethod
    def check(dimensions: int, config: SearchConfig) -> None:
        pass

    @property
    def mean(self) -> Array:
        """The incumbent: random search has no distribution that moves."""
        return self._best.copy()

    @property
    def converged(self) -> bool:
        return False

    def ask(self) -> Array:
        return np.vstack([self._best, self._random.random((self._population - 1, len(self._best)))])

    def tell(self, candidates: Array, ranking: Sequence[int]) -> None:
        checked(candidates, ranking)
        self._best = candidates[ranking[0]].copy()
