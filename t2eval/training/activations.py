"""Activations: the main memory that a forward and backward pass keeps, by count.

A GPU says by an exception that a pass does not fit, and `Parts` halves it. Main memory is promised where there is none, and the system
kills, without a word, whoever then uses it. So on a CPU a pass has as many tokens as this count has room for.

The backward pass wants about what each linear map reads and writes of a token, one number each: 1.04 times as much was kept of
SmolLM2-135M under z, 1.10 times of the embedded base (what autograd saves, beside parameters and singular bases).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from t2eval.basemodel.devices import available_cores, free_memory
from t2eval.svf.matrices import decoder_layers, is_fused, matrices_of

_ABOVE = 1.25
"""Kept numbers over counted ones, with some to spare."""
_SHARE = 0.5
"""Of the free memory; the rest is for gradients, for logits, and for whatever else runs."""


def bytes_a_token(model: Any, *, again: bool = False) -> int:
    """What a forward pass with gradients keeps of each token, padding included.

    Args:
        model: a causal model, with or without an adapter.
        again: whether each decoder layer keeps its input alone and is computed again (`checkpoint_activations`).
    """
    _, layers = decoder_layers(model)
    counts = [_numbers(layer, model) for layer in layers]
    text = model.config.get_text_config(decoder=True)
    numbers = len(layers) * int(text.hidden_size) + max(counts) if again else sum(counts)
    return int(numbers * torch.finfo(model.dtype).bits // 8)


def _numbers(layer: nn.Module, model: Any) -> float:
    """What a layer keeps of a token. Of a mixture's experts only those count that a token goes to."""
    total = 0.0
    for module in layer.modules():
        held = matrices_of(module, "")
        share = _experts_a_token(model) / len({each.index for each in held}) if is_fused(module) else 1.0
        total += min(1.0, share) * sum(sum(each.shape) for each in held)
    return _ABOVE * total


def _experts_a_token(model: Any) -> float:
    """How many of a layer's routed experts see a token; all of them where the configuration does not say."""
    return float(getattr(model.config.get_text_config(decoder=True), "num_experts_per_tok", None) or torch.inf)


def tokens_with_room(model: Any, *, again: bool = False) -> int | None:
    """How many tokens of one pass main memory has room for now.

    Args:
        model, again: as for `bytes_a_token`.

    Returns:
        At least 1; None on an accelerator, and where nobody can say.
    """
    device = torch.device(model.device)
    free = free_memory(device) if device.type == "cpu" else None
    return None if free is None else max(1, int(_SHARE * _of_the_machine() * free / bytes_a_token(model, again=again)))


def _of_the_machine() -> float:
    """This process's part of the machine, by its threads: trainings side by side divide the cores among them, and see the same memory."""
    return min(1.0, torch.get_num_threads() / available_cores())
