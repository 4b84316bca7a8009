"""Alpha: how a searcher's flat vector becomes the α of every matrix, and these the mix z' = Σ α_k z_k.

Deviations from the paper:
1. `form=offset` mixes 1 + Σ α_k (z_k - 1).
2. `granularity=matrix`, one α for each adapted matrix, is ours; the paper has one α an expert, or one an expert and layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from t2eval.strategies.search import Array
from t2eval.svf.scales import mix_scales

Granularity = Literal["task", "layer", "matrix"]
Form = Literal["paper", "offset"]

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Coefficients:
    """How a flat vector of a searcher becomes the α of every matrix.

    Attributes:
        scales: the experts' z by matrix path, in the order of α.
        granularity: one α an expert (`task`), one an expert and decoder layer, or one an expert and matrix.
        normalize: divide by the sum (per layer or matrix), so that Σ α = 1.
        form: `paper` or `offset`, as `basis.mix_scales`.
    """

    scales: Sequence[Mapping[str, Tensor]]
    granularity: Granularity = "task"
    normalize: bool = False
    form: Form = "paper"

    @property
    def paths(self) -> list[str]:
        return sorted({path for scale in self.scales for path in scale})

    @property
    def groups(self) -> list[str]:
        """What each row of α is for, in order: layer numbers, matrix paths, or nothing where α holds for the whole task."""
        if self.granularity == "task":
            return []
        if self.granularity == "layer":
            return [str(layer) for layer in sorted({_layer(path) for path in self.paths})]
        return self.paths

    @property
    def dimensions(self) -> int:
        return len(self.scales) * max(1, len(self.groups))

    def alphas(self, vector: Array) -> Array:
        """(K,) for a task, (layers, K) for layers, (matrices, K) for matrices."""
        matrix = np.asarray(vector, dtype=np.float64).reshape(-1, len(self.scales))
        if self.normalize:
            total = matrix.sum(axis=1, keepdims=True)
            matrix = np.where(total > 1e-9, matrix / np.maximum(total, 1e-9), 1.0 / len(self.scales))
        return matrix[0] if self.granularity == "task" else matrix

    def z(self, vector: Array) -> dict[str, Tensor]:
        """z' of every matrix, float32."""
        alphas = self.alphas(vector)
        if self.granularity == "task":
            return mix_scales(self.scales, alphas.tolist(), self.form)
        place = {group: row for row, group in enumerate(self.groups)}
        groups = {path: path if self.granularity == "matrix" else str(_layer(path)) for path in self.paths}
        return mix_scales(self.scales, {path: alphas[place[group]].tolist() for path, group in groups.items()}, self.form)


def _layer(path: str) -> int:
    found = _LAYER.search(path)
    return int(found.group(1)) if found else -1
