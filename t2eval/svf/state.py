"""State: what an adapted model carries with it, how it is put on the model, and how it is taken off again.

Nothing in it refers to the model itself, only to modules inside it, so that a model is freed with everything as soon as it is let go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from t2eval.svf.bases import Basis
from t2eval.svf.experts import put_into
from t2eval.svf.fingerprint import Probes
from t2eval.svf.hooks import Hook, Mode, ScaleParameters, Scaler, Scales, put_around
from t2eval.svf.matrices import Matrix
from t2eval.svf.merge import KeepBase, Merger, shared_parameters

_HOLDER, _STATE = "t2_scales", "t2_state"


@dataclass
class State:
    """The scaling on one model.

    Attributes:
        bases, matrices, scalers: by matrix path.
        parameterisation: `direct` or `sigmoid-renorm`.
        parameters: the trainable p.
        mode: which z is in force.
        merger: W' and the base weights.
        probes: of the fingerprint, by matrix path, once it was asked for.
        hooks: those of the maps that have one, by matrix path.
        taken_away: what gives each forward back that was taken instead.
        required_grad: the parameters that required a gradient before.
        learns_merged: whether z can learn from merged weights in this model, once it was tried.
    """

    bases: dict[str, Basis]
    matrices: dict[str, Matrix]
    scalers: dict[str, Scaler]
    parameterisation: str
    parameters: ScaleParameters
    mode: Mode
    merger: Merger
    hooks: dict[str, Hook]
    taken_away: list[Callable[[], None]]
    required_grad: list[nn.Parameter]
    probes: dict[str, Probes] = field(default_factory=dict)
    learns_merged: bool | None = None


def state_of(model: Any) -> State | None:
    """The scaling on a model, or None."""
    state = getattr(model, _STATE, None)
    return state if isinstance(state, State) else None


def put_on(
    model: Any, matrices: dict[str, Matrix], bases: dict[str, Basis], parameterisation: str, initial: Scales, keep_base: KeepBase
) -> State:
    """Freeze a model, and put the parameters and the scaling on it."""
    required_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
    merger = Merger(bases, keep_base, shared_parameters(model))
    model.requires_grad_(False)
    parameters, mode = ScaleParameters(initial), Mode()
    model.add_module(_HOLDER, parameters)
    scalers = {path: Scaler(path, basis, parameterisation, parameters, mode) for path, basis in bases.items()}
    hooks: dict[str, Hook] = {}
    taken_away: list[Callable[[], None]] = []
    fused: dict[int, list[tuple[Matrix, Scaler]]] = {}
    for path, matrix in matrices.items():
        if matrix.index is None:
            put = put_around(matrix, scalers[path])
            if isinstance(put, Hook):
                hooks[path] = put
            else:
                taken_away.append(put)
        else:
            fused.setdefault(id(matrix.module), []).append((matrix, scalers[path]))
    taken_away += [put_into(scaled[0][0].module, scaled, mode) for scaled in fused.values()]
    state = State(bases, matrices, scalers, parameterisation, parameters, mode, merger, hooks, taken_away, required_grad)
    setattr(model, _STATE, state)
    return state


def take_off(model: Any, state: State) -> None:
    """Leave a model as `put_on` found it."""
    for hook in state.hooks.values():
        hook.remove()
    for give_back in state.taken_away:
        give_back()
    state.hooks.clear()
    state.taken_away.clear()
    if state_of(model) is state:
        delattr(model, _STATE)
        delattr(model, _HOLDER)
    for parameter in state.required_grad:
        parameter.requires_grad_(True)


def watch(mode: Mode) -> Callable[..., None]:
    """A hook that notes the batch that a decoder layer reads: hidden states of (sequences, tokens, hidden)."""

    def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else named.get("hidden_states")
        if isinstance(hidden, Tensor) and hidden.ndim == 3:
            mode.shape = hidden.shape[0], hidden.shape[1]

    return note
