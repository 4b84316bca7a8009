"""Search: ask/tell optimisers over α; the cross-entropy method of the paper, CMA-ES beside it, and random search as the floor.

A searcher only ever sees the *order* of its candidates, so that ties are broken where the answers are known (`fewshot.py`), and so that
no strictly increasing transform of the scores changes what it asks.

Deviations from the paper:
1. The paper gives no floor for the spread of the cross-entropy method; when the elites agree it becomes 0 and the search stands
   still for its remaining iterations. We keep a floor, and call a search converged when it is reached everywhere. Everything else of
   `SearchConfig.paper()` is as in the paper's implementation.
2. CMA-ES and random search are ours. What each is worth on the embedded base is in docs/notes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from cmaes import CMA
from pydantic import BaseModel, ConfigDict, Field

from t2eval.errors import UsageError

Array = npt.NDArray[np.float64]
Method = Literal["cem", "cmaes", "random"]


class SearchConfig(BaseModel):
    """How α is searched. The defaults suit a small model on a CPU; `paper()` gives the budget of the paper's implementation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "cem"
    population: int = Field(default=16, ge=2)
    elites: int | None = Field(default=None, ge=1)
    iterations: int = Field(default=4, ge=1)
    sigma: float = Field(default=0.5, gt=0)
    sigma_floor: float = Field(default=0.05, ge=0)
    seed: int = 0

    @classmethod
    def paper(cls, seed: int = 0) -> SearchConfig:
        """Population 32, 6 elites, at most 100 iterations, σ 0.5, α in [0, 1] from a mean of 1/K."""
        return cls(method="cem", population=32, elites=6, iterations=100, sigma=0.5, sigma_floor=0.01, seed=seed)


class Search(Protocol):
    """One optimiser of a vector in [0, 1]^D, told only which of its candidates were better."""

    @property
    def mean(self) -> Array: ...

    @property
    def converged(self) -> bool: ...

    def ask(self) -> Array:
        """The next population, shape (P, D), float64, each coefficient in [0, 1]."""
        ...

    def tell(self, candidates: Array, ranking: Sequence[int]) -> None:
        """Learn from a population: `ranking` lists the rows of `candidates` from best to worst."""
        ...


def _checked(candidates: Array, ranking: Sequence[int]) -> None:
    if sorted(ranking) != list(range(len(candidates))):
        raise ValueError(f"ranking must name each of the {len(candidates)} candidates once, not {list(ranking)}")


class CrossEntropy:
    """The cross-entropy method: sample a diagonal Gaussian, keep the elites, refit mean and standard deviation to them.

    Args:
        start: the first mean, shape (D,); the paper's is 1/K for each of K experts.
        config: population, elites (a quarter of the population unless given), first σ and its floor, seed.
    """

    def __init__(self, start: Array, config: SearchConfig) -> None:
        self._mean = np.array(start, dtype=np.float64)
        self._sigma = np.full_like(self._mean, config.sigma)
        self._config = config
        self._elites = config.elites or max(2, config.population // 4)
        if self._elites >= config.population:
            raise UsageError(f"elites={self._elites} must be fewer than population={config.population}.")
        self._random = np.random.default_rng(config.seed)

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
        _checked(candidates, ranking)
        elites = candidates[list(ranking[: self._elites])]
        self._mean = elites.mean(axis=0)
        self._sigma = np.maximum(elites.std(axis=0), self._config.sigma_floor)


class CovarianceAdaptation:
    """CMA-ES (package `cmaes`) in the box [0, 1]^D.

    Args:
        start: the first mean, shape (D,).
        config: population, first σ, seed. Its elites are CMA-ES's own weights.
    """

    def __init__(self, start: Array, config: SearchConfig) -> None:
        first = np.clip(np.array(start, dtype=np.float64), 0.0, 1.0)
        bounds = np.tile([0.0, 1.0], (len(first), 1))
        self._config = config
        self._inner = CMA(mean=first, sigma=config.sigma, bounds=bounds, seed=config.seed, population_size=config.population)

    @property
    def mean(self) -> Array:
        return np.clip(np.asarray(self._inner.mean, dtype=np.float64), 0.0, 1.0)

    @property
    def converged(self) -> bool:
        spread = np.sqrt(np.diag(self._inner._C)) * self._inner._sigma
        return bool((spread <= self._config.sigma_floor).all()) or self._inner.should_stop()

    def ask(self) -> Array:
        return np.stack([self._inner.ask() for _ in range(self._config.population)])

    def tell(self, candidates: Array, ranking: Sequence[int]) -> None:
        _checked(candidates, ranking)
        self._inner.tell([(candidates[row], float(place)) for place, row in enumerate(ranking)])


class RandomSearch:
    """The floor that a search has to beat: uniform candidates in [0, 1]^D, of which the best so far is kept.

    The incumbent (at first the start) is row 0 of each population, so a population compares it with `population - 1` new candidates.

    Args:
        start: the first incumbent, shape (D,).
        config: population, seed.
    """

    def __init__(self, start: Array, config: SearchConfig) -> None:
        self._best = np.clip(np.array(start, dtype=np.float64), 0.0, 1.0)
        self._population = config.population
        self._random = np.random.default_rng(config.seed)

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
        _checked(candidates, ranking)
        self._best = candidates[ranking[0]].copy()


_METHODS: dict[Method, Callable[[Array, SearchConfig], Search]] = {
    "cem": CrossEntropy,
    "cmaes": CovarianceAdaptation,
    "random": RandomSearch,
}


def start_search(dimensions: int, experts: int, config: SearchConfig) -> Search:
    """A searcher over `dimensions` coefficients that starts from the even mix 1/`experts`.

    Raises:
        UsageError: CMA-ES cannot work in one dimension.
    """
    if config.method == "cmaes" and dimensions < 2:
        raise UsageError("search=cmaes needs at least two coefficients; with one expert use search=cem.")
    return _METHODS[config.method](np.full(dimensions, 1.0 / experts), config)
