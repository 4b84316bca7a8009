"""Sampled: a digest of a model's weights from a few numbers of each, so that two bases of one name can be told apart in a moment."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from t2eval.svf.attachment import attached

_NUMBERS = 1024
"""Of each weight, evenly spread: other training, another seed or another revision changes nearly all of them."""


def sampled_digest(model: Any) -> str:
    """sha256 over the names, shapes and some numbers of a base model's own parameters, as float32: 32 digits.

    The same weights in a wider dtype have the same digest; rounded to a narrower one they have another.

    Args:
        model: a transformers model, without adapters; z beside its matrices does not count.
    """
    scaling = attached(model)
    ours = {id(parameter) for parameter in scaling.trainable().values()} if scaling is not None else set()
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if id(parameter) in ours or parameter.is_meta:
            continue
        flat = parameter.detach().reshape(-1)  # (numbers,)
        places = torch.linspace(0, flat.numel() - 1, min(_NUMBERS, flat.numel()), dtype=torch.float64, device="cpu").long()
        chosen = flat[places.to(flat.device)].float().cpu().contiguous()  # (at most _NUMBERS,)
        found.update(f"{name}|{tuple(parameter.shape)}|".encode() + chosen.numpy().tobytes())
    return found.hexdigest()[:32]
