"""Separable: CMA-ES with a diagonal covariance, for many coefficients; it learns faster than the full one, and not which go together.

Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cmaes import SepCMA

from t2eval.errors import UsageError
from t2eval.strategies.search.base import Array, SearchConfig, checked


class SeparableCovariance:
    """Separable CMA-ES (package `cmaes`) in the box [0, 1]^D.

    Args:
        start: the first mean, shape (D,).
        config: population, first σ, seed. Its elites are CMA-ES's own weights.
    """

    smallest_population = 4  # its learning rates are not defined for fewer

    def __init__(self, start: Array, config: SearchConfig) -> None:
        self.check(len(start), config)
        first = np.clip(np.array(start, dtype=np.float64), 0.0, 1.0)
        bounds = np.tile([0.0, 1.0], (len(first), 1))
        self._config = config
        self._inner = SepCMA(mean=first, sigma=config.sigma, bounds=bounds, seed=config.seed, population_size=config.population)

    @staticmethod
    def check(dimensions: int, config: SearchConfig) -> None:
        if dimensions < 2:
            raise UsageError("search=sepcmaes needs at least two coefficients; with one expert use search=cem.")

    @property
    def mean(self) -> Array:
        return np.clip(np.asarray(self._inner._mean, dtype=np.float64), 0.0, 1.0)

    @property
    def converged(self) -> bool:
        spread = np.sqrt(self._inner._C) * self._inner._sigma  # (D,): the covariance is its diagonal
        return bool((spread <= self._config.sigma_floor).all()) or self._inner.should_stop()

    def ask(self) -> Array:
        return np.stack([self._inner.ask() for _ in range(self._config.population)])

    def tell(self, candidates: Array, ranking: Sequence[int]) -> None:
        checked(candidates, ranking)
        self._inner.tell([(candidates[row], float(place)) for place, row in enumerate(ranking)])
