"""Chosen answers: what a step samples, and learns, for a task that offers its answers.

The policy is the softmax of the choices' log-likelihoods, divided by the temperature. A choice is sampled and rewarded by the task's
metric; the penalty is the exact divergence from the base model's distribution over the choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from t2eval.environment.environment import Environment, Example
from t2eval.generation.draws import uniforms
from t2eval.training.choices import ChoicePolicy, Pairs
from t2eval.training.config import TrainConfig
from t2eval.training.importance import log_ratio, weights
from t2eval.training.likelihood import Policy, divergence
from t2eval.training.reading import PairReader
from t2eval.training.trainable import Trainable
from t2eval.training.written import Measured

_NEVER = -1e6
"""A log-likelihood that no metric takes for that of the answer."""


@dataclass(frozen=True)
class Pick:
    """A sampled choice: its place among the example's choices, and its log-probability under the policy."""

    choice: int
    log_prob: float


class ChosenAnswers:
    """Sampling and learning of answer choices.

    Args:
        environment, tokenizer, config: the run's.
        policy: how likelihoods are measured; at temperature 1, as that of choices is another.
        penalised: whether the divergence from the base model counts.
    """

    def __init__(self, environment: Environment, tokenizer: Any, config: TrainConfig, policy: Policy, penalised: bool) -> None:
        self.environment, self.config, self.penalised = environment, config, penalised
        self._policy, self._tokenizer = policy, tokenizer
        self._temperature = 1.0 if config.greedy else config.temperature
        self._choices: ChoicePolicy | None = None
        self._pairs: PairReader | None = None

    def _policy_of(self, trainable: Trainable) -> ChoicePolicy:
        if self._choices is None:
            self._choices = ChoicePolicy(self._policy, trainable.model)
        return self._choices

    def _pairs_of(self, trainable: Trainable, examples: Sequence[Example]) -> list[Pairs]:
        """Of each example, the token ids of its choices as lm-eval would send them."""
        if self._pairs is None:
            self._pairs = PairReader(self._tokenizer, trainable.model.config)
        texts = [
            ((example.split, example.index, place), *request) for example in examples for place, request in enumerate(_offered(example))
        ]
        flat = iter(self._pairs.read(texts))
        return [list(islice(flat, len(_offered(example)))) for example in examples]

    @torch.no_grad()
    def sample(self, trainable: Trainable, examples: Sequence[Example], seed: int, first: int) -> list[Pick]:
        """`config.rollouts` choices for each example, side by side (arguments as for written answers)."""
        policy, samples = self._policy_of(trainable), self.config.rollouts
        with trainable.fast():
            likelihoods = self._in_batches(policy, trainable, self._pairs_of(trainable, examples))
        draws = uniforms(seed, range(first * samples, (first + len(examples)) * samples), 1)[:, 0]  # (answers,) float64
        picks = []
        for place, draw in enumerate(draws):
            log_probs = (likelihoods[place // samples].double().cpu() / self._temperature).log_softmax(-1)  # (choices,)
            below = (log_probs.exp().cumsum(-1) <= draw).sum()  # the choices whose share of [0, 1) lies before the draw
            choice = int(log_probs.argmax() if self.config.greedy else below.clamp(max=len(log_probs) - 1))
            picks.append(Pick(choice, float(log_probs[choice])))
        return picks

    def _in_batches(self, policy: ChoicePolicy, trainable: Trainable, pairs: Sequence[Pairs]) -> list[Tensor]:
        found: list[Tensor] = []
        start = 0
        while start < len(pairs):
            end, total = start + 1, policy.sequences(pairs[start])
            while end < len(pairs) and (total := total + policy.sequences(pairs[end])) <= self.config.eval_batch_size:
                end += 1
            found += policy.likelihoods(trainable.model, pairs[start:end], at_once=self.config.eval_batch_size)
            start = end
        return found

    def score(self, examples: Sequence[Example], answers: Sequence[Pick]) -> list[float]:
        """The task's metric where the model is certain of the choice."""
        scores = []
        for place, pick in enumerate(answers):
            example = examples[place // self.config.rollouts]
            certain = [0.0 if index == pick.choice else _NEVER for index in range(len(_offered(example)))]
            certain += [0.0] * (len(example.requests) - len(certain))
            scores.append(self.environment.score_choice(example, certain, [index == pick.choice for index in range(len(certain))]))
        return scores

    def lengths(self, answers: Sequence[Pick]) -> list[int]:
        """One each: a choice is one decision."""
        return [1] * len(answers)

    def truncated(self, answers: Sequence[Pick]) -> list[bool]:
        """None."""
        return [False] * len(answers)

    def units(self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Pick]) -> list[list[int]]:
        """What is learnt together: all answers to one example, which share its likelihoods; the longest example first."""
        pairs, samples = self._pairs_of(trainable, examples), self.config.rollouts
        order = sorted(range(len(examples)), key=lambda place: -sum(len(context) + len(more) for context, more in pairs[place]))
        return [list(range(place * samples, (place + 1) * samples)) for place in order]

    def costs(self, trainable: Trainable, examples: Sequence[Example], units: Sequence[list[int]]) -> list[int]:
        """How many sequences each unit has."""
        policy, samples = self._policy_of(trainable), self.config.rollouts
        pairs = self._pairs_of(trainable, [examples[unit[0] // samples] for unit in units])
        return [policy.sequences(choices) for choices in pairs]

    def longest(self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Pick], units: Sequence[list[int]]) -> list[int]:
        """How many tokens the longest sequence of each unit has."""
        policy, samples = self._policy_of(trainable), self.config.rollouts
        return [policy.longest(choices) for choices in self._pairs_of(trainable, [examples[unit[0] // samples] for unit in units])]

    def read(self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Pick]) -> int:
        """How many tokens the model reads in all, each choice with a context of its own."""
        return sum(len(context) + len(more) for choices in self._pairs_of(trainable, examples) for context, more in choices)

    def measure(
        self, trainable: Trainable, examples: Sequence[Example], answers: Sequence[Pick], places: Sequence[int], at_once: int
    ) -> Measured:
        """Run the model over the choices of some answers' examples (arguments as for written answers; an example's side by side)."""
        policy, samples = self._policy_of(trainable), self.config.rollouts
        asked = list(dict.fromkeys(place // samples for place in places))
        pairs = self._pairs_of(trainable, [examples[each] for each in asked])
        base: list[Tensor] = []
        if self.penalised:
            with torch.no_grad(), trainable.base():
                base = policy.likelihoods(trainable.model, pairs, at_once=at_once)
        new = policy.likelihoods(trainable.model, pairs, at_once=at_once)
        log_probs, penalties = [], []  # of each example: (its answers,) and, for each of them, ()
        for number, scores in enumerate(each / self._temperature for each in new):  # (choices,)
            own = [place for place in places if place // samples == asked[number]]
            log_probs.append(scores.log_softmax(-1)[[answers[place].choice for place in own]])
            zero = scores.new_zeros(())
            penalty = divergence(scores, base[number] / self._temperature, self.config.kl_direction) if base else zero
            penalties.append(penalty.expand(len(own)))
        now = torch.cat(log_probs)  # (answers,)
        ratio = log_ratio(now, torch.tensor([answers[place].log_prob for place in places], device=now.device))
        weighed = now
        if not self.config.greedy and self.config.importance != "never":
            weighed = now * weights(ratio, ratio.abs(), always=self.config.importance == "always", cap=self.config.importance_cap)
        return Measured(weighed, torch.cat(penalties), float(ratio.abs().sum()))


def _offered(example: Example) -> Sequence[tuple[str, str]]:
    """The requests of the choices; some metrics have more requests than choices."""
    return example.requests[: len(example.choices or ())]
