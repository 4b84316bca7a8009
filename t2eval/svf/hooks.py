"""Scaling: z around one matrix while the model runs, its factored gradient, and the trainable parameters.

    output side (out <= in):  y = W x + Q ((z - 1) * Qᵀ W x) + b     behind the map
    input side  (in < out):   x -> x + Q ((z - 1) * Qᵀ x)            before the map

The bias is added after the scaling: to subtract Qᵀb from Qᵀy again would leave rounding alone where b is large. The gradient is
dL/dz = Σ_tokens (Qᵀ dL/dy) * (Qᵀ W x), or Σ_tokens (Qᵀ dL/dx') * (Qᵀ x) before a map: no gradient of W is ever formed.

While z learns from merged weights (`Adapted.learning`) the maps compute W' x themselves. Qᵀ W' x = z * Qᵀ W x, and before a map
Qᵀ dL/dx = z * Qᵀ dL/dx', so on either side dL/dz = Σ_tokens (Qᵀ gradient) * (Qᵀ activation) / z: two products, in the backward pass only.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from t2eval.errors import T2Error
from t2eval.svf.bases import Basis
from t2eval.svf.matrices import Matrix, module_bias

Scales = Mapping[str, Tensor]


class SequencesUnseen(T2Error):
    """There is one z a sequence, and a matrix sees tokens of which it cannot be told whose they are."""


class Factored(torch.autograd.Function):
    """y + Q (delta * Qᵀ y), with the gradients of y and of delta and nothing else.

    y: (…, r) activations; q: (r, r) in their dtype; delta: (r,) float32, z - 1.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, q: Tensor, delta: Tensor) -> Tensor:
        flat = y.reshape(-1, y.shape[-1])  # (tokens, r)
        with torch.autocast(y.device.type, enabled=False):
            projected = flat @ q  # (tokens, r)
            ctx.save_for_backward(projected, q, delta)
            scaled = torch.empty(y.shape, dtype=y.dtype, device=y.device)  # no view: some models (Falcon) add to it in place
            torch.addmm(flat, projected * delta.to(projected.dtype), q.T, out=scaled.view(flat.shape))
            return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        projected, q, delta = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])  # (tokens, r)
        back = flat @ q  # (tokens, r)
        of_delta = _sums(back, projected) if ctx.needs_input_grad[2] else None  # (r,)
        if not ctx.needs_input_grad[0]:
            return None, None, of_delta
        return torch.addmm(flat, back.mul_(delta.to(back.dtype)), q.T).view_as(gradient), None, of_delta


