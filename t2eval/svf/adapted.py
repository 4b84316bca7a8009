"""Adapted model: a frozen causal model whose matrices are scaled by z in their singular bases (SVF, section 3.1 of the paper).

Scaling happens while the model runs (`t2eval.svf.hooks`), so module classes and the names in `state_dict` stay as they are, and any
linear map can be adapted. `merge` writes the dense W' for the times when one z answers many tokens; `per_sequence` serves many z in one
batch.

Deviations from the paper and its implementation:
    1. No dense W' per training step: the factored form is faster than composing W' and projecting a dense gradient
       (benchmarks/train_step.py).
    2. Modules are chosen by explicit paths; the implementation takes every parameter with "mlp" in its name.
    3. z is plain by default (`direct`, z = 1 + p), as the paper's text has it; `sigmoid-renorm` is the implementation's form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from t2eval.errors import T2Error, unknown
from t2eval.svf.fingerprint import fingerprint, project_probes
from t2eval.svf.hooks import Scales
from t2eval.svf.matrices import decoder_layers, plain
from t2eval.svf.merge import KEEP_BASE, KeepBase
from t2eval.svf.scales import mix_scales, to_scale
from t2eval.svf.state import State, take_off, watch

_READABLE = 0.25
"""The smallest |z| that a gradient is divided by: rounding in what is divided grows by its inverse."""


class _ExpertLike(Protocol):
    @property
    def z(self) -> Scales: ...

    def check(self, adapted: Adapted, allow_basis_mismatch: bool = False) -> None: ...

    def remapped(self, model: Any) -> _ExpertLike: ...


class Adapted:
    """A frozen model whose matrices can be scaled. Made by `attach`; `attached` gives that of a model again (`t2eval.svf.attachment`).

    z in this class is always the true scale, float32, keyed by matrix path. Fresh from `attach` the trainable parameters are in
    force; `set_z`, `set_expert` and `set_alphas` put a fixed z in their place, and `use_parameters` goes back.

    Attributes:
        model: the model, the same object as was given. It carries the scaling itself and does not keep this object alive.
        paths: the adapted matrices' paths.
        bases: path → `Basis`.
        parameterisation: `direct` or `sigmoid-renorm`.
        parameters: the `ScaleParameters` on the model.
    """

    def __init__(self, model: Any, state: State) -> None:
        self.model, self._state = model, state
        self.bases, self.parameterisation, self.parameters = state.bases, state.parameterisation, state.parameters
        self.paths = tuple(state.bases)
        self._scalers, self._mode = state.scalers, state.mode

    # ------------------------------------------------------------------ which z
    def trainable(self) -> dict[str, nn.Parameter]:
        """The raw parameters p by matrix path, (r,) float32: the only parameters of the model that require a gradient."""
        return self.parameters.trainable()

    def z(self) -> dict[str, Tensor]:
        """The scale of the trainable parameters, (r,) float32 by matrix path, differentiable in them."""
        return {path: to_scale(p, self.bases[path].sigma, self.parameterisation, path) for path, p in self.trainable().items()}

    def active_z(self) -> dict[str, Tensor]:
        """The scale in force now (fixed, or of the parameters), detached, for every adapted matrix."""
        if self._mode.source == "fixed":
            fixed = {path: scaler.fixed for path, scaler in self._scalers.items()}
            return {path: torch.ones(self.bases[path].rank) if delta is None else delta + 1 for path, delta in fixed.items()}
        return {path: z.detach().clone() for path, z in self.z().items()}

    def use_parameters(self) -> None:
        """Scale with the trainable parameters again."""
        self._refuse_merged("use the parameters")
        self._mode.source = "parameters"

    def set_z(self, z: Scales | None) -> None:
        """Scale with a fixed z, detached from training.

        Args:
            z: (r,) by matrix path; a missing path, or None, is ones: the base weights.

        Raises:
            T2Error: an unknown path, a wrong length, values that are not finite, or weights that are merged now.
        """
        self._refuse_merged("set z")
        checked = self._checked(z or {})
        for path, scaler in self._scalers.items():
            scaler.fixed = self._delta(path, checked[path]) if path in checked else None
        self._mode.source = "fixed"

    def set_expert(self, expert: _ExpertLike, allow_basis_mismatch: bool = False) -> None:
        """Check an expert against this model (`Expert.check`), then scale with its z."""
        remapped = expert.remapped(self.model)
        remapped.check(self, allow_basis_mismatch)
        self.set_z(remapped.z)

    def set_alphas(
        self,
        experts: Sequence[_ExpertLike],
        alphas: Sequence[float] | Mapping[str, Sequence[float]],
        form: Literal["paper", "offset"] = "paper",
        allow_basis_mismatch: bool = False,
    ) -> None:
        """Check the experts, then scale with their mix: Σ α_k z_k, or 1 + Σ α_k (z_k - 1) with `offset`.

        Args:
            experts: K experts.
            alphas: K coefficients, or K for each matrix path.
            form: `paper` or `offset`.
            allow_basis_mismatch: as in `Expert.check`.
        """
        remapped = [expert.remapped(self.model) for expert in experts]
        for expert in remapped:
            expert.check(self, allow_basis_mismatch)
        self.set_z(mix_scales([expert.z for expert in remapped], alphas, form))

    # ------------------------------------------------------------------ for a while
    @contextmanager
    def disabled(self) -> Iterator[Any]:
        """The base model, inside the context: no scaling, and the base weights where z is merged."""
        self._mode.off += 1
        try:
            self._state.merger.show_base(True)
            yield self.model
        finally:
            self._mode.off -= 1
            self._state.merger.show_base(self._mode.off > 0)

    @contextmanager
    def per_sequence(self, z: Scales) -> Iterator[Any]:
        """One z for each sequence of the batch: sequence i of the output is the model's with z[i]. Works under `generate` too.

        Args:
            z: (sequences, r) by matrix path; a missing path is ones for all.

        Raises:
            T2Error: as `set_z`; tensors of different numbers of sequences; at the forward pass, a batch of another size.
        """
        self._refuse_merged("use one z a sequence")
        counts = {len(value) for value in z.values()}
        if len(counts) != 1:
            raise T2Error(f"One z a sequence needs tensors of one number of sequences; these have {sorted(counts)}.")
        checked = self._checked(z, sequences=counts.pop())
        source = self._mode.source
        _, blocks = decoder_layers(self.model)
        watching = [block.register_forward_pre_hook(watch(self._mode), with_kwargs=True) for block in blocks]
        try:
            for path, scaler in self._scalers.items():
                scaler.per_sequence = self._delta(path, checked[path]) if path in checked else None
            self._mode.source = "sequences"
            yield self.model
        finally:
            self._mode.source, self._mode.shape = source, None
            for handle in watching:
                handle.remove()
            for scaler in self._scalers.values():
                scaler.per_sequence = None

    # ------------------------------------------------------------------ merged
    def merge(self, z: Scales | None = None) -> None:
        """Put W' in the place of each weight whose z is not ones, and scale nothing any more.

        The base weights are kept aside (`keep_base`). A weight that is shared with another module is replaced in the adapted module only.

        Args:
            z: as for `set_z`; None is the z in force.

        Raises:
            T2Error: merged already; a quantised weight, which cannot be replaced; a W' that is not finite in the weight's dtype.
        """
        self._merge(z)

    def _merge(self, z: Scales | None, *, partly: bool = False, learns: bool = False) -> None:
        """`merge`, and what contexts ask of it beside.

        Args:
            z: as there.
            partly: scale quantised weights while the model runs, instead of refusing them.
            learns: the hooks stay, as z is to be learnt at them.
        """
        self._refuse_merged("merge")
        checked = self._checked(self.active_z() if z is None else z)
        packed = [path for path in checked if self._state.matrices[path].parameter is None]
        if packed and not partly:
            raise T2Error(f"{packed[0]} is quantised, so z cannot be merged into its weight. Scale with set_z, which works on it.")
        on_host = _on_host({path: z for path, z in checked.items() if path not in set(packed)})
        self._state.merger.merge((self._state.matrices[path], z) for path, z in on_host.items())
        for path in packed:
            self._scalers[path].beside_merged = self._delta(path, checked[path])
        self._mode.merged = True
        if learns:
            return
        try:
            self._hooks_aside()
        except BaseException:
            self.unmerge()
            raise

    def _hooks_aside(self) -> None:
        """Take the hooks that have nothing to do away until `unmerge`: those of all matrices whose z is in the weight."""
        for path, hook in self._state.hooks.items():
            if self._scalers[path].beside_merged is None:
                hook.step_aside()

    def unmerge(self) -> None:
        """Put the very same base weights back, bit for bit. Does nothing if nothing is merged."""
        self._state.merger.drop()
        self._mode.merged = False
        for hook in self._state.hooks.values():
            hook.come_back()
        for scaler in self._scalers.values():
            scaler.beside_merged = None

    @contextmanager
    def merged(self, z: Scales | None = None) -> Iterator[Any]:
        """`merge(z)` inside the context; always unmerges, also after an exception."""
        self._merge(z)
        try:
            yield self.model
        finally:
            self.unmerge()

    @contextmanager
    def fast(self, z: Scales | None = None) -> Iterator[Any]:
        """Scale with one z for many tokens, inside the context: merged where the weight can be replaced, while the model runs where not."""
        self._merge(z, partly=True)
        try:
            yield self.model
        finally:
            self.unmerge()

    def bake(self, z: Scales) -> None:
        """Write W' for good and take everything off: the model is then a plain one with these weights.

        Raises:
            T2Error: as `merge`.
        """
        self._merge(z)
        self._state.merger.keep()
        self._mode.merged = False
        self.detach()

    @contextmanager
    def learning(self) -> Iterator[Any]:
        """Learn z from merged weights, inside the context: the parameters' z is merged, and their gradient is read off the activations.

        Two products a matrix and token in the backward pass take the place of four in both, for one merge (`t2eval.svf.cost`). Values and
        gradients are those of the hooks, but for rounding. A matrix that cannot be merged, or of whose z something is near nought, is
        scaled by its hook all the while. The parameters must not change inside.

        Raises:
            T2Error: z is merged already, or a fixed z is in force.
        """
        if self._mode.source != "parameters":
            raise T2Error("A fixed z is in force, and the parameters learn nothing from it: call use_parameters() first.")
        z = {path: value.detach() for path, value in self.z().items()}
        floor = _together({path: value.abs().min() for path, value in z.items()})
        matrices = self._state.matrices
        inside = {path for path in z if floor[path] >= _READABLE and matrices[path].index is None and matrices[path].parameter is not None}
        self._merge({path: z[path] for path in inside}, learns=True)
        try:
            for path, scaler in self._scalers.items():
                scaler.in_weight = path in inside
            self._mode.learning = True
            yield self.model
        finally:
            self._mode.learning = False
            for scaler in self._scalers.values():
                scaler.in_weight = False
            self.unmerge()

    def learns_merged(self) -> bool:
        """Whether `learning` serves this model; tried once on two tokens.

        It does not where base weights wait on the host (each look at the base would copy them), nor in a model that adds to a map's result
        in place (Falcon), from which nothing could be read off afterwards.
        """
        state = self._state
        if state.merger.keep_base != "device" or self._mode.source != "parameters" or self._mode.merged:
            return False
        if state.learns_merged is None:
            ids = torch.arange(2, device=self.model.device)[None]  # (1, 2)
            try:
                with torch.enable_grad(), self.learning():
                    total = self.model(input_ids=ids, use_cache=False).logits.float().sum()
                    torch.autograd.grad(total, list(self.trainable().values()), allow_unused=True)
                state.learns_merged = True
            except RuntimeError as error:
                if "inplace" not in str(error) and "in-place" not in str(error):
                    raise
                state.learns_merged = False
        return state.learns_merged

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of each matrix."""
        return [(basis.shape[0], basis.shape[1]) for basis in self.bases.values()]

    @property
    def device_type(self) -> str:
        """cpu, cuda, …: where the model lies."""
        return str(next(self.model.parameters()).device.type)

    @property
    def merged_bytes(self) -> int:
        """What the merged weights of all matrices take."""
        held = [matrix.parameter for matrix in self._state.matrices.values() if matrix.index is None]
        return sum(parameter.numel() * parameter.element_size() for parameter in held if parameter is not None)

    @property
    def is_merged(self) -> bool:
        """Whether z is merged now."""
        return self._mode.merged

    @property
    def mergeable(self) -> bool:
        """Whether every adapted weight can be replaced; a quantised one cannot."""
        return all(matrix.parameter is not None for matrix in self._state.matrices.values())

    @property
    def keep_base(self) -> KeepBase:
        """Where the base weights wait while z is merged: on the `device`, beside W', or on the `host`, in pinned memory."""
        return self._state.merger.keep_base

    @keep_base.setter
    def keep_base(self, where: KeepBase) -> None:
        self._refuse_merged("move the base weights")
        if where not in KEEP_BASE:
            raise unknown("place of the base weights", where, KEEP_BASE)
        self._state.merger.keep_base = where

    # ------------------------------------------------------------------ and the rest
    def fingerprint(self, z: Scales) -> dict[str, list[float]]:
        """What z does in these bases, in eight numbers a matrix, as an expert carries it (`t2eval.svf.fingerprint`)."""
        found = {}
        for path, value in z.items():
            basis = self.bases[path]
            if path not in self._state.probes:
                self._state.probes[path] = basis.probes or project_probes(basis.q)
            found[path] = fingerprint(basis, value, self._state.probes[path])
        return found

    def detach(self) -> None:
        """Unmerge, take the scaling and the parameters away, and leave the model as `attach` found it."""
        self.unmerge()
        take_off(self.model, self._state)

    def _refuse_merged(self, action: str) -> None:
        if self._mode.merged:
            raise T2Error(f"Cannot {action} while z is merged into the weights: unmerge first.")

    def _checked(self, z: Scales, sequences: int | None = None) -> dict[str, Tensor]:
        """z by path in float32, copied where it lies, without the matrices where it is ones. One transfer to the host for all."""
        copied: dict[str, Tensor] = {}
        for path, value in z.items():
            if path not in self.bases:
                raise unknown("adapted matrix", path, self.paths)
            rank = self.bases[path].rank
            expected = (rank,) if sequences is None else (sequences, rank)
            if tuple(plain(value, f"z of {path}").shape) != expected:
                raise T2Error(f"z of {path} has shape {tuple(value.shape)}; this matrix needs {expected}.")
            with torch.inference_mode(False), torch.no_grad():
                copied[path] = value.detach().to(torch.float32, copy=True)
        with torch.inference_mode(False), torch.no_grad():
            furthest = _together({path: (own - 1).abs().amax() for path, own in copied.items()})
        if broken := [path for path, far in furthest.items() if not math.isfinite(far)]:
            raise T2Error(f"z of {broken[0]} holds values that are not finite.")
        return {path: own for path, own in copied.items() if furthest[path] > 0}

    def _delta(self, path: str, z: Tensor) -> Tensor:
        """z - 1 on the matrix's device."""
        with torch.inference_mode(False), torch.no_grad():
            return (z - 1).to(self.parameters.of(path).device)


def _together(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars on any devices as numbers, by one transfer a device."""
    return {path: value.item() for path, value in _on_host({path: value[None] for path, value in values.items()}).items()}


def _on_host(z: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors of any lengths and one dtype on the CPU, by one transfer a device."""
    found: dict[str, Tensor] = {}
    for device in {value.device for value in z.values()}:
        here = {path: value for path, value in z.items() if value.device == device}
        parts = torch.split(torch.cat(list(here.values())).cpu(), [len(value) for value in here.values()])
        found.update(zip(here, parts, strict=True))
    return found
