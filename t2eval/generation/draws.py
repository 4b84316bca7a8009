"""Draws: the random numbers of sampling, each known by (seed, sequence, position) alone.

A token is drawn by the inverse of its distribution's cumulative sum at a uniform number. The number comes from a hash on the host,
so it is the same whatever else is in the batch, on any device, and in any number of processes; what goes to the device is one float64 a
token, and what comes back is the token's id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: each bit of the state moves half of the result's."""
    state = (state ^ (state >> np.uint64(30))) * _MULTIPLIERS[0]
    state = (state ^ (state >> np.uint64(27))) * _MULTIPLIERS[1]
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed


def uniforms(seed: int, sequences: Sequence[int], positions: int) -> Tensor:
    """The numbers of each sequence's first `positions` draws, (sequences, positions) float64 in [0, 1)."""
    with np.errstate(over="ignore"):
        start = _mixed(np.asarray([seed % 2**64], dtype=np.uint64) + _STEP)  # (1,)
        each = _mixed(start + _STEP * (np.asarray(sequences, dtype=np.uint64) + np.uint64(1)))  # (sequences,)
        places = np.arange(1, positions + 1, dtype=np.uint64)  # (positions,)
        bits = _mixed(each[:, None] + _STEP * places[None, :])  # (sequences, positions)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def drawn(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """One token a sequence, by the inverse of the cumulative distribution. Nothing leaves the device, and nothing waits for it.

    Args:
        log_probs: (sequences, vocabulary) float32.
        uniform: (sequences,) float64 in [0, 1).

    Returns:
        (sequences,) int64: a token whose probability is not 0.
    """
    exact = torch.float32 if log_probs.device.type == "mps" else torch.float64  # MPS has no float64
    cumulative = log_probs.exp().cumsum(-1, dtype=exact)  # (sequences, vocabulary)
    total = cumulative[:, -1:].contiguous()  # (sequences, 1): 1 up to rounding
    token = torch.searchsorted(cumulative, uniform[:, None].to(exact) * total, right=True)  # the first whose sum is above
    last = torch.searchsorted(cumulative, total)  # the last token that has any probability
    return torch.minimum(token, last)[:, 0].clamp(max=log_probs.shape[-1] - 1)  # NaN sorts behind everything: the engine names it
