"""Singular basis: the orthonormal factor Q of one weight matrix on its narrow side, and where it is kept.

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
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from t2eval.errors import T2Error
from t2eval.store.files import UNFINISHED
from t2eval.store.tensors import read_header, read_tensors
from t2eval.svf.fingerprint import Probes, project_probes

Side = Literal["output", "input"]

_ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's
SOLVER = "gram-eigh-float64-1"  # part of every cache key: change it whenever `decompose` may give other numbers
_READING = 0.5e9  # bytes a second at which a cached basis is had: a guess on the fast side of digesting weights and reading from a disk


@dataclass(frozen=True)
class Basis:
    """The narrow side's singular vectors of one weight matrix.

    Attributes:
        q: (r, r), the columns are singular vectors, largest singular value first. float32; beside a model in half precision on a GPU, in
            the model's dtype.
        sigma: (r,) float32, the singular values.
        side: `output` where out <= in (z scales behind the layer), else `input` (z scales before it).
        shape: (out, in) of the weight.
        probes: of the float32 factor, where `q` is narrower.
    """

    q: Tensor
    sigma: Tensor
    side: Side
    shape: tuple[int, int]
    probes: Probes | None = field(default=None, repr=False, compare=False)

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
    matrix = weight.detach().to("cpu" if device.type == "mps" else device).to(torch.float64)  # (out, in)
    if not bool(torch.isfinite(matrix).all()):
        raise T2Error(f"A weight matrix of shape {out} x {into} holds values that are not finite: the checkpoint is damaged.")
    side: Side = "output" if out <= into else "input"
    gram = matrix @ matrix.T if side == "output" else matrix.T @ matrix  # (r, r)
    eigenvalues, vectors = torch.linalg.eigh(gram)  # (r,) ascending, (r, r) by columns
    sigma = eigenvalues.flip(0).clamp_min(0).sqrt()  # (r,)
    q = vectors.flip(1).to(torch.float32).contiguous()  # (r, r)
    return Basis(q.to(device), sigma.to(torch.float32).to(device), side, (out, into))


class BasisStore:
    """The singular bases of one model's matrices: computed, or read from the cache on the disk where reading is faster.

    On a CPU, reading always is. On a GPU two matrices of a shape are computed and timed; where that is slower than a cached basis can be
    had (graphics cards with little float64), the others come from the cache.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seconds: dict[tuple[int, ...], list[float]] = {}

    def basis(self, weight: Tensor, dtype: torch.dtype) -> Basis:
        """The basis of one matrix, on its device.

        Args:
            weight: (out, in).
            dtype: of the activations beside it. On an accelerator only Q in this dtype is kept, for the float32 factor would take twice
                the room of half precision.

        Raises:
            T2Error: as `decompose`.
        """
        if weight.device.type == "cpu":
            return cached_basis(weight, self._folder)
        basis = self._timed(weight) if self._computes(weight) else cached_basis(weight, self._folder)
        return basis if dtype == torch.float32 else replace(basis, q=basis.q.to(dtype), probes=project_probes(basis.q))

    def _computes(self, weight: Tensor) -> bool:
        seconds = self._seconds.get(tuple(weight.shape), [])
        if len(seconds) < 2:
            return True
        rank = min(weight.shape)
        return min(seconds) <= (4 * weight.numel() + 4 * rank * rank) / _READING  # the weights' float32 digest, and Q

    def _timed(self, weight: Tensor) -> Basis:
        started = time.perf_counter()
        basis = decompose(weight)
        basis.sigma[:1].cpu()  # waits for the device
        self._seconds.setdefault(tuple(weight.shape), []).append(time.perf_counter() - started)
        return basis


def cached_basis(weight: Tensor, folder: Path) -> Basis:
    """`decompose(weight)`, read from the cache in `folder` if it was computed before, written to it if not.

    A folder that cannot be written, or a full disk, gives a warning and no cache; a damaged file is computed again.
    """
    key = _cache_key(weight)
    path = folder / f"{key}.safetensors"
    if path.exists():
        try:
            return _read(path, weight)
        except (T2Error, KeyError, ValueError) as error:
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
    """The digest of the values, whatever dtype holds them: bfloat16 weights and their float32 copy have the same basis."""
    digest = hashlib.sha256(f"{SOLVER}|{tuple(weight.shape)}|".encode())
    digest.update(_raw(weight if weight.dtype == torch.float64 else weight.to(torch.float32)))
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
    what, remedy, room = "cached singular basis", "It is computed again.", 4 * rank * (rank + 1) + 4096
    recorded = read_header(path, what=what, remedy=remedy).metadata.get("sha256")
    held = read_tensors(path, what=what, remedy=remedy, limit=room)
    q, sigma = held["q"], held["sigma"]
    if q.shape != (rank, rank) or sigma.shape != (rank,) or recorded != _payload_digest(q, sigma):
        raise ValueError("its contents do not match their checksum")
    return Basis(q.to(weight.device), sigma.to(weight.device), "output" if out <= into else "input", (out, into))


def _write(path: Path, basis: Basis) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    q, sigma = basis.q.cpu().contiguous(), basis.sigma.cpu().contiguous()
    content = save({"q": q, "sigma": sigma}, metadata={"sha256": _payload_digest(q, sigma), "solver": SOLVER})
    for left in path.parent.glob(f".{path.name}.*{UNFINISHED}"):  # of a killed process; one that is at work touched its own just now
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
