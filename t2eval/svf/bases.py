"""Singular basis: the orthonormal factor Q of one weight matrix on its narrow side, its disk cache and its fingerprint.

The paper writes W' = U Σ diag(z) Vᵀ (section 3.1). With Q the factor on the narrow side, the same matrix is W' = Q diag(z) Qᵀ W for
m <= n, and W' = W Q diag(z) Qᵀ for n < m. So neither Σ nor the wide factor is needed to apply z, and z scales activations.

Deviations from the paper:
    1. Only the narrow factor is computed, from the Gram matrix in float64, and kept in float32: faster than a float64 SVD, and the
       update is far more accurate than with a float32 SVD.
    2. The factor that keeps Σσ in the reference implementation (`sigmoid-renorm`) is an option; the paper's text has plain z.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from t2eval.errors import T2Error, UsageError, unknown

Side = Literal["output", "input"]
MixForm = Literal["paper", "offset"]

SOLVER = "gram-eigh-float64-1"  # part of every cache key: change it whenever `decompose` may give other numbers
PARAMETERISATIONS = ("direct", "sigmoid-renorm")
MIX_FORMS = ("paper", "offset")
PROBES = 8  # numbers of a sketch
_PROBE_SEED = 25010


@dataclass(frozen=True)
class Basis:
    """The narrow side's singular vectors of one weight matrix.

    Attributes:
        q: (r, r) float32, the columns are singular vectors, largest singular value first.
        sigma: (r,) float32, the singular values.
        side: `output` where out <= in (z scales behind the layer), else `input` (z scales before it).
        shape: (out, in) of the weight.
    """

    q: Tensor
    sigma: Tensor
    side: Side
    shape: tuple[int, int]

    @property
    def rank(self) -> int:
        """r = min(out, in), the length of z."""
        return min(self.shape)


def decompose(weight: Tensor) -> Basis:
    """The singular basis of a weight matrix, from the eigenvectors of its float64 Gram matrix.

    Args:
        weight: (out, in), any floating dtype.

    Returns:
        The basis, on the weight's device.

    Raises:
        T2Error: the weight is not a matrix, or has values that are not finite.
    """
    if weight.ndim != 2:
        raise T2Error(f"A singular basis needs a matrix; this weight has shape {tuple(weight.shape)}.")
    out, into = weight.shape
    device = weight.device
    matrix = weight.detach().to("cpu" if device.type == "mps" else device).to(torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        raise T2Error(f"A weight matrix of shape {out} x {into} holds values that are not finite: the checkpoint is damaged.")
    side: Side = "output" if out <= into else "input"
    gram = matrix @ matrix.T if side == "output" else matrix.T @ matrix
    eigenvalues, vectors = torch.linalg.eigh(gram)
    sigma = eigenvalues.flip(0).clamp_min(0).sqrt()
    q = vectors.flip(1).to(torch.float32).contiguous()
    return Basis(q.to(device), sigma.to(torch.float32).to(device), side, (out, into))


def compose(weight: Tensor, basis: Basis, z: Tensor) -> Tensor:
    """The dense W' = Q diag(z) Qᵀ W (or W Q diag(z) Qᵀ), in float32; exactly W where z is all ones.

    Args:
        weight: (out, in), any floating dtype.
        basis: the basis of this weight.
        z: (r,) scales.

    Returns:
        (out, in) float32, on the weight's device.
    """
    dense = weight.detach().to(torch.float32)
    q = basis.q.to(dense.device)
    delta = (z.detach().to(dense.device, torch.float32) - 1) * q @ q.T
    return torch.addmm(dense, delta, dense) if basis.side == "output" else torch.addmm(dense, dense, delta)


def to_scale(parameter: Tensor, sigma: Tensor, parameterisation: str, path: str = "") -> Tensor:
    """z of a raw parameter p: 1 + p (`direct`), or sigmoid(p) · Σσ / Σ(σ · sigmoid(p)) (`sigmoid-renorm`). Differentiable in p.

    Args:
        parameter: (r,) float32.
        sigma: (r,) singular values.
        parameterisation: `direct` or `sigmoid-renorm`.
        path: the matrix, for the error.

    Raises:
        T2Error: Σ(σ · mask) is not positive, so that no scale keeps Σσ.
    """
    if parameterisation == "direct":
        return 1 + parameter
    return renormalise(torch.sigmoid(parameter), sigma, path)


def renormalise(mask: Tensor, sigma: Tensor, path: str = "") -> Tensor:
    """mask · Σσ / Σ(σ · mask): the reference implementation's scale, which keeps the sum of the singular values.

    Raises:
        T2Error: Σ(σ · mask) is not positive.
    """
    sigma = sigma.to(mask.device)
    weighted = (sigma * mask).sum()
    if not bool(weighted.detach() > 0):
        raise T2Error(
            f"Matrix {path or '(unnamed)'}: the weighted sum of its singular values is {weighted.item():.3g}, so "
            "sigmoid-renorm cannot keep it. "
            "Use the `direct` parameterisation, or leave this matrix out."
        )
    return mask * (sigma.sum() / weighted)


def mix_scales(
    scales: Sequence[Mapping[str, Tensor]], alphas: Sequence[float] | Mapping[str, Sequence[float]], form: str = "paper"
) -> dict[str, Tensor]:
    """z' = Σ α_k z_k (section 3.2 of the paper), or 1 + Σ α_k (z_k - 1) with `offset`, a labelled deviation.

    Args:
        scales: K experts' z by matrix path. A matrix that an expert lacks counts as ones there.
        alphas: K coefficients for all matrices, or K for each matrix path.
        form: `paper` or `offset`.

    Raises:
        UsageError: an unknown form, or coefficients that do not fit the experts.
    """
    if form not in MIX_FORMS:
        raise unknown("mix form", form, MIX_FORMS)
    if not scales:
        raise UsageError("There is no expert to mix: give at least one.")
    paths = sorted({path for scale in scales for path in scale})
    if isinstance(alphas, Mapping):
        if missing := [path for path in paths if path not in alphas]:
            raise UsageError(f"No alphas for matrix {missing[0]} ({len(missing)} matrices lack them). Give {len(scales)} for each matrix.")
        if extra := [path for path in alphas if path not in paths]:
            raise unknown("matrix in alphas", extra[0], paths)
    mixed = {}
    for path in paths:
        alpha = list(alphas[path] if isinstance(alphas, Mapping) else alphas)
        if len(alpha) != len(scales):
            raise UsageError(f"{len(alpha)} alphas for {len(scales)} experts: give one for each expert.")
        template = next(scale[path] for scale in scales if path in scale)
        if differing := [scale[path] for scale in scales if path in scale and scale[path].shape != template.shape]:
            raise T2Error(f"Matrix {path}: experts hold {len(template)} and {len(differing[0])} values: they are of different models.")
        parts = [(a, scale.get(path, torch.ones_like(template)).to(template.device)) for a, scale in zip(alpha, scales, strict=True)]
        if form == "paper":
            mixed[path] = sum((a * z for a, z in parts), start=torch.zeros_like(template))
        else:
            mixed[path] = sum((a * (z - 1) for a, z in parts), start=torch.ones_like(template))
    return mixed


Probes = tuple[Any, Any]


def project_probes(basis: Basis) -> Probes:
    """The seeded random probes in this basis, pᵀ Q and p'ᵀ Q: two (8, r) float64 numpy arrays."""
    probes = np.random.RandomState(_PROBE_SEED + basis.rank).standard_normal((2, PROBES, basis.rank))
    q = basis.q.detach().to("cpu", torch.float64).numpy()
    return probes[0] @ q, probes[1] @ q


