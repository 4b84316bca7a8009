"""Search: what an optimiser of α is, and its settings.

A searcher only ever sees the *order* of its candidates, so that ties are broken where the answers are known (`fewshot.py`), and so that
no strictly increasing transform of the scores changes what it asks. What each is worth on the embedded base is in docs/notes.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from t2eval.strategies.search.registry import checked_name, checked_population

Array = npt.NDArray[np.float64]
Method = Annotated[str, AfterValidator(checked_name)]
"""The name of a search in the registry."""


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

    @model_validator(mode="after")
    def _population(self) -> SearchConfig:
        checked_population(self.method, self.population)
        return self

    @classmethod
    def paper(cls, seed: int = 0) -> SearchConfig:
        """Population 32, 6 elites, at most 100 iterations, σ 0.5, α in [0, 1] from a mean of 1/K."""
        return cls(method="cem", population=32, elites=6, iterations=100, sigma=0.5, sigma_floor=0.01, seed=seed)


class Search(Protocol):
    """One optimiser of a vector in [0, 1]^D, told only which of its candidates were better.

    Its class is called with the first mean, shape (D,), and the settings. `smallest_population` is the fewest candidates that it can
    learn from; `check` refuses settings that it cannot work with, by a `UsageError`.
    """

    smallest_population: int

    @staticmethod
    def check(dimensions: int, config: SearchConfig) -> None: ...

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


def checked(candidates: Array, ranking: Sequence[int]) -> None:
    if sorted(ranking) != list(range(len(candidates))):
        raise ValueError(f"ranking must name each of the {len(candidates)} candidates once, not {list(ranking)}")
