"""Batches: prompts with their answers as one padded tensor, and the logits and log-probabilities of the answers under a model.

What learning is done on: unlike the engine's batches these carry gradients, and the answers are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t2eval.vision.features import Features, image_arguments


@dataclass(frozen=True)
class PaddedBatch:
    """Prompts flush right and answers flush left, so that one slice of the logits has all answers.

    Attributes:
        tokens, attention, positions: (sequences, prompt + answer), int64.
        answers: (sequences, answer) token ids.
        mask: (sequences, answer) float32, 1 on an answer's tokens.
        images: the features of each sequence's images.
    """

    tokens: Tensor
    attention: Tensor
    positions: Tensor
    answers: Tensor
    mask: Tensor
    images: tuple[Features | None, ...] = ()


def pad_pairs(
    pairs: Sequence[tuple[list[int], list[int]]], device: Any, padding: int = 0, images: Sequence[Features | None] = ()
) -> PaddedBatch:
    """(prompt, answer) token ids as one padded batch.

    Args:
        pairs: each answer has at least one token, each prompt too.
        device: of the tensors.
        padding: the id that fills.
        images: the features of each prompt's images.
    """
    left, right = max(len(prompt) for prompt, _ in pairs), max(len(answer) for _, answer in pairs)
    tokens = torch.full((len(pairs), left + right), padding, dtype=torch.long)  # (sequences, prompt + answer)
    attention = torch.zeros_like(tokens)
    for place, (prompt, answer) in enumerate(pairs):
        tokens[place, left - len(prompt) : left + len(answer)] = torch.tensor(prompt + answer)
        attention[place, left - len(prompt) : left + len(answer)] = 1
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    tokens, attention, positions = tokens.to(device), attention.to(device), positions.to(device)
    return PaddedBatch(tokens, attention, positions, tokens[:, left:], attention[:, left:].float(), tuple(images))


def answer_logits(model: Callable[..., Any], batch: PaddedBatch) -> Tensor:
    """The float32 logits (sequences, answer, vocabulary) that predict each answer token. Differentiable."""
    length = batch.answers.shape[1]
    out = model(
        input_ids=batch.tokens,
        attention_mask=batch.attention,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=length + 1,
        **image_arguments(batch.images),
    )
    logits: Tensor = out.logits[:, -length - 1 : -1].float()
    return logits


def token_log_probs(logits: Tensor, batch: PaddedBatch) -> Tensor:
    """Log-probability of each answer token, (sequences, answer), 0 on the padding."""
    return logits.log_softmax(-1).gather(-1, batch.answers[..., None])[..., 0] * batch.mask
