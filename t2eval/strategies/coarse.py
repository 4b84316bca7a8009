"""Coarse to fine: α over many experts whose labels are paths (`math/sums/apples`), searched over groups first, then within the best ones.

Each stage searches one α a group, shared evenly by the group's experts, at one depth of the paths. What goes on is the experts of the
groups that got at least an even share, and of two groups at least; the last stage has one α an expert. The experts that were left behind
have α = 0. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2eval.strategies.alpha import Coefficients
from t2eval.strategies.fewshot import Adaptation
from t2eval.strategies.hierarchy import SEPARATOR
from t2eval.strategies.search import Array


@dataclass(frozen=True)
class Grouped(Coefficients):
    """α over groups of experts. `scales` has one entry a group; what mixes is `inner`.

    Attributes:
        inner: what α over all experts mean.
        members: the places of each group's experts.
    """

    inner: Coefficients | None = None
    members: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, inner: Coefficients, members: Sequence[Sequence[int]]) -> Grouped:
        kept = tuple(map(tuple, members))
        return cls([{}] * len(kept), inner.granularity, inner.normalize, inner.form, inner, kept)

    @property
    def paths(self) -> list[str]:
        return self._inner.paths

    @property
    def _inner(self) -> Coefficients:
        assert self.inner is not None
        return self.inner

    def spread(self, vector: Array) -> Array:
        """The flat vector of all experts' α: (rows * experts,) from (rows * groups,)."""
        given = np.asarray(vector, dtype=np.float64).reshape(-1, len(self.members))  # (rows, groups)
        found = np.zeros((len(given), len(self._inner.scales)))
        for group, places in enumerate(self.members):
            found[:, list(places)] = given[:, [group]] / len(places)
        return found.reshape(-1)

    def z(self, vector: Array) -> Any:
        return self._inner.z(self.spread(vector))


@dataclass(frozen=True)
class Stage:
    """One stage: its groups by path, their α, and the candidates that were evaluated."""

    groups: tuple[str, ...]
    alphas: list[float] | list[list[float]]
    evaluations: int


def by_stages(
    labels: Sequence[str], inner: Coefficients, search: Callable[[Coefficients], Adaptation]
) -> tuple[Adaptation, list[float] | list[list[float]], list[Stage]]:
    """Search from groups to experts.

    Args:
        labels: of the experts, in the order of α.
        inner: what α over all of them mean.
        search: searches over some coefficients.

    Returns:
        The last stage's adaptation, the α of all experts, and the stages.
    """
    active = list(range(len(labels)))
    depth, stages = 1, []
    while True:
        groups: dict[str, list[int]] = {}
        for place in active:
            groups.setdefault(SEPARATOR.join(labels[place].split(SEPARATOR)[:depth]), []).append(place)
        last = all(len(places) == 1 for places in groups.values())
        if len(groups) > 1 or last:
            coefficients = Grouped.of(inner, list(groups.values()))
            found = search(coefficients)
            stages.append(Stage(tuple(groups), found.alphas, found.evaluations))
            shares = np.asarray(found.alphas, dtype=np.float64).reshape(-1, len(groups)).mean(axis=0)  # (groups,)
            if last:
                alphas = [np.round(row, 6).tolist() for row in _spread(coefficients, found.alphas)]
                return found, alphas if np.ndim(found.alphas) == 2 else alphas[0], stages
            best = shares >= shares.mean()
            best[np.argsort(-shares, kind="stable")[:2]] = True  # two at least, that there is something to search
            active = sorted(place for chosen, places in zip(best, groups.values(), strict=True) if chosen for place in places)
        depth += 1


def _spread(coefficients: Grouped, alphas: list[float] | list[list[float]]) -> Array:
    flat = coefficients.spread(np.asarray(alphas, dtype=np.float64).reshape(-1))
    return flat.reshape(-1, len(coefficients._inner.scales))  # (rows, experts)
