"""Vectors: a prompt as one vector, the mean over its tokens of what the model's last layer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from t2eval.errors import T2Error
from t2eval.generation.engine import Engine
from t2eval.generation.loop import padded


@torch.no_grad()
def prompt_vectors(engine: Engine, texts: Sequence[str]) -> Tensor:
    """The vector of each text: (texts, hidden) float32, on the CPU.

    Args:
        engine: the model, with its base weights; its tokenizer reads the texts as it reads prompts. Tokens and seconds count as its usage.
        texts: what is read. Of those beyond the model's longest sequence the beginning is cut off; an empty one is its first token.

    Raises:
        T2Error: the model does not give hidden states, or some that are not finite.
    """
    ids = [(engine.encode(text) or [engine.encoding.first_token])[-engine.max_length :] for text in texts]
    found: dict[int, Tensor] = {}
    order = sorted(range(len(ids)), key=lambda place: (len(ids[place]), place))
    start = 0
    while start < len(order):
        end = min(start + engine.batch_size, len(order))
        if not engine.decoder.paddable:
            end = next((place for place in range(start, end) if len(ids[order[place]]) != len(ids[order[start]])), end)
        places = order[start:end]
        found.update(zip(places, _means(engine, [ids[place] for place in places]), strict=True))
        engine.usage.tokens += sum(len(ids[place]) for place in places)
        start = end
    return torch.stack([found[place] for place in range(len(ids))]) if ids else torch.empty(0, 0)


def _means(engine: Engine, ids: list[list[int]]) -> Tensor:
    """(sequences, hidden) float32 on the CPU, of one batch. Padding stands on the right, where a causal model does not look."""
    tokens, mask = padded(ids, engine.encoding.padding, "right", engine.decoder.device)  # (sequences, longest) each
    base: Any = engine.decoder.base.base_model
    hidden = getattr(base(input_ids=tokens, attention_mask=mask), "last_hidden_state", None)  # (sequences, longest, hidden)
    if hidden is None:
        raise T2Error(f"{type(engine.decoder.base).__name__} gives no hidden states, by which prompts could be compared: use t2-prompt.")
    kept = mask[..., None].float()
    mean: Tensor = (hidden.float() * kept).sum(dim=1) / kept.sum(dim=1)  # (sequences, hidden)
    if not bool(torch.isfinite(mean).all()):
        raise T2Error(f"{type(engine.decoder.base).__name__} gave hidden states that are not finite. Load it in float32 or bfloat16.")
    return mean.cpu()