class ReadOff(torch.autograd.Function):
    """An activation as it is, on the narrow side of a merged map, and the gradient of z that can be read off it.

    y: (…, r) activations, W' x behind a map or x before one; q: (r, r) in their dtype; z: (r,) float32, none of it near nought.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, q: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(y, q, z)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        y, q, z = ctx.saved_tensors
        if not ctx.needs_input_grad[2]:
            return gradient, None, None
        back = gradient.reshape(-1, gradient.shape[-1]) @ q  # (tokens, r)
        projected = y.reshape(-1, y.shape[-1]) @ q  # (tokens, r)
        return gradient, None, _sums(back, projected) / z


def _sums(back: Tensor, projected: Tensor) -> Tensor:
    """Σ_tokens back * projected, (r,) float32, of two (tokens, r). A product is rounded as its factors were, the sum is not: float32 copies
    of both would take three times the memory traffic."""
    return (back * projected).sum(0, dtype=torch.float32)


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

    def of(self, path: str) -> nn.Parameter:
        """p of one matrix, (r,) float32."""
        return self._parameters[self._names[path]]  # type: ignore[return-value]

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
    """Which z is in force, shared by all scalers of a model.

    Attributes:
        source: the trainable parameters, one fixed z, or one z a sequence.
        off: how many contexts ask for the base model.
        merged: z is merged into the weights; only what cannot be merged is scaled here.
        learning: the z that is merged is that of the parameters, which learn from it.
        shape: (sequences, tokens) of the batch that a decoder layer is reading, while there is one z a sequence.
    """

    source: Literal["parameters", "fixed", "sequences"] = "parameters"
    off: int = 0
    merged: bool = False
    learning: bool = False
    shape: tuple[int, int] | None = None


class Scaler:
    """z around one matrix: which one is in force, and its product with activations on the matrix's narrow side."""

    def __init__(self, path: str, basis: Basis, parameterisation: str, parameters: ScaleParameters, mode: Mode) -> None:
        self.path, self.basis, self.mode = path, basis, mode
        self.parameterisation, self._parameters = parameterisation, parameters
        self.fixed: Tensor | None = None  # z - 1, (r,); None is ones
        self.per_sequence: Tensor | None = None  # z - 1, (sequences, r)
        self.beside_merged: Tensor | None = None  # z - 1, (r,), of a matrix that cannot be merged
        self.in_weight = False  # while the parameters learn from merged weights: whether this matrix's z is in its weight
        self._cast: Tensor | None = None

    def delta(self) -> Tensor | None:
        """z - 1 as it is in force now: (r,), or (sequences, r); None where it is nought."""
        if self.mode.off:
            return None
        if self.mode.learning:
            return None if self.in_weight else self._of_parameter()
        if self.mode.merged:
            return self.beside_merged
        if self.mode.source == "fixed":
            return self.fixed
        if self.mode.source == "sequences":
            return self.per_sequence
        delta = self._of_parameter()
        training = torch.is_grad_enabled() and delta.requires_grad
        if not training and delta.device.type == "cpu" and not bool(delta.any()):
            return None
        return delta

    def _of_parameter(self) -> Tensor:
        """z - 1 of the trainable parameter, (r,) float32, differentiable in it."""
        parameter = self._parameters.of(self.path)
        if self.parameterisation == "direct":
            return parameter
        mask, sigma = torch.sigmoid(parameter), self.basis.sigma.to(parameter.device)
        return mask * (sigma.sum() / (sigma * mask).sum()) - 1

    def around(self) -> Callable[[Tensor], Tensor] | None:
        """What happens to the activation on the matrix's narrow side, (…, r) -> (…, r); None where nothing does."""
        if self.mode.learning and self.in_weight and not self.mode.off:
            if not torch.is_grad_enabled():
                return None
            z = self._of_parameter() + 1
            return lambda y: ReadOff.apply(y, self._factor(y), z.to(y.device))  # type: ignore[no-untyped-call]
        delta = self.delta()
        return None if delta is None else functools.partial(self.scale, delta=delta)

    def scale(self, y: Tensor, delta: Tensor, sequences: Tensor | None = None) -> Tensor:
        """y + Q (delta * Qᵀ y).

        Args:
            y: (sequences, tokens, r), or (tokens, r) of a layer that flattens its batch.
            delta: (r,), or (sequences, r).
            sequences: (tokens,) the sequence of each token, where y holds only some of the batch's tokens.

        Raises:
            T2Error: one z a sequence, and y does not show the sequences.
        """
        q = self._factor(y)
        delta = delta.to(y.device)
        if delta.ndim == 1:
            return Factored.apply(y, q, delta)  # type: ignore[no-any-return, no-untyped-call]
        rank = delta.shape[1]
        flat = y.reshape(-1, rank)  # (tokens, r)
        projected = (flat @ q).to(q.dtype)  # (tokens, r)
        if sequences is None:
            count = self._sequences(y, len(delta))
            change = (projected.view(count, -1, rank) * delta.to(q.dtype)[:, None]).view(-1, rank)  # (sequences, tokens, r) -> (tokens, r)
        else:
            change = projected * delta.to(q.dtype)[sequences]
        return torch.addmm(flat.to(q.dtype), change, q.T).view_as(y)

    def _sequences(self, y: Tensor, count: int) -> int:
        """The number of z, where it is that of the sequences in y."""
        if y.ndim > 2 and y.shape[0] == count:
            return count
        if y.ndim == 2 and self.mode.shape is not None and self.mode.shape[0] == count and len(y) == count * self.mode.shape[1]:
            return count  # all tokens of the batch, one sequence behind the other
        seen = f"{self.path} sees a batch of shape {tuple(y.shape)}"
        raise SequencesUnseen(f"There are {count} z, one a sequence, but {seen}. Give one for each.")

    def _factor(self, y: Tensor) -> Tensor:
        """Q in the activations' dtype, on their device."""
        q = self.basis.q
        if q.dtype == y.dtype and q.device == y.device:
            return q
        if self._cast is None or self._cast.dtype != y.dtype or self._cast.device != y.device:
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training afterwards
                self._cast = q.to(y.device, y.dtype)
        return self._cast


