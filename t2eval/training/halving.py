"""Halving: how far each run of a sweep goes. Every one to its end, or by successive halving: the better half goes on.

The rule of `sweep: halving`, fixed before it was tried: the runs of a sweep are stopped at an eighth, a quarter, a half and the whole of
their steps, rounded down to a validation; each time the better half, rounded up, goes on from where it stopped. Better is the higher of
the best validation scores so far, the base model's among them; among equals that of the latest validation; among those the earlier place
in the sweep. A run that goes on does what it would have done alone, its schedule of learning rates included, so that the survivors are
runs of the full sweep.

Deviation from successive halving as it was published: the last round may have more than one run, as the number of rounds does not depend
on the number of runs. Nothing here imports torch: a forecast counts with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2eval.training.config import TrainConfig

_PARTS = (8, 4, 2, 1)
"""The stops: the steps divided by these."""


@dataclass(frozen=True)
class Rung:
    """One round of a sweep: so many `runs` train until step `until`."""

    until: int
    runs: int


def rungs(config: TrainConfig) -> tuple[Rung, ...]:
    """The rounds of a configuration's sweep, the last one at its last step; one round where every run goes to its end."""
    runs = len(config.points)
    if config.sweep == "full" or runs == 1:
        return (Rung(config.steps, runs),)
    found: list[Rung] = []
    for part in _PARTS:
        until = config.steps if part == 1 else max(1, config.steps // part // config.validate_every) * config.validate_every
        until = min(until, config.steps)
        if not found or until > found[-1].until:  # a short run has fewer stops
            found.append(Rung(until, runs))
            runs = -(-runs // 2)
    return tuple(found)


def total_steps(config: TrainConfig) -> int:
    """Optimiser steps of all runs of the sweep."""
    before = [0, *(rung.until for rung in rungs(config))]
    return sum(rung.runs * (rung.until - start) for rung, start in zip(rungs(config), before, strict=False))


def total_validations(config: TrainConfig) -> int:
    """Validations of all runs of the sweep; the base model's is one, which they share."""
    before = [0, *(rung.until for rung in rungs(config))]
    every = config.validate_every
    within = sum(rung.runs * (rung.until // every - start // every) for rung, start in zip(rungs(config), before, strict=False))
    last = rungs(config)[-1]
    return 1 + within + last.runs * (last.until % every > 0)


def survivors(validations: Mapping[int, Sequence[Mapping[str, Any]]], rung: Rung, keep: int) -> list[int]:
    """Which runs go on.

    Args:
        validations: of each run of this round, by its place in the sweep: `step` and `score`, in order. A run that was cut off later may
            have been further than this round: what came after it does not count.
        rung: the round.
        keep: how many go on.

    Returns:
        Their places, in the sweep's order.
    """

    def merit(place: int) -> tuple[float, float, int]:
        scores = [float(entry["score"]) for entry in validations[place] if entry["step"] <= rung.until]
        return max(scores), scores[-1], -place

    return sorted(sorted(validations, key=merit, reverse=True)[:keep])
