"""Merge: the dense W' in the place of a weight, for the times when one z answers many tokens, and the base weight back, bit for bit.

W' = W + ΔW with ΔW = G W on the output side and W G on the input side, G = Q diag(z - 1) Qᵀ. Where few z differ from one, ΔW is taken
by the narrow way, Q_k ((z_k - 1) * (Q_kᵀ W)): the one with fewer operations, counted from shapes. On an accelerator the products are in
the weight's dtype with sums in float32, and W is added in the same float32 sum before the one rounding; elsewhere they are in float32.

Deviation from the paper: the reference composes U diag(σ z) Vᵀ anew, by as many operations, and rounds three times.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from t2eval.errors import T2Error
from t2eval.svf.bases import Basis
from t2eval.svf.matrices import Matrix

KeepBase = Literal["device", "host"]
KEEP_BASE = ("device", "host")


@dataclass(frozen=True)
class Change:
    """z of one matrix, as a change of the base's ones.

    Attributes:
        delta: z - 1, (r,) float32 on the matrix's device.
        places: (k,) where it is not nought; None if that is everywhere.
        bound: the largest |z|.
    """

    delta: Tensor
    places: Tensor | None
    bound: float


def change(z: Tensor, device: torch.device) -> Change | None:
    """z as a `Change`; None where z is ones.

    Args:
        z: (r,) finite scales. On the CPU, so that nothing waits for a device.
        device: the matrix's.
    """
    with torch.inference_mode(False), torch.no_grad():
        delta = z.detach().to("cpu", torch.float32, copy=True) - 1
        places = delta.nonzero()[:, 0]
        if not len(places):
            return None
        bound = float((delta + 1).abs().max())
        # Not waited for: products of the matrices before this one go on meanwhile.
        here = None if len(places) == len(delta) else places.to(device, non_blocking=True)
        return Change(delta.to(device, non_blocking=True), here, bound)


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
    composed = dense.clone()
    if (wanted := change(z, dense.device)) is not None:
        compose_into(composed, dense, basis, wanted)
    return composed


def compose_into(out: Tensor, weight: Tensor, basis: Basis, wanted: Change, work: torch.dtype = torch.float32) -> None:
    """Write W' into a tensor that shares nothing with W.

    Args:
        out: (out, in), any floating dtype, any strides.
        weight: W, (out, in).
        basis: its basis.
        wanted: z - 1.
        work: the dtype of the products.
    """
    q, delta = basis.q.to(weight.device, work), wanted.delta
    if wanted.places is not None:
        q, delta = q[:, wanted.places], delta[wanted.places]  # (r, k), (k,)
    rank, kept = q.shape
    wide = max(basis.shape)
    w = weight.to(work)  # (out, in)
    target = out if out.dtype == work else torch.empty_like(w)
    scaled = torch.mul(q, delta, out=torch.empty_like(q))  # (r, k); in float32, rounded once
    if 2 * kept * wide < rank * kept + rank * wide:  # the narrow way
        if basis.side == "output":
            torch.addmm(w, scaled, q.T @ w, out=target)  # (r, k) (k, in)
        else:
            torch.addmm(w, w @ q, scaled.T, out=target)  # (out, k) (k, r)
    else:
        g = scaled @ q.T  # (r, r)
        torch.addmm(w, g, w, out=target) if basis.side == "output" else torch.addmm(w, w, g, out=target)
    if target is not out:
        out.copy_(target)


Slot = tuple[int, str]


@dataclass
class _Held:
    """One parameter of one module, and what takes turns in it.

    Attributes:
        base, merged: the two parameters; `merged` is None where W' is written over the base in the same memory.
        matrices: those of its matrices that are merged, with z.
    """

    module: nn.Module
    name: str
    base: nn.Parameter
    merged: nn.Parameter | None
    matrices: list[tuple[Matrix, Tensor]]


@dataclass
class _HostCopy:
    """A base weight in the host's memory, and the state of the parameter that it was taken in."""

    values: Tensor
    address: int
    version: int


