"""Reinforce: the policy gradient with a KL penalty, from the correctness of sampled answers alone (the paper's eq. 1).

    J(θ) = E_{ŷ ~ π_θ(·|x)} [ log π_θ(ŷ|x) · r(ŷ, y) ] − λ · D_KL(π_θ ‖ π_base)

`log π_θ(ŷ|x)` is the sum over the answer's tokens (with those of the stop string). The penalty is the sum over the same tokens of the exact
divergence between the two next-token distributions over the whole vocabulary. Both are means over the answers of the batch. r is 1 for
an answer that the task's main metric scores 0.5 or more, `wrong_reward` for another.

For a choice task the policy is the softmax of the choices' log-likelihoods: a choice is sampled, rewarded by the task's metric, and the
penalty is the exact divergence between the two distributions over the choices.

Deviations from the paper: (1) the batch's mean reward may be subtracted as a baseline. (2) As usual, the penalty's gradient is that of the
per-token divergences at the sampled prefixes; the prefixes' own probabilities are not differentiated for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from t2eval.environment.environment import Environment, Example
from t2eval.generation.rollouts import (
    Rollout,
    Rows,
    Sampler,
    answer_logits,
    choice_likelihoods,
    choice_pairs,
    pad_rows,
    read_prompts,
    token_log_probs,
)
from t2eval.training.config import TrainConfig
from t2eval.training.methods import Trainable
from t2eval.vision.features import Reader

Direction = Literal["new_to_base", "base_to_new"]
Backward = Callable[[Tensor], Any]
_RIGHT = 0.5


def advantages(rewards: Tensor, baseline: str) -> Tensor:
    """What each answer's log-probability is weighted by.

    Args:
        rewards: (prompts, rollouts).
        baseline: `none`, `batch_mean`, or `leave_one_out`: the mean of the prompt's other rollouts.

    Returns:
        (prompts, rollouts): the rewards less the baseline.
    """
    if baseline == "batch_mean":
        return rewards - rewards.mean()
    if baseline == "leave_one_out":
        return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards


def divergence(new: Tensor, base: Tensor, direction: Direction) -> Tensor:
    """The exact Kullback-Leibler divergence of categorical distributions.

    Args:
        new: (…, outcomes) logits of the policy; differentiable.
        base: (…, outcomes) logits of the base model.
        direction: `new_to_base`: D(new ‖ base), the paper's; `base_to_new`: D(base ‖ new).

    Returns:
        (…), in nats.
    """
    new, base = new.log_softmax(-1), base.log_softmax(-1)
    first, second = (new, base) if direction == "new_to_base" else (base, new)
    return (first.exp() * (first - second)).sum(-1)


def policy_loss(log_probs: Tensor, advantage: Tensor, penalty: Tensor, coefficient: float) -> Tensor:
    """The loss of each answer, (rows): −advantage · log π(ŷ|x) + λ · KL; its mean over the batch is −J.

    Args:
        log_probs: (rows) of whole answers. advantage: (rows). penalty: (rows) KL. coefficient: λ.
    """
    return -advantage * log_probs + coefficient * penalty


@dataclass
class _Totals:
    loss: float = 0.0
    kl: float = 0.0


class Reinforce:
    """The objective of one run.

    Args:
        environment: the task.
        tokenizer: the model's.
        config: batch, rollouts, KL, baseline, temperature, …
        reader: for a task with images.
    """

    def __init__(self, environment: Environment, tokenizer: Any, config: TrainConfig, reader: Reader | None = None) -> None:
        self.environment, self.tokenizer, self.config, self.reader = environment, tokenizer, config, reader
        self.coefficient = config.sweep_values("kl")[0]
        self._sampler: Sampler | None = None

    @property
    def prompts(self) -> int:
        """How many examples a step draws."""
        return self.config.batch_size // self.config.rollouts

    def step(self, trainable: Trainable, model: Any, examples: Sequence[Example], seed: int, backward: Backward) -> dict[str, float]:
        """Sample answers, reward them, and accumulate the gradient of −J.

        Args:
            trainable: the model, for its rollouts and its base.
            model: the same, as wrapped for training.
            examples: of this step.
            seed: of this step's randomness.
            backward: called with each part of the loss.

        Returns:
            `loss`, `reward` (mean), `accuracy`, `kl` (nats an answer), `tokens` (mean length of an answer).
        """
        repeated = [example for example in examples for _ in range(self.config.rollouts)]
        generator = None if self.config.greedy else torch.Generator().manual_seed(seed)
        trainable.eval_mode()
        play = self._play_texts if self.environment.kind == "generate" else self._play_choices
        answers, scores, length = play(trainable, repeated, generator)
        right = torch.tensor(scores) >= _RIGHT
        rewards = torch.where(right, 1.0, self.config.wrong_reward)
        advantage = advantages(rewards.view(len(examples), -1), self.config.baseline).flatten().to(trainable.device)
        trainable.train_mode()
        learn = self._learn_texts if self.environment.kind == "generate" else self._learn_choices
        totals = _Totals()
        for log_probs, penalty, places in learn(trainable, model, repeated, answers):
            losses = policy_loss(log_probs, advantage[places], penalty, self.coefficient)
            loss = losses.sum() / len(repeated)
            backward(loss)
            totals.loss += loss.item()
            totals.kl += penalty.sum().item() / len(repeated)
        return {
            "loss": totals.loss,
            "reward": rewards.mean().item(),
            "accuracy": right.float().mean().item(),
            "kl": totals.kl,
            "tokens": length,
        }

    # ------------------------------------------------------------------ generated answers
    def _play_texts(self, trainable: Trainable, examples: Sequence[Example], generator: Any) -> tuple[list[Any], list[float], float]:
        if self._sampler is None:
            tokens = min(self.environment.max_new_tokens, self.config.max_new_tokens or self.environment.max_new_tokens)
            self._sampler = Sampler(trainable.model, self.tokenizer, self.environment.until, tokens)
        prompts, images = read_prompts(self.environment, self.tokenizer, examples, self.reader)
        with trainable.fast():
            rollouts = self._sampler.generate(
                prompts, batch_size=self.config.eval_batch_size, temperature=self.config.temperature, generator=generator, images=images
            )
        scores = self.environment.score_many([(example, rollout.text) for example, rollout in zip(examples, rollouts, strict=True)])
        return list(rollouts), scores, sum(len(rollout.answer) for rollout in rollouts) / len(rollouts)

    def _learn_texts(
        self, trainable: Trainable, model: Any, examples: Sequence[Example], answers: list[Rollout]
    ) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        order = sorted(range(len(answers)), key=lambda place: -len(answers[place].prompt) - len(answers[place].answer))
        for start in range(0, len(order), self.config.micro_batch):
            places = order[start : start + self.config.micro_batch]
            batch = [answers[place] for place in places]
            pairs = [(rollout.prompt, rollout.answer) for rollout in batch]
            rows = pad_rows(pairs, trainable.device, images=[rollout.images for rollout in batch])
            reference = self._reference(trainable, rows)
            logits = answer_logits(model, rows)
            log_probs = token_log_probs(logits, rows).sum(-1)
            penalty = torch.zeros_like(log_probs)
            if reference is not None:
                penalty = (divergence(logits, reference, self.config.kl_direction) * rows.mask).sum(-1)
            yield log_probs, penalty, places

    def _reference(self, trainable: Trainable, rows: Rows) -> Tensor | None:
        """The base model's logits of the same rows, or None where the penalty is off."""
        if self.coefficient == 0:
            return None
        with torch.no_grad(), trainable.base():
            return answer_logits(trainable.model, rows)

    # ------------------------------------------------------------------ choices
    def _play_choices(self, trainable: Trainable, examples: Sequence[Example], generator: Any) -> tuple[list[Any], list[float], float]:
        unique = examples[:: self.config.rollouts]
        with trainable.fast():
            found = choice_likelihoods(
                trainable.model, self.tokenizer, unique, device=trainable.device, batch_size=self.config.eval_batch_size
            )
        chosen, scores = [], []
        for place, example in enumerate(examples):
            likelihoods = torch.tensor([value for value, _ in found[place // self.config.rollouts][: len(example.choices or ())]])
            choice = self._draw(likelihoods, generator)
            chosen.append(choice)
            certain = [0.0 if index == choice else -1e6 for index in range(len(likelihoods))]
            certain += [0.0] * (len(example.requests) - len(certain))
            scores.append(self.environment.score_choice(example, certain, [index == choice for index in range(len(certain))]))
        return chosen, scores, 1.0

    def _draw(self, likelihoods: Tensor, generator: torch.Generator | None) -> int:
        if generator is None:
            return int(likelihoods.argmax())
        return int(torch.multinomial((likelihoods / self.config.temperature).softmax(-1), 1, generator=generator))

    def _learn_choices(
        self, trainable: Trainable, model: Any, examples: Sequence[Example], answers: list[Any]
    ) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        rollouts = self.config.rollouts
        per_batch = max(1, self.config.micro_batch // max(len(example.choices or ()) for example in examples))
        groups = list(range(0, len(examples), rollouts))
        for start in range(0, len(groups), per_batch):
            firsts = groups[start : start + per_batch]
            counts = [len(examples[first].choices or ()) for first in firsts]
            pairs = [
                pair for first, count in zip(firsts, counts, strict=True) for pair in choice_pairs(self.tokenizer, examples[first])[:count]
            ]
            rows = pad_rows(pairs, trainable.device)
            reference = self._reference(trainable, rows)
            sums = token_log_probs(answer_logits(model, rows), rows).sum(-1)
            new = torch.split(sums, counts)
            base: Sequence[Tensor | None] = [None] * len(counts)
            if reference is not None:
                base = torch.split(token_log_probs(reference, rows).sum(-1), counts)
            log_probs, penalties, places = [], [], []
            for first, scores, old in zip(firsts, new, base, strict=True):
                penalty = divergence(scores, old, self.config.kl_direction) if old is not None else scores.new_zeros(())
                policy = (scores / self.config.temperature).log_softmax(-1)
                for place in range(first, first + rollouts):
                    log_probs.append(policy[answers[place]])
                    penalties.append(penalty)
                    places.append(place)
            yield torch.stack(log_probs), torch.stack(penalties), places
