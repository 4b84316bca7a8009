"""Search: ask/tell optimisers over α: the cross-entropy method of the paper, CMA-ES beside it, and random search as the floor."""

from t2eval.strategies.search.base import Array, Method, Search, SearchConfig
from t2eval.strategies.search.registry import SEARCHES, start_search

__all__ = ["SEARCHES", "Array", "Method", "Search", "SearchConfig", "start_search"]
