"""Covariance: CMA-ES beside the paper's search; it learns which coefficients go together. Not in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from cmaes import CMA

from t2eval.errors import UsageError
from t2eval.strategies.search.base import Array, SearchConfig, checked


class CovarianceAdaptation:
    """CMA-ES (package `cmaes`) in the box [0, 1]^D. A subclass names another of the package's forms.

    Args:
        start: the first mean, shape (D,).
        config: population, first σ, seed. Its elites are CMA-ES's own weights.
    """

    NAME: ClassVar[str] = "cmaes"
    FORM: ClassVar[Any] = CMA
    smallest_population = 4  # its learning rates are not defined for fewer

    def __init__(self, start: Array, config: SearchConfig) -> None:
        self.check(len(start), config)
        first = np.clip(np.array(start, dtype=np.float64), 0.0, 1.0)
        bounds = np.tile([0.0, 1.0], (len(first), 1))
        self._config = config
        self._inner = self.FORM(mean=first, sigma=config.sigma, bounds=bounds, seed=config.seed, population_size=config.population)

    @classmethod
    def check(cls, dimensions: int, config: SearchConfig) -> None:
        if dimensions < 2:
            raise UsageError(f"search={cls.NAME} needs at least two coefficients; with one expert use search=cem.")

    @property
    def mean(self) -> Array:
        return np.clip(np.asarray(self._inner.mean, dtype=np.float64), 0.0, 1.0)

    @property
    def variances(self) -> Array:
        """The diagonal of the covariance, (D,)."""
        return np.asarray(np.diag(self._inner._C))

    @property
    def converged(self) -> bool:
        spread = np.sqrt(self.variances) * self._inner._sigma  # (D,)
        return bool((spread <= self._config.sigma_floor).all()) or self._inner.should_stop()

    def ask(self) -> Array:
        return np.stack([self._inner.ask() for _ in range(self._config.population)])

    def tell(self, candidates: Array, ranking: Sequence[int]) -> None:
        checked(candidates, ranking)
        self._inner.tell([(candidates[row], float(place)) for place, row in enumerate(ranking)])
