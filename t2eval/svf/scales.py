"""Scale: z itself, from a raw parameter (two forms) and from several experts' z (mixes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from t2eval.errors import T2Error, UsageError, unknown

MixForm = Literal["paper", "offset"]

PARAMETERISATIONS = ("direct", "sigmoid-renorm")
MIX_FORMS = ("paper", "offset")


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
