"""Advantages: what each answer's log-probability is weighted by, from the rewards of all answers of a step.

Deviation from the paper: it has no baseline (`none`). The others lower the gradient's variance; `leave_one_out` and `batch_mean` leave its
direction unbiased (the latter up to a factor of 1 - 1/answers), `group_normalized` (GRPO's) weighs prompts by how much their answers agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY_DEVIATION = 1e-4
"""Beside a deviation, so that answers that all agree have advantage 0: TRL's figure."""


def advantages(rewards: Tensor, kind: str) -> Tensor:
    """The rewards less their baseline.

    Args:
        rewards: (prompts, samples), of all processes.
        kind: `none`; `batch_mean`: the mean of all; `leave_one_out`: the mean of the prompt's other answers; `group_normalized`: the mean
            of the prompt's answers, and the difference divided by their standard deviation.

    Returns:
        (prompts, samples).
    """
    # rewards (prompts, samples)
    if kind == "batch_mean":
        return rewards - rewards.mean()
    if kind == "leave_one_out":
        others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)  # (prompts, samples)
        return rewards - others
    if kind == "group_normalized":
        mean, deviation = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)  # (prompts, 1) each
        return (rewards - mean) / (deviation + _TINY_DEVIATION)
    return rewards


def disagreeing(rewards: Tensor) -> Tensor:
    """Which prompts have answers of different rewards, and so something to choose between.

    Args:
        rewards: (prompts, samples).

    Returns:
        (prompts,), bool.
    """
    return torch.amax(rewards, 1) > torch.amin(rewards, 1)
