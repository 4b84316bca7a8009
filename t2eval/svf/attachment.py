"""Attachment: makes the matrices of a model scalable by z, and finds the scaling of a model again."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from t2eval.errors import T2Error, UsageError, unknown
from t2eval.paths import cache_dir as default_cache
from t2eval.svf.adapted import Adapted
from t2eval.svf.bases import Basis, BasisStore
from t2eval.svf.matrices import Matrix, find_matrices
from t2eval.svf.merge import KEEP_BASE, KeepBase
from t2eval.svf.scales import PARAMETERISATIONS, renormalise
from t2eval.svf.selection import left_out, refuse_bypassed, target_paths
from t2eval.svf.state import put_on, state_of

_PAPER_MEAN, _PAPER_VARIANCE = 0.1, 1e-3  # Table 6: the initial p of the sigmoid form
_WORTH_SAYING = 0.01  # of the decoder layers' weights, left out

_log = logging.getLogger(__name__)

Init = Literal["identity", "paper"]


def attached(model: Any) -> Adapted | None:
    """The `Adapted` of a model that `attach` was called on, or None."""
    state = state_of(model)
    return None if state is None else Adapted(model, state)


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
    keep_base: KeepBase = "device",
) -> Adapted:
    """Freeze a model and make its matrices scalable by z, the only parameters that then require a gradient. Outputs stay as they are.

    Args:
        model: a transformers causal model.
        modules: `all`, `mlp`, `attention`, `dense`, or a comma-separated list of path endings (see `target_paths`).
        layers: `all`, `half` (the first half), `0-15` or `0,3`.
        parameterisation: `direct` (z = 1 + p) or `sigmoid-renorm` (z = sigmoid(p) Σσ / Σ(σ sigmoid(p))).
        paths: exact matrix paths instead of `modules` and `layers`.
        cache_dir: where singular bases are cached; by default `t2eval.paths.cache_dir()/"bases"`.
        init: `identity` (z = 1), or `paper` for `sigmoid-renorm`: p of mean 0.1 and variance 1e-3 (Table 6), so that outputs move a little.
        seed: of the `paper` init.
        keep_base: where base weights wait while z is merged: `device`, or `host` where the device has no room for them twice.

    Raises:
        UsageError: unknown modules, layers, paths, parameterisation, init or place.
        T2Error: the model is adapted already, has no decoder layers, or holds weights that cannot be decomposed or scaled.

    Examples:
        >>> adapted = attach(model, modules="mlp")
        >>> with adapted.merged(expert.z):
        ...     model.generate(**inputs)
    """
    if state_of(model) is not None:
        raise T2Error(f"This {type(model).__name__} is adapted already: use that Adapted, or call its detach() first.")
    if parameterisation not in PARAMETERISATIONS:
        raise unknown("parameterisation", parameterisation, PARAMETERISATIONS)
    if init not in ("identity", "paper"):
        raise unknown("init", init, ("identity", "paper"))
    if init == "paper" and parameterisation != "sigmoid-renorm":
        raise UsageError("The paper's init of p belongs to the sigmoid form: give parameterisation='sigmoid-renorm' with init='paper'.")
    if keep_base not in KEEP_BASE:
        raise unknown("place of the base weights", keep_base, KEEP_BASE)
    chosen = list(paths) if paths is not None else target_paths(model, modules, layers)
    matrices = {matrix.path: matrix for matrix in find_matrices(model, chosen)}
    refuse_bypassed(model, chosen)
    if paths is None:
        _say_left_out(model, chosen, modules, layers)
    store = BasisStore(cache_dir if cache_dir is not None else default_cache() / "bases")
    with torch.inference_mode(False), torch.no_grad():
        bases = _bases(matrices, store, getattr(model, "dtype", torch.float32))
        initial = _initial(bases, parameterisation, init, seed)
    return Adapted(model, put_on(model, matrices, bases, parameterisation, initial, keep_base))


def _bases(matrices: Mapping[str, Matrix], store: BasisStore, dtype: torch.dtype) -> dict[str, Basis]:
    """The singular basis of each matrix by path, from the store or computed now; `dtype` is the model's."""
    found: dict[str, Basis] = {}
    for path, matrix in matrices.items():
        try:
            found[path] = store.basis(matrix.weight(), matrix.dtype(dtype))  # of W (out, in)
        except T2Error as error:
            raise T2Error(f"{path}: {error}") from error
    return found


def _initial(bases: Mapping[str, Basis], parameterisation: str, init: Init, seed: int) -> dict[str, Tensor]:
    """The first p of each matrix by path, (r,) float32, on its basis's device."""
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for path, basis in bases.items():
        p = torch.zeros(basis.rank)  # (r,)
        if init == "paper":
            p = _PAPER_MEAN + math.sqrt(_PAPER_VARIANCE) * torch.randn(basis.rank, generator=generator)
        if parameterisation == "sigmoid-renorm":
            renormalise(torch.sigmoid(p), basis.sigma.cpu(), path)
        found[path] = p.to(basis.sigma.device)
    return found


def _say_left_out(model: Any, paths: Sequence[str], modules: str, layers: str) -> None:
    share, names = left_out(model, paths, modules, layers)
    if share >= _WORTH_SAYING:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        _log.warning(
            "modules=%s scales %.1f%% of the weights that it means; %.1f%% are left out: %s%s.",
            modules, 100 * (1 - share), 100 * share, ", ".join(names[:3]), more,
        )  # fmt: skip
