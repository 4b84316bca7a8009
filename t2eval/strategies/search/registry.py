"""Registry: the searches by name. A new one is a module with a class like those here (`base.Search`), and an entry below."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from t2eval.errors import UsageError, unknown

if TYPE_CHECKING:
    from t2eval.strategies.search.base import Search, SearchConfig

SEARCHES: dict[str, str] = {
    "cem": "t2eval.strategies.search.cross_entropy:CrossEntropy",
    "cmaes": "t2eval.strategies.search.covariance:CovarianceAdaptation",
    "sepcmaes": "t2eval.strategies.search.separable:SeparableCovariance",
    "random": "t2eval.strategies.search.uniform:RandomSearch",
}
"""Name → `module:Class`."""


def search_class(name: str) -> Any:
    """The class of a search.

    Raises:
        UsageError: no such search.
    """
    module, _, attribute = SEARCHES[checked_name(name)].partition(":")
    return getattr(importlib.import_module(module), attribute)


def checked_name(name: str) -> str:
    """The name, if a search has it.

    Raises:
        UsageError: no such search.
    """
    if name not in SEARCHES:
        raise unknown("search", name, SEARCHES)
    return name


def checked_population(name: str, population: int) -> None:
    """Refuse a population that a search cannot learn from.

    Raises:
        UsageError: fewer candidates than it needs.
    """
    smallest = search_class(name).smallest_population
    if population < smallest:
        raise UsageError(f"population={population} is too small for search={name}: it needs at least {smallest} candidates.")


def start_search(dimensions: int, experts: int, config: SearchConfig) -> Search:
    """A searcher over `dimensions` coefficients that starts from the even mix 1/`experts`.

    Raises:
        UsageError: settings that the search cannot work with.
    """
    import numpy as np

    checked_population(config.method, config.population)
    search: Search = search_class(config.method)(np.full(dimensions, 1.0 / experts), config)
    return search