def sketch(basis: Basis, z: Tensor, probes: Probes | None = None) -> list[float]:
    """What z does in this basis, in eight numbers: pᵀ Q diag((z - 1) σ / |σ|) Qᵀ p', with seeded random probes p and p'.

    Free of the signs of singular vectors, of rotations among equal singular values that z treats alike, and of the null space, where
    z does nothing.
    """
    left, right = probes or project_probes(basis)
    sigma = basis.sigma.detach().to("cpu", torch.float64).numpy()
    weight = (z.detach().to("cpu", torch.float64).numpy() - 1) * sigma / max(float(np.linalg.norm(sigma)), 1e-30)
    return [float(value) for value in (left * weight * right).sum(axis=1)]


def sketch_difference(recorded: Sequence[float], found: Sequence[float]) -> float:
    """How far two sketches are apart, relative to the recorded one: 0 for the same update, about 1 or more for an unrelated basis."""
    difference = float(np.linalg.norm(np.subtract(recorded, found)))
    return difference / max(float(np.linalg.norm(recorded)), 1e-12)


def cached_basis(weight: Tensor, folder: Path) -> Basis:
    """`decompose(weight)`, read from the cache in `folder` if it was computed before, written to it if not.

    A folder that cannot be written, or a full disk, gives a warning and no cache; a damaged file is computed again.
    """
    key = _cache_key(weight)
    path = folder / f"{key}.safetensors"
    if path.exists():
        try:
            return _read(path, weight)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            warnings.warn(f"The cached singular basis {path} is damaged ({error}); it is computed again.", stacklevel=2)
    basis = decompose(weight)
    try:
        _write(path, basis)
    except OSError as error:
        warnings.warn(
            f"Cannot cache singular bases in {folder} ({error}); going on without. $T2EVAL_CACHE sets another folder.", stacklevel=2
        )
    return basis


def _cache_key(weight: Tensor) -> str:
    digest = hashlib.sha256(f"{SOLVER}|{weight.dtype}|{tuple(weight.shape)}|".encode())
    digest.update(_raw(weight))
    return digest.hexdigest()


def _raw(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _payload_digest(q: Tensor, sigma: Tensor) -> str:
    digest = hashlib.sha256(_raw(q))
    digest.update(_raw(sigma))
    return digest.hexdigest()


def _read(path: Path, weight: Tensor) -> Basis:
    out, into = weight.shape
    rank = min(out, into)
    with safe_open(str(path), framework="pt") as file:
        recorded = (file.metadata() or {}).get("sha256")
        q, sigma = file.get_tensor("q"), file.get_tensor("sigma")
    if q.shape != (rank, rank) or sigma.shape != (rank,) or recorded != _payload_digest(q, sigma):
        raise ValueError("its contents do not match their checksum")
    return Basis(q.to(weight.device), sigma.to(weight.device), "output" if out <= into else "input", (out, into))


def _write(path: Path, basis: Basis) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    q, sigma = basis.q.cpu().contiguous(), basis.sigma.cpu().contiguous()
    content = save({"q": q, "sigma": sigma}, metadata={"sha256": _payload_digest(q, sigma), "solver": SOLVER})
    descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
