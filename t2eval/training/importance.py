"""Importance: how far the policy that learns is from the one that sampled, and the weights that make up for it.

Both are meant to be the same model with the same z. They differ by rounding: answers are sampled from merged weights, which in bfloat16
lose much of a small z - 1, and through another order of sums; and the loss is computed through the scaling hooks. The gradient of the
policy that learns, E_{ŷ ~ sampled}[ρ A ∇log π(ŷ)] with ρ = π(ŷ) / π_sampled(ŷ), is had by weighing with ρ; it is taken a token at a time
and truncated from above, as in TRL's correction for answers sampled by another engine (vLLM).
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 1e-3
"""The mean |log ρ| a token of an answer from which on `auto` weighs it. In float32 it is some 1e-6, in bfloat16 some 1e-2."""


def log_ratio(now: Tensor, then: Tensor) -> Tensor:
    """log ρ of each token, detached.

    Args:
        now: (tokens,) log-probabilities of the policy that learns. then: (tokens,) when they were sampled.
    """
    return now.detach() - then.to(now.dtype)


def weights(ratio: Tensor, apart: Tensor, *, always: bool, cap: float) -> Tensor:
    """The weight of each token's log-probability.

    Args:
        ratio: (tokens,) log ρ.
        apart: (tokens,) the mean |log ρ| a token of the answer that each token is in.
        always: weigh answers below the threshold too.
        cap: the largest weight.

    Returns:
        (tokens,): min(ρ, cap), or 1 where the policies are the same but for the last digits.
    """
    truncated = ratio.exp().clamp(max=cap)
    return truncated if always else torch.where(apart > THRESHOLD, truncated, torch.ones_like(truncated))