@dataclass
class Merger:
    """The merged weights of one model.

    Attributes:
        bases: singular bases by matrix path.
        keep_base: where base weights wait: on the `device` beside W' (the model's size again), or on the `host`, in pinned memory, while W'
            is written in their place.
        shared: parameters that stand in several modules: W' never goes into their memory.
    """

    bases: Mapping[str, Basis]
    keep_base: KeepBase = "device"
    shared: frozenset[int] = frozenset()
    _held: dict[Slot, _Held] = field(default_factory=dict)
    _copies: dict[Slot, _HostCopy] = field(default_factory=dict)
    _base_shown: bool = False

    def merge(self, scales: Iterable[tuple[Matrix, Tensor]]) -> None:
        """Compute W' of some matrices and put them in place; leaves the base weights if that fails.

        Args:
            scales: matrices, each with z, (r,) finite float32 on the CPU.

        Raises:
            T2Error: W' is not finite in the weight's dtype; the device has no room.
        """
        by_slot: dict[Slot, list[tuple[Matrix, Tensor]]] = {}
        for matrix, z in scales:
            by_slot.setdefault((id(matrix.module), matrix.name), []).append((matrix, z))
        try:
            with torch.inference_mode(False), torch.no_grad(), _exact_sums():
                for slot, matrices in by_slot.items():
                    self._merge_one(slot, matrices)
        except torch.OutOfMemoryError as error:
            self.drop()
            raise T2Error(
                "The device has no room for merged weights beside the base's: attach with keep_base='host', in the strategies "
                "--model_args keep_base=host, in training --set keep_base=host."
            ) from error
        except BaseException:
            self.drop()
            raise

    def _merge_one(self, slot: Slot, matrices: list[tuple[Matrix, Tensor]]) -> None:
        module, name = matrices[0][0].module, matrices[0][0].name
        base = module._parameters[name]
        assert base is not None
        fresh = self._composed(base, matrices)
        on_host = self.keep_base == "host" and id(base) not in self.shared
        merged = None if on_host else nn.Parameter(fresh, requires_grad=False)
        if on_host:
            self._keep(slot, base)
        self._held[slot] = _Held(module, name, base, merged, matrices)
        if self._base_shown:
            return
        if merged is None:
            base.copy_(fresh)
        else:
            module._parameters[name] = merged

    def _composed(self, base: nn.Parameter, matrices: list[tuple[Matrix, Tensor]]) -> Tensor:
        """W' in memory of its own, of the parameter's shape and dtype."""
        fresh = torch.empty_like(base)
        if base.ndim == 3 and len(matrices) < len(base):
            fresh.copy_(base)
        for matrix, z in matrices:
            basis, wanted = self.bases[matrix.path], change(z, base.device)
            if wanted is None:
                matrix.of(fresh).copy_(matrix.of(base))
                continue
            work = base.dtype if base.device.type != "cpu" and basis.q.dtype == base.dtype else torch.float32
            compose_into(matrix.of(fresh), matrix.of(base.detach()), basis, wanted, work)
            _refuse_overflow(matrix, wanted, matrix.of(fresh))
        return fresh

    def _keep(self, slot: Slot, base: nn.Parameter) -> None:
        """Copy a base weight to the host, unless it was copied before and nothing has written to it since."""
        known = self._copies.get(slot)
        if known is not None and (known.address, known.version) == (base.data_ptr(), base._version) and known.values.dtype == base.dtype:
            return
        values = torch.empty(base.shape, dtype=base.dtype, pin_memory=base.device.type == "cuda")
        values.copy_(base)
        self._copies[slot] = _HostCopy(values, base.data_ptr(), base._version)

    def show_base(self, shown: bool) -> None:
        """Put the base weights in place for a while, or the merged ones back."""
        if shown == self._base_shown:
            return
        self._base_shown = shown
        for slot, held in self._held.items():
            if held.merged is not None:
                held.module._parameters[held.name] = held.base if shown else held.merged
            elif shown:
                self._restore(slot, held)
            else:
                self._write_over(held)

    def keep(self) -> None:
        """Let the merged weights stand for good: nothing can put the base's back."""
        self._held.clear()
        self._copies.clear()

    def drop(self) -> None:
        """Put the very same base weights back and forget the merged ones."""
        for slot, held in self._held.items():
            if held.merged is not None:
                held.module._parameters[held.name] = held.base
            elif not self._base_shown:
                self._restore(slot, held)
        self._held.clear()

    def _restore(self, slot: Slot, held: _Held) -> None:
        copy = self._copies[slot]
        with torch.inference_mode(False), torch.no_grad():
            held.base.copy_(copy.values)
        copy.version = held.base._version

    def _write_over(self, held: _Held) -> None:
        with torch.inference_mode(False), torch.no_grad(), _exact_sums():
            held.base.copy_(self._composed(held.base, held.matrices))


def shared_parameters(model: nn.Module) -> frozenset[int]:
    """The parameters that stand in more than one place of a model, by id."""
    count = Counter(id(held) for module in model.modules() for held in module._parameters.values() if held is not None)
    return frozenset(identity for identity, places in count.items() if places > 1)


@contextlib.contextmanager
def _exact_sums() -> Iterator[Any]:
    """Sums of half-precision products in float32 throughout, where cuBLAS may otherwise split them and add the parts in half precision."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = before


def _refuse_overflow(matrix: Matrix, wanted: Change, composed: Tensor) -> None:
    """Refuse a W' that the weight's dtype cannot hold. Its values are read only where they may be too large."""
    if composed.dtype != torch.float16 and wanted.bound < 1e20:
        return
    if not bool(torch.isfinite(composed).all()):
        raise T2Error(
            f"z of {matrix.path} is up to {wanted.bound:.3g} in size: merged, the weight has values that {composed.dtype} cannot hold. "
            "Use a smaller z or alpha, or load the model in bfloat16 or float32."
        )
