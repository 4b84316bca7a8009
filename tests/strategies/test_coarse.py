"""Coarse to fine: what a group's α means, which experts go on, and that a needle among 100 is found with fewer candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from t2eval.strategies.alpha import Coefficients
from t2eval.strategies.coarse import Grouped, by_stages
from t2eval.strategies.fewshot import Adaptation, FewshotConfig, Outcome, adapt
from t2eval.strategies.search import Array, SearchConfig

LABELS = [f"f{a}/t{b}/s{c}" for a in range(4) for b in range(5) for c in range(5)]
NEEDLE = 37


def _inner(normalize: bool = True) -> Coefficients:
    """Expert k is the k-th unit vector, so that z' is α itself."""
    return Coefficients([{"m.0.q": row} for row in torch.eye(len(LABELS))], "task", normalize)


def test_a_groups_alpha_is_shared_by_its_experts() -> None:
    inner = Coefficients([{"m.0.q": row} for row in torch.eye(4)], "task", False)
    grouped = Grouped.of(inner, [[0, 2, 3], [1]])
    assert grouped.dimensions == 2
    assert torch.allclose(grouped.z(np.array([0.6, 0.5]))["m.0.q"], torch.tensor([0.2, 0.5, 0.2, 0.2]))
    layers = [{"m.0.q": torch.ones(1), "m.1.q": torch.ones(1)}] * 2
    fine = Grouped.of(Coefficients(layers, "layer", False), [[0, 1]])
    assert fine.dimensions == 2 and fine.groups == ["0", "1"] and fine.z(np.array([0.3, 0.8]))["m.1.q"].tolist() == pytest.approx([0.8])


def _search(coefficients: Coefficients, method: str, iterations: int) -> Adaptation:
    """The score is graded: how much of α lies on the needle, its template and its family."""

    def evaluate(vectors: Sequence[Array]) -> list[Outcome]:
        found = []
        for vector in vectors:
            alpha = coefficients.z(vector)["m.0.q"].double().numpy()
            shares = [alpha[[label.startswith(start) for label in LABELS]].sum() for start in ("f1/", "f1/t2/", LABELS[NEEDLE])]
            found.append(Outcome((float(sum(shares)),), (0.0,)))
        return found

    search = SearchConfig(method=method, population=16, iterations=iterations)
    return adapt(coefficients, evaluate, FewshotConfig(search=search))


def test_the_needle_is_found_from_coarse_to_fine() -> None:
    assert LABELS[NEEDLE] == "f1/t2/s2"
    found, alphas, stages = by_stages(LABELS, _inner(), lambda coefficients: _search(coefficients, "sepcmaes", 8))
    assert [stage.groups[0].count("/") for stage in stages] == [0, 1, 2]
    assert len(alphas) == 100 and sum(alphas) == pytest.approx(1, abs=1e-4)  # type: ignore[arg-type]
    spent = sum(stage.evaluations for stage in stages)
    flat = _search(_inner(), "sepcmaes", 24)
    assert spent <= flat.evaluations + 3
    assert found.score > flat.score + 0.5, "the same budget over all experts at once finds less"
    assert int(np.argmax(alphas)) == NEEDLE


def test_one_group_alone_is_no_stage_and_two_go_on_at_least() -> None:
    labels = ["a/x", "a/y", "a/z/one", "a/z/two"]
    told: list[list[tuple[int, ...]]] = []

    def search(coefficients: Coefficients) -> Adaptation:
        assert isinstance(coefficients, Grouped)
        told.append(list(coefficients.members))
        alphas = [1.0] + [0.0] * (len(coefficients.scales) - 1)
        return Adaptation(alphas, {}, 1.0, 5, 1, False, "mean", [])

    _, alphas, stages = by_stages(labels, Coefficients([{}] * 4), search)
    assert told == [[(0,), (1,), (2, 3)], [(0,), (1,)]]
    assert alphas == [1.0, 0.0, 0.0, 0.0] and [stage.evaluations for stage in stages] == [5, 5]
