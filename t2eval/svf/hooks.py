"""Scaling: the hooks that apply z around one linear map, their factored gradient, and the trainable parameters.

    output side (out <= in):  y -> y + Q ((z - 1) * Qᵀ (y - b))     with y = W x + b, behind the layer
    input side  (in < out):   x -> x + Q ((z - 1) * Qᵀ x)           before the layer

Both are exactly the identity at z = 1 in every dtype. The gradient is dL/dz = Σ_tokens (Qᵀ dL/dy) * (Qᵀ W x), or
Σ_tokens (Qᵀ dL/dx') * (Qᵀ x) before a layer: no gradient of W is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from t2eval.errors import T2Error
from t2eval.svf.bases import Basis
from t2eval.svf.selection import module_bias

Scales = Mapping[str, Tensor]


class Factored(torch.autograd.Function):
    """y + Q (delta * (Qᵀ y - shift)), with the gradients of y and of delta and nothing else."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, q: Tensor, shift: Tensor | None, delta: Tensor) -> Tensor:
        rows = y.reshape(-1, y.shape[-1])
        with torch.autocast(y.device.type, enabled=False):
            projected = rows @ q
            if shift is not None:
                projected -= shift
            ctx.save_for_backward(projected, q, delta)
            return torch.addmm(rows, projected * delta.to(projected.dtype), q.T).view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        projected, q, delta = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        back = rows @ q
        of_delta = (back.float() * projected.float()).sum(0) if ctx.needs_input_grad[3] else None
        if not ctx.needs_input_grad[0]:
            return None, None, None, of_delta
        return torch.addmm(rows, back.mul_(delta.to(back.dtype)), q.T).view_as(gradient), None, None, of_delta


class ScaleParameters(nn.Module):
    """The trainable p of every adapted matrix, in float32 whatever the model's dtype becomes, and outside the model's `state_dict`."""

    def __init__(self, initial: Scales) -> None:
        super().__init__()
        self._names = {path: path.replace(".", "/") for path in initial}
        for path, value in initial.items():
            self.register_parameter(self._names[path], nn.Parameter(value))

    def trainable(self) -> dict[str, nn.Parameter]:
        """p by matrix path: (r,) float32 each."""
        return {path: self._parameters[name] for path, name in self._names.items()}  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScaleParameters:
        for parameter in self._parameters.values():
            assert parameter is not None
            device = fn(parameter.data).device  # follows the model to a device, never to another dtype: 1.001 is 1.0 in bfloat16
            parameter.data = parameter.data.to(device)
            if parameter.grad is not None:
                parameter.grad.data = parameter.grad.data.to(device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        return

    def _load_from_state_dict(self, *arguments: Any) -> None:
        return


@dataclass
class Mode:
    """Which z is in force, shared by all scalers of a model."""

    source: Literal["parameters", "fixed", "rows"] = "parameters"
    off: int = 0
    merged: bool = False
    rows: int = 0


class Scaler:
    """The hook of one matrix."""

    def __init__(self, path: str, module: nn.Module, basis: Basis, parameterisation: str, parameters: ScaleParameters, mode: Mode) -> None:
        self.path, self.module, self.basis, self.mode = path, module, basis, mode
        self.parameterisation, self._parameters = parameterisation, parameters
        self.fixed: Tensor | None = None  # z - 1, (r,); None is ones
        self.per_row: Tensor | None = None  # z - 1, (rows, r)
        self._cast: tuple[Tensor, Tensor | None] | None = None
        hook = module.register_forward_hook(self._behind) if basis.side == "output" else module.register_forward_pre_hook(self._before)
        self.remove = hook.remove

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        delta = self._delta()
        return None if delta is None else (self._scale(inputs[0], delta), *inputs[1:])

    def _behind(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        delta = self._delta()
        return None if delta is None else self._scale(output, delta)

    def _delta(self) -> Tensor | None:
        if self.mode.off or self.mode.merged:
            return None
        if self.mode.source == "fixed":
            return self.fixed
        if self.mode.source == "rows":
            return self.per_row
        parameter = self._parameters.trainable()[self.path]
        if self.parameterisation == "direct":
            delta: Tensor = parameter
        else:
            mask, sigma = torch.sigmoid(parameter), self.basis.sigma.to(parameter.device)
            delta = mask * (sigma.sum() / (sigma * mask).sum()) - 1
        training = torch.is_grad_enabled() and delta.requires_grad
        if not training and delta.device.type == "cpu" and not bool(delta.any()):
            return None
        return delta

    def _scale(self, y: Tensor, delta: Tensor) -> Tensor:
        q, shift = self._factors(y)
        if self.mode.source != "rows":
            return Factored.apply(y, q, shift, delta.to(y.device))  # type: ignore[no-any-return, no-untyped-call]
        count, rank = delta.shape
        flattened = y.ndim == 2 and y.shape[0] % count == 0 and "expert" not in self.path  # some layers see (rows * tokens, r)
        if not (flattened or (y.ndim > 2 and y.shape[0] == count)):
            shape = tuple(y.shape)
            raise T2Error(f"Per-row z holds {count} rows, but {self.path} sees a batch of shape {shape}. Give one z for each row.")
        projected = (y.reshape(-1, rank) @ q).view(count, -1, rank)
        if shift is not None:
            projected = projected - shift
        change = (projected * delta.to(y.device, projected.dtype)[:, None]).view(-1, rank)
        return torch.addmm(y.reshape(-1, rank).to(q.dtype), change, q.T).view_as(y)

    def _factors(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Q and Qᵀ b in the activations' dtype, on their device."""
        if self._cast is None or self._cast[0].dtype != y.dtype or self._cast[0].device != y.device:
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training afterwards
                q = self.basis.q.to(y.device)
                bias = module_bias(self.module) if self.basis.side == "output" else None
                shift = None if bias is None else (bias.to(y.device, torch.float32) @ q).to(y.dtype)
                self._cast = (q.to(y.dtype), shift)
        return self._cast
