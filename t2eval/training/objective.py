"""Objective: what one step learns, in the three parts that the loop calls: `sample`, `reward`, `learn`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from t2eval.environment.environment import Example
from t2eval.training.trainable import Trainable

Backward = Callable[[Tensor], Any]
Gather = Callable[[Tensor], Tensor]
_Plays = TypeVar("_Plays")
"""What a step sampled on one process, and what that is worth."""


def alone(rows: Tensor) -> Tensor:
    """`gather` where there is one process."""
    return rows


class Objective(ABC, Generic[_Plays]):
    """What a step learns: `Reinforce` or `Supervised`."""

    @property
    @abstractmethod
    def prompts(self) -> int:
        """How many examples a step draws, over all processes."""

    @abstractmethod
    def sample(self, trainable: Trainable, examples: Sequence[Example], seed: int, first: int = 0) -> _Plays:
        """Answers to this process's examples, without gradients; the draws depend on (seed, first + place)."""

    @abstractmethod
    def reward(self, plays: _Plays, gather: Gather = alone) -> None:
        """Reward them, and weigh each among those of all processes; `gather` puts the rows of all under one another."""

    @abstractmethod
    def learn(self, trainable: Trainable, plays: _Plays, backward: Backward) -> dict[str, float]:
        """Hand this process's parts of the loss to `backward`; returns the step's figures, the same on all processes."""

    def step(
        self,
        trainable: Trainable,
        examples: Sequence[Example],
        seed: int,
        backward: Backward,
        *,
        gather: Gather = alone,
        first: int = 0,
    ) -> dict[str, float]:
        """`sample`, `reward` and `learn` in one: accumulates the gradient of the loss."""
        plays = self.sample(trainable, examples, seed, first)
        self.reward(plays, gather)
        return self.learn(trainable, plays, backward)
