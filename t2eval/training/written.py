"""Written answers: what a step samples, and learns, for a task whose answers are generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from t2eval.environment.environment import Environment, Example
from t2eval.generation.completion import Completion
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.training.config import TrainConfig
from t2eval.training.importance import log_ratio, weights
from t2eval.training.likelihood import Policy, pad
from t2eval.training.reading import read_prompts
from t2eval.training.trainable import Trainable
from t2eval.vision.features import Reader


@dataclass(frozen=True)
class Measured:
    """What the policy of today thinks of some answers.

    Attributes:
        log_probs: (answers,) log π(ŷ|x), each token weighed by its importance; differentiable.
        penalties: (answers,) the divergence from the base model, summed over the answer's tokens; differentiable.
        log_ratio: the sum over all tokens of |log π now - log π when they were sampled|.
    """

    log_probs: Tensor
    penalties: Tensor
    log_ratio: float


class WrittenAnswers:
    """Sampling and learning of generated answers.

    Args:
        environment, tokenizer, config, reader: the run's.
        policy: how likelihoods are measured.
        penalised: whether the divergence from the base model counts.
    """

    def __init__(
        self, environment: Environment, tokenizer: Any, config: TrainConfig, reader: Reader | None, policy: Policy, penalised: bool
    ) -> None:
        self.environment, self.tokenizer, self.config, self.reader = environment, tokenizer, config, reader
        self.policy, self.penalised = policy, penalised
        self._engine: Engine | None = None
        limit = min(environment.max_new_tokens, config.max_new_tokens or environment.max_new_tokens)
        plain = GenerationSettings(max_new_tokens=limit, until=tuple(environment.until))
        itself = plain.from_the_model_itself(config.temperature)
        never = {"suppress_tokens": list(policy.never)} if policy.never else {}
        self.settings = replace(itself, do_sample=not config.greedy, options={**itself.options, **never})

    def sample(self, trainable: Trainable, examples: Sequence[Example], seed: int, first: int) -> list[Completion]:
        """`config.rollouts` answers to each example, side by side.

        Args:
            trainable: the model.
            examples: this process's.
            seed: of the step.
            first: the number of the first example among those of all processes.
        """
        if self._engine is None:
            self._engine = Engine(trainable.model, self.tokenizer, batch_size=self.config.eval_batch_size, reader=self.reader)
        prompts, features = read_prompts(self.environment, self._engine.encoding, examples, self.reader)
        with trainable.fast():
            return self._engine.complete(prompts, self.settings, samples=self.config.rollouts, seed=seed, features=features, first=first)

    def score(self, examples: Sequence[Example], answers: Sequence[Completion]) -> list[float]:
        """The task's metric for each answer."""
        repeated = [example for example in examples for _ in range(self.config.rollouts)]
        return self.environment.score_many([(example, answer.text) for example, answer in zip(repeated, answers, strict=True)])

    def lengths(self, answers: Sequence[Completion]) -> list[int]:
        """The tokens of each answer."""
        return [len(answer.ids) for answer in answers]

    def truncated(self, answers: Sequence[Completion]) -> list[bool]:
        """Which answers the limit of tokens cut off."""
        return [answer.stopped == "length" for answer in answers]

    def units(self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Completion]) -> list[list[int]]:
        """What is learnt together: each answer alone, the longest first."""
        return [[place] for place in sorted(range(len(answers)), key=lambda place: -len(answers[place].prompt) - len(answers[place].ids))]

    def costs(self, trainable: Trainable, examples: Sequence[Example], units: Sequence[list[int]]) -> list[int]:
        """How many sequences each unit has."""
        return [1] * len(units)

    def longest(
        self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Completion], units: Sequence[list[int]]
    ) -> list[int]:
        """How many tokens the longest sequence of each unit has."""
        return [max(len(answers[place].prompt) + len(answers[place].ids) for place in unit) for unit in units]

    def read(self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Completion]) -> int:
        """How many tokens the model reads in all."""
        return sum(len(each.prompt) + len(each.ids) for each in answers)

    def measure(
        self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Completion], places: Sequence[int], at_once: int
    ) -> Measured:
        """Run the model over some answers.

        Args:
            trainable: the model.
            examples: not looked at.
            answers: of the step. places: which of them.
            at_once: the most sequences of a call; there are no more places than that.
        """
        batch_answers = [answers[place] for place in places]
        batch = pad([(each.prompt, each.ids) for each in batch_answers], trainable.device, [each.features for each in batch_answers])
        base = None
        if self.penalised:
            with torch.no_grad(), trainable.base():
                base = self.policy.states(trainable.model, batch)  # (n, width)
        log_probs, divergences = self.policy.scores(self.policy.states(trainable.model, batch), batch.targets, base)  # (n,) each
        then = torch.tensor([value for each in batch_answers for value in each.log_probs], device=log_probs.device)  # (n,)
        ratio = log_ratio(log_probs, then)  # (n,)
        weighed = log_probs
        if not self.config.greedy and self.config.importance != "never":
            lengths = batch.sums(torch.ones_like(ratio))  # (answers,)
            apart = (batch.sums(ratio.abs()) / lengths)[batch.owners]  # (n,) of the whole answer, a token
            weighed = log_probs * weights(ratio, apart, always=self.config.importance == "always", cap=self.config.importance_cap)
        return Measured(batch.sums(weighed), batch.sums(divergences), float(ratio.abs().sum()))
