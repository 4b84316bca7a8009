"""Fingerprint: what z does in a model's singular bases, in a few numbers a matrix, so that an expert is never used in other bases.

Not a hash of bits: the numbers do not depend on the signs of singular vectors, on rotations among equal singular values that z treats
alike, or on the null space, where z does nothing. So solvers and machines agree, and another checkpoint does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from t2eval.svf.bases import Basis

Probes = tuple[Any, Any]
"""pᵀ Q and p'ᵀ Q: two (8, r) float64 numpy arrays."""

PROBES = 8  # numbers of a fingerprint, for each matrix
_PROBE_SEED = 25010


def project_probes(q: Tensor) -> Probes:
    """The seeded random probes in a singular basis.

    Args:
        q: (r, r), float32: in a narrower dtype its rounding would be seen.
    """
    rank = len(q)
    probes = np.random.RandomState(_PROBE_SEED + rank).standard_normal((2, PROBES, rank))
    if q.device.type == "cuda":
        on_device = torch.from_numpy(probes).to(q.device)  # (2, 8, r)
        left, right = (on_device @ q.double()).cpu().numpy()  # (2, 8, r)
        return left, right
    dense = q.detach().to("cpu", torch.float64).numpy()
    return probes[0] @ dense, probes[1] @ dense


def fingerprint(basis: Basis, z: Tensor, probes: Probes | None = None) -> list[float]:
    """What z does in this basis: pᵀ Q diag((z - 1) σ / |σ|) Qᵀ p', for eight pairs of probes p and p'.

    Args:
        basis: of one matrix.
        z: (r,) scales.
        probes: `project_probes` of this basis, where they are at hand.
    """
    left, right = probes or basis.probes or project_probes(basis.q)
    sigma = basis.sigma.detach().to("cpu", torch.float64).numpy()
    weight = (z.detach().to("cpu", torch.float64).numpy() - 1) * sigma / max(float(np.linalg.norm(sigma)), 1e-30)
    return [float(value) for value in (left * weight * right).sum(axis=1)]


def fingerprint_difference(recorded: Sequence[float], found: Sequence[float]) -> float:
    """How far two fingerprints are apart, relative to the recorded one: 0 for the same update, about 1 or more for an unrelated basis."""
    difference = float(np.linalg.norm(np.subtract(recorded, found)))
    return difference / max(float(np.linalg.norm(recorded)), 1e-12)