class Hook:
    """The scaling's hook on one linear map. It can step aside while z is in the map's weight: a map without hooks is called faster.

    Args:
        module: the map.
        before: whether the hook stands before it (a forward pre-hook).
        call: the hook.
    """

    def __init__(self, module: nn.Module, before: bool, call: Callable[..., Any]) -> None:
        self._module, self._before, self._call = module, before, call
        self._handle: RemovableHandle | None = self._put(prepend=False)

    def _put(self, prepend: bool) -> RemovableHandle:
        put = self._module.register_forward_pre_hook if self._before else self._module.register_forward_hook
        return put(self._call, prepend=prepend)

    def step_aside(self) -> None:
        """Leave the map, where no other hook stands beside this one: it can then come back to the place that it had."""
        others = self._module._forward_pre_hooks if self._before else self._module._forward_hooks
        if self._handle is not None and len(others) == 1:
            self._handle.remove()
            self._handle = None

    def come_back(self) -> None:
        """Stand at the map again, before whatever was put there meanwhile."""
        if self._handle is None:
            self._handle = self._put(prepend=True)

    def remove(self) -> None:
        """Leave the map for good."""
        if self._handle is not None:
            self._handle.remove()


def put_around(matrix: Matrix, scaler: Scaler) -> Hook | Callable[[], None]:
    """Scale a linear map whenever it is called. Its class, its weight and its place in `state_dict` stay as they are.

    Returns:
        The hook; for a map with a bias, whose forward is taken, what gives that back.
    """
    module = matrix.module
    if scaler.basis.side == "input":
        return Hook(module, True, functools.partial(_before, scaler))
    if module_bias(module) is None:
        return Hook(module, False, functools.partial(_behind, scaler))
    return take_forward(module, functools.partial(_biased, scaler))


class TakenForward:
    """A module's forward in other hands: `run(module, its own forward, *arguments)`. Holds the module weakly, so that it can be freed."""

    def __init__(self, module: nn.Module, run: Callable[..., Any], own: Callable[..., Any] | None) -> None:
        self._module, self._run, self.own = weakref.ref(module), run, own

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        module = self._module()
        assert module is not None  # it is the one that is being called
        return self._run(module, self.own or functools.partial(type(module).forward, module), *arguments, **named)

    def __deepcopy__(self, memo: dict[int, Any]) -> TakenForward:
        module = self._module()
        assert module is not None  # it is the one that is being copied
        return TakenForward(memo.get(id(module), module), copy.deepcopy(self._run, memo), copy.deepcopy(self.own, memo))


def take_forward(module: nn.Module, run: Callable[..., Any]) -> Callable[[], None]:
    """Put `run` in the place of a module's forward, which may be one that another library put there.

    Returns:
        What gives it back.
    """
    own = module.__dict__.get("forward")
    module.forward = TakenForward(module, run, own)
    held = weakref.ref(module)

    def give_back() -> None:
        if (module := held()) is None:
            return
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    return give_back


def _before(scaler: Scaler, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    scaled = scaler.around()
    return None if scaled is None else (scaled(inputs[0]), *inputs[1:])


def _behind(scaler: Scaler, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
    scaled = scaler.around()
    return None if scaled is None else scaled(output)


def _biased(scaler: Scaler, module: nn.Module, own: Callable[..., Any], x: Tensor, *arguments: Any, **named: Any) -> Any:
    """The forward of a map with a bias: W x scaled, then the bias."""
    scaled = scaler.around()
    if scaled is None:
        return own(x, *arguments, **named)
    bias = module_bias(module)
    assert bias is not None
    plain = getattr(own, "func", None)
    if plain is nn.Linear.forward:
        y = nn.functional.linear(x, module.weight)  # type: ignore[arg-type]
    elif plain is Conv1D.forward:
        y = x @ module.weight  # type: ignore[operator]  # (…, in) (in, out)
    else:
        with _without_bias(module) as taken:
            y = own(x, *arguments, **named)
        if not taken:  # computed with it: what its rounding took is lost
            y = y - bias.to(y.device, y.dtype)
    return scaled(y) + bias.to(y.device, y.dtype)


@contextmanager
def _without_bias(module: nn.Module) -> Iterator[bool]:
    """A map without its bias, inside the context; False where the bias is not the module's own tensor."""
    places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    place = next((held for held in places if held.get("bias") is not None), None)
    if place is None:
        yield False
        return
    bias = place["bias"]
    place["bias"] = None
    try:
        yield True
    finally:
        place["bias"] = bias
