"""Adapted model: a frozen causal model whose matrices are scaled by z in their singular bases (SVF, section 3.1 of the paper).

Scaling is done by hooks (`t2eval.svf.hooks`), so module classes and the names in `state_dict` stay as they are, and any linear map can
be adapted. `merge` writes the dense W' for the times when one z answers many tokens; `rows` serves many z in one batch.

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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from t2eval.errors import T2Error, UsageError, unknown
from t2eval.paths import cache_dir as default_cache
from t2eval.svf.bases import (
    PARAMETERISATIONS,
    Basis,
    Probes,
    Side,
    cached_basis,
    compose,
    decompose,
    mix_scales,
    project_probes,
    renormalise,
    sketch,
    to_scale,
)
from t2eval.svf.hooks import Mode, ScaleParameters, Scaler, Scales
from t2eval.svf.selection import dense_weight, find_module, target_paths

__all__ = ["Adapted", "Basis", "Side", "attach", "compose", "decompose", "target_paths"]

_HOLDER = "t2_scales"
_PAPER_MEAN, _PAPER_VARIANCE = 0.1, 1e-3  # Table 6: the initial p of the sigmoid form

Init = Literal["identity", "paper"]


class _ExpertLike(Protocol):
    @property
    def z(self) -> Scales: ...

    def check(self, adapted: Adapted, allow_basis_mismatch: bool = False) -> None: ...

    def fitted(self, model: Any) -> _ExpertLike: ...


class Adapted:
    """A frozen model whose matrices can be scaled. Made by `attach`.

    z in this class is always the true scale, float32, keyed by matrix path. Fresh from `attach` the trainable parameters are in
    force; `set_z`, `set_expert` and `set_alphas` put a fixed z in their place, and `use_parameters` goes back.

    Attributes:
        model: the model, the same object as was given.
        paths: the adapted matrices' module paths.
        bases: path → `Basis`.
        parameterisation: `direct` or `sigmoid-renorm`.
        parameters: the `ScaleParameters` on the model.
    """

    def __init__(self, model: Any, bases: dict[str, Basis], parameterisation: str, initial: Scales) -> None:
        self.model, self.bases, self.parameterisation = model, bases, parameterisation
        self.paths = tuple(bases)
        self._modules = {path: find_module(model, path) for path in self.paths}
        self._required_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        self.parameters = ScaleParameters(initial)
        model.add_module(_HOLDER, self.parameters)
        self._mode = Mode()
        self._scalers = {
            path: Scaler(path, self._modules[path], basis, parameterisation, self.parameters, self._mode) for path, basis in bases.items()
        }
        self._kept: dict[str, nn.Parameter] = {}
        self._probes: dict[str, Probes] = {}

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
            scaler.fixed = checked.get(path)
        self._mode.source = "fixed"

    def set_expert(self, expert: _ExpertLike, allow_basis_mismatch: bool = False) -> None:
        """Check an expert against this model (`Expert.check`), then scale with its z."""
        fitted = expert.fitted(self.model)
        fitted.check(self, allow_basis_mismatch)
        self.set_z(fitted.z)

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
        fitted = [expert.fitted(self.model) for expert in experts]
        for expert in fitted:
            expert.check(self, allow_basis_mismatch)
        self.set_z(mix_scales([expert.z for expert in fitted], alphas, form))

    @contextmanager
    def disabled(self) -> Iterator[Any]:
        """The base model, inside the context: no scaling, and the base weights where z is merged."""
        self._mode.off += 1
        outermost = self._mode.off == 1
        merged = {path: self._modules[path]._parameters["weight"] for path in self._kept} if outermost else {}
        for path in merged:
            self._modules[path]._parameters["weight"] = self._kept[path]
        try:
            yield self.model
        finally:
            for path, weight in merged.items():
                self._modules[path]._parameters["weight"] = weight
            self._mode.off -= 1

    @contextmanager
    def rows(self, z: Scales) -> Iterator[Any]:
        """One z for each row of the batch, inside the context: row i of the output is the model's with z[i]. Works under `generate` too.

        Args:
            z: (rows, r) by matrix path; a missing path is ones for all rows.

        Raises:
            T2Error: as `set_z`; tensors of different numbers of rows; at the forward pass, a batch of another size.
        """
        self._refuse_merged("use per-row z")
        counts = {len(value) for value in z.values()}
        if len(counts) != 1:
            raise T2Error(f"Per-row z needs tensors of one number of rows; these have {sorted(counts)}.")
        checked = self._checked(z, rows=counts.pop())
        source = self._mode.source
        for path, scaler in self._scalers.items():
            scaler.per_row = checked.get(path)
        self._mode.source = "rows"
        try:
            yield self.model
        finally:
            self._mode.source = source
            for scaler in self._scalers.values():
                scaler.per_row = None

    def merge(self, z: Scales | None = None) -> None:
        """Put W' in the place of each weight whose z is not ones, and switch the hooks off.

        The base weights are kept aside. A weight that is shared with another module is replaced in the adapted module only.

        Args:
            z: as for `set_z`; None is the z in force.

        Raises:
            T2Error: merged already; a quantised weight, which cannot be replaced.
        """
        self._refuse_merged("merge")
        checked = self._checked(self.active_z() if z is None else z)
        try:
            with torch.inference_mode(False), torch.no_grad():
                for path, delta in checked.items():
                    self._replace(path, delta)
        except BaseException:
            self.unmerge()
            raise
        self._mode.merged = True

    def _replace(self, path: str, delta: Tensor) -> None:
        module = self._modules[path]
        weight = module._parameters.get("weight")
        if weight is None or not weight.is_floating_point():
            raise T2Error(f"{path} is quantised, so z cannot be merged into its weight. Scale with set_z, which works on it.")
        dense = compose(dense_weight(module), self.bases[path], delta + 1)
        stored = (dense.T if isinstance(module, Conv1D) else dense).to(weight.dtype).contiguous()
        self._kept[path] = weight
        module._parameters["weight"] = nn.Parameter(stored, requires_grad=False)

    def unmerge(self) -> None:
        """Put the very same base weights back, bit for bit. Does nothing if nothing is merged."""
        for path, weight in self._kept.items():
            self._modules[path]._parameters["weight"] = weight
        self._kept.clear()
        self._mode.merged = False

    @contextmanager
    def merged(self, z: Scales | None = None) -> Iterator[Any]:
        """`merge(z)` inside the context; always unmerges, also after an exception."""
        self.merge(z)
        try:
            yield self.model
        finally:
            self.unmerge()

    def sketch(self, z: Scales) -> dict[str, list[float]]:
        """What z does in these bases, in eight numbers a matrix: the fingerprint that an expert carries (`t2eval.svf.bases.sketch`)."""
        sketches = {}
        for path, value in z.items():
            if path not in self._probes:
                self._probes[path] = project_probes(self.bases[path])
            sketches[path] = sketch(self.bases[path], value, self._probes[path])
        return sketches

    def detach(self) -> None:
        """Unmerge, remove the hooks and the parameters, and leave the model as `attach` found it."""
        self.unmerge()
        for scaler in self._scalers.values():
            scaler.remove()
        if getattr(self.model, _HOLDER, None) is self.parameters:
            delattr(self.model, _HOLDER)
        for parameter in self._required_grad:
            parameter.requires_grad_(True)

    def _refuse_merged(self, action: str) -> None:
        if self._mode.merged:
            raise T2Error(f"Cannot {action} while z is merged into the weights: unmerge first.")

    def _checked(self, z: Scales, rows: int | None = None) -> dict[str, Tensor]:
        """z - 1 by path, without the matrices where it is zero everywhere."""
        deltas = {}
        for path, value in z.items():
            if path not in self.bases:
                raise unknown("adapted matrix", path, self.paths)
            rank = self.bases[path].rank
            expected = (rank,) if rows is None else (rows, rank)
            if tuple(value.shape) != expected:
                raise T2Error(f"z of {path} has shape {tuple(value.shape)}; this matrix needs {expected}.")
            with torch.inference_mode(False), torch.no_grad():
                delta = value.detach().to(self._modules_device(path), torch.float32, copy=True) - 1
            if not math.isfinite(float(delta.abs().max())):
                raise T2Error(f"z of {path} holds values that are not finite.")
            if bool(delta.any()):
                deltas[path] = delta
        return deltas

    def _modules_device(self, path: str) -> torch.device:
        return self.trainable()[path].device


def attach(
    model: Any,
    modules: str = "all",
    layers: str = "all",
    *,
    parameterisation: str = "direct",
    paths: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    init: Init = "identity",
    seed: int = 0,
) -> Adapted:
    """Freeze a model and make its matrices scalable by z, the only parameters that then require a gradient. Outputs stay as they are.

    Args:
        model: a transformers causal model.
        modules: `all`, `mlp`, `attention`, or a comma-separated list of path endings (see `target_paths`).
        layers: `all`, `half` (the first half), `0-15` or `0,3`.
        parameterisation: `direct` (z = 1 + p) or `sigmoid-renorm` (z = sigmoid(p) Σσ / Σ(σ sigmoid(p))).
        paths: exact module paths instead of `modules` and `layers`.
        cache_dir: where singular bases are cached; by default `t2eval.paths.cache_dir()/"bases"`.
        init: `identity` (z = 1), or `paper` for `sigmoid-renorm`: p of mean 0.1 and variance 1e-3 (Table 6), so that outputs move a little.
        seed: of the `paper` init.

    Raises:
        UsageError: unknown modules, layers, paths, parameterisation or init.
        T2Error: the model is adapted already, has no decoder layers, or holds weights that cannot be decomposed.

    Example:
        >>> adapted = attach(model, modules="mlp")
        >>> with adapted.merged(expert.z):
        ...     model.generate(**inputs)
    """
    if hasattr(model, _HOLDER):
        raise T2Error(f"This {type(model).__name__} is adapted already: use that Adapted, or call its detach() first.")
    if parameterisation not in PARAMETERISATIONS:
        raise unknown("parameterisation", parameterisation, PARAMETERISATIONS)
    if init not in ("identity", "paper"):
        raise unknown("init", init, ("identity", "paper"))
    if init == "paper" and parameterisation != "sigmoid-renorm":
        raise UsageError("The paper's init of p belongs to the sigmoid form: give parameterisation='sigmoid-renorm' with init='paper'.")
    chosen = list(paths) if paths is not None else target_paths(model, modules, layers)
    folder = cache_dir if cache_dir is not None else default_cache() / "bases"
    bases: dict[str, Basis] = {}
    initial: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.no_grad():
        for path in chosen:
            weight = dense_weight(find_module(model, path))
            basis = _computed(weight, folder, path)
            initial[path] = torch.zeros(basis.rank)
            if init == "paper":
                initial[path] = _PAPER_MEAN + math.sqrt(_PAPER_VARIANCE) * torch.randn(basis.rank, generator=generator)
            if parameterisation == "sigmoid-renorm":
                renormalise(torch.sigmoid(initial[path]), basis.sigma, path)
            initial[path] = initial[path].to(weight.device)
            bases[path] = basis
    return Adapted(model, bases, parameterisation, initial)


def _computed(weight: Tensor, folder: Path, path: str) -> Basis:
    try:
        basis = cached_basis(weight, folder)
    except T2Error as error:
        raise T2Error(f"{path}: {error}") from error
    if weight.dtype != torch.float32:
        # The hooks keep Q in the model's own dtype; on an accelerator the float32 original would only take its memory.
        basis = replace(basis, q=basis.q.cpu(), sigma=basis.sigma.cpu())
    return basis
