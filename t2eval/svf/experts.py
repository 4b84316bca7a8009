"""Routed experts: z around the matrices of a mixture that lie in one parameter, by a forward pass of our own.

Whichever of transformers' implementations a model is set to (eager, batched or grouped products), the parameters are read whole, so no
hook sees one expert. While a z is in force, the tokens of each expert are gathered, scaled and multiplied here, expert by expert;
otherwise the module's own forward runs. Sums over the experts are taken as in transformers' grouped form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from t2eval.errors import T2Error
from t2eval.svf.hooks import Mode, Scaler, take_forward
from t2eval.svf.matrices import Matrix

Place = tuple[str, int | None]
"""A parameter's name and an expert's number."""


def put_into(module: nn.Module, scaled: list[tuple[Matrix, Scaler]], mode: Mode) -> Callable[[], None]:
    """Scale the matrices of routed experts whenever their module is called.

    Returns:
        What takes the scaling away again.

    Raises:
        T2Error: the experts are spread over devices.
    """
    if getattr(module, "_is_expert_parallel", False):
        raise T2Error(f"{scaled[0][0].path}: the experts are spread over processes. Load the model without expert parallelism.")
    by_place = {(matrix.name, matrix.index): scaler for matrix, scaler in scaled}
    return take_forward(module, functools.partial(_forward, by_place, mode))


def _forward(scalers: Mapping[Place, Scaler], mode: Mode, module: Any, own: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    deltas = {place: (scaler, delta) for place, scaler in scalers.items() if (delta := scaler.delta()) is not None}
    return _by_expert(module, deltas, mode, *arguments, **named) if deltas else own(*arguments, **named)


def _by_expert(
    module: Any,
    deltas: Mapping[Place, tuple[Scaler, Tensor]],
    mode: Mode,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """The experts' sum for each token.

    Args:
        module: with parameters gate_up_proj or up_proj, and down_proj.
        deltas: the scaler and z - 1 of each matrix that is scaled.
        mode: knows the sequences where there is one z for each.
        hidden_states: (tokens, hidden).
        top_k_index: (tokens, k) the chosen experts. A number beyond the last stands for none.
        top_k_weights: (tokens, k).

    Returns:
        (tokens, hidden)
    """
    tokens, k = top_k_index.shape
    count = len(module.down_proj)
    chosen, order = torch.sort(top_k_index.reshape(-1).clamp(max=count), stable=True)  # (tokens * k,) pairs, by expert
    sizes = torch.bincount(chosen, minlength=count + 1).tolist()
    sequence = _sequence_of(mode, tokens, hidden_states.device)  # (tokens,) or None
    first = "gate_up_proj" if module.has_gate else "up_proj"
    found = []
    for expert, pairs in enumerate(torch.split(order, sizes)):  # pairs: (n,)
        if not len(pairs):
            continue
        token = pairs // k  # (n,)
        if expert == count:
            found.append(hidden_states.new_zeros(len(pairs), hidden_states.shape[-1]))
            continue
        of = None if sequence is None else sequence[token]  # (n,)
        inner = _mapped(module, first, expert, hidden_states[token], deltas, of)  # (n, 2 * inner), or (n, inner) without a gate
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)  # (n, inner)
        out = _mapped(module, "down_proj", expert, inner, deltas, of)  # (n, hidden)
        if getattr(module, "has_post_expert_norm", False):
            out = module.post_expert_norm(out)
        found.append(out * top_k_weights.reshape(-1)[pairs, None])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    together = torch.cat(found)[back].view(tokens, k, -1)  # (tokens, k, hidden), in the tokens' order
    return together.sum(dim=1).to(hidden_states.dtype)


def _mapped(
    module: Any,
    name: str,
    expert: int,
    x: Tensor,
    deltas: Mapping[Place, tuple[Scaler, Tensor]],
    sequences: Tensor | None,
) -> Tensor:
    """x (n, in) through one expert's matrix, scaled: (n, out)."""
    scaler, delta = deltas.get((name, expert), (None, None))
    if scaler is not None and delta is not None and scaler.basis.side == "input":
        x = scaler.scale(x, delta, sequences if delta.ndim == 2 else None)
    held = getattr(module, name)[expert]
    y = x @ held if module.is_transposed else nn.functional.linear(x, held)
    if scaler is not None and delta is not None and scaler.basis.side == "output":
        y = scaler.scale(y, delta, sequences if delta.ndim == 2 else None)
    return y + getattr(module, f"{name}_bias")[expert].to(y.dtype) if module.has_bias else y


def _sequence_of(mode: Mode, tokens: int, device: torch.device) -> Tensor | None:
    """The sequence of each token of a flattened batch, (tokens,); None where one z is for all."""
    if mode.source != "sequences" or mode.off or mode.merged:
        return None
    if mode.shape is None or mode.shape[0] * mode.shape[1] != tokens:
        raise T2Error(f"One z a sequence: the routed experts see {tokens} tokens of a batch of {mode.shape or 'unknown shape'}.")
    return torch.arange(mode.shape[0], device=device).repeat_interleave(mode.shape[1])
