"""Reinforce: the policy gradient with a KL penalty, from the correctness of sampled answers alone (the paper's eq. 1).

    J(θ) = E_{ŷ ~ π_θ(·|x)} [ log π_θ(ŷ|x) · r(ŷ, y) ] − λ · D_KL(π_θ ‖ π_base)

`log π_θ(ŷ|x)` is the sum over the answer's tokens (with those of the stop string), under the very policy that it was sampled from:
temperature included, and with nothing of the model's generation config in between. The penalty is the sum over the same tokens of the exact
divergence between the two next-token distributions over the whole vocabulary, at that temperature. Both are means over the answers of the
batch. r is 1 for an answer that the task's main metric scores 0.5 or more, `wrong_reward` for another.

For a choice task the policy is the softmax of the choices' log-likelihoods (`t2eval.training.chosen`).

Deviations from the paper: (1) a baseline may be subtracted from the rewards (`t2eval.training.advantages`). (2) As usual, the penalty's
gradient is that of the per-token divergences at the sampled prefixes; the prefixes' own probabilities are not differentiated for it.
(3) Where rounding makes the policy that samples another than the one that learns, tokens are weighed by their truncated importance
(`t2eval.training.importance`). (4) As settings, all off unless asked for: prompts whose answers all have the same reward, and answers that
the limit of tokens cut off, may be left out, and the loss may be a mean over tokens instead of one over answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from t2eval.environment.environment import Environment, Example
from t2eval.training.activations import tokens_with_room
from t2eval.training.advantages import advantages, disagreeing
from t2eval.training.chosen import ChosenAnswers
from t2eval.training.config import TrainConfig
from t2eval.training.likelihood import Policy
from t2eval.training.objective import Backward, Gather, Objective, alone
from t2eval.training.parts import Parts
from t2eval.training.readout import Readout
from t2eval.training.scores import nan_message
from t2eval.training.trainable import Trainable
from t2eval.training.written import WrittenAnswers
from t2eval.vision.features import Reader

_RIGHT = 0.5
_log = logging.getLogger("t2eval.training")


def policy_loss(log_probs: Tensor, advantage: Tensor, penalty: Tensor, coefficient: float) -> Tensor:
    """The loss of each answer, (answers,): −advantage · log π(ŷ|x) + λ · KL; its mean over the batch is −J.

    Args:
        log_probs: (answers,) of whole answers. advantage: (answers,). penalty: (answers,) KL. coefficient: λ.
    """
    return -advantage * log_probs + coefficient * penalty


@dataclass
class Plays:
    """What a step sampled on this process, and what it is worth.

    Attributes:
        examples: this process's. first: the number of the first one among those of all processes.
        answers: the samples of each, side by side: completions or picks.
        advantages: (answers,) float32.
        shares: (answers,) float32, what each answer weighs in the loss of all processes; 0 for one that is left out.
        figures: of all processes: mean reward, accuracy, tokens an answer, the shares of answers that were cut and that are learnt from.
        gather: puts the rows of all processes under one another.
    """

    examples: Sequence[Example]
    first: int
    answers: list[Any]
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    shares: Tensor = field(default_factory=lambda: torch.zeros(0))
    figures: dict[str, float] = field(default_factory=dict)
    gather: Gather = alone


class Reinforce(Objective[Plays]):
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
        self.parts = Parts(config.largest_pass)
        self._answers: WrittenAnswers | ChosenAnswers | None = None
        self._warned = False

    @property
    def prompts(self) -> int:
        """How many examples a step draws, over all processes."""
        return self.config.batch_size // self.config.rollouts

    def answers(self, trainable: Trainable) -> WrittenAnswers | ChosenAnswers:
        """How this task's answers are sampled and learnt."""
        if self._answers is None:
            readout, penalised = Readout(trainable.model), self.coefficient != 0
            if self.environment.kind == "choice":
                policy = Policy(readout)
                self._answers = ChosenAnswers(self.environment, self.tokenizer, self.config, policy, penalised)
            else:
                never = () if self.reader is None else (self.reader.token,)  # an answer holds no image
                temperature = 1.0 if self.config.greedy else self.config.temperature
                policy = Policy(readout, temperature, self.config.kl_direction, never)
                self._answers = WrittenAnswers(self.environment, self.tokenizer, self.config, self.reader, policy, penalised)
        return self._answers

    def sample(self, trainable: Trainable, examples: Sequence[Example], seed: int, first: int = 0) -> Plays:
        """Answers to examples, without gradients.

        Args:
            trainable: the model.
            examples: this process's; there may be none.
            seed: of this step, the same on all processes.
            first: the number of the first example among those of all processes. An answer depends on (seed, its example's number, its own).
        """
        trainable.eval_mode()
        answers = self.answers(trainable)
        return Plays(examples, first, answers.sample(trainable, examples, seed, first) if examples else [])

    def reward(self, plays: Plays, gather: Gather = alone) -> None:
        """Reward the answers, and weigh each among those of all processes.

        Args:
            plays: of `sample`; its advantages, shares and figures are filled in.
            gather: concatenates the rows of all processes, in their order.
        """
        all_right, all_lengths, all_truncated = self._outcomes(plays, gather)  # (prompts of all, samples) each
        rewards = torch.where(all_right, 1.0, self.config.wrong_reward)
        learnt = torch.ones_like(all_right)
        if self.config.drop_uniform:
            learnt &= disagreeing(rewards)[:, None]
        if self.config.mask_truncated:
            learnt &= ~all_truncated
        # The loss is a mean over answers, each with the sum over its tokens; or over all tokens.
        total = float((learnt * (all_lengths if self.config.token_loss else 1.0)).sum())
        shares = learnt.float() / max(1.0, total)
        mine = slice(plays.first, plays.first + len(plays.examples))
        plays.advantages = advantages(rewards, self.config.baseline)[mine].flatten()
        plays.shares = shares[mine].flatten()
        plays.gather = gather
        plays.figures = {
            "reward": rewards.mean().item(),
            "accuracy": all_right.float().mean().item(),
            "tokens": all_lengths.mean().item(),
            "truncated": all_truncated.float().mean().item(),
            "learnt": learnt.float().mean().item(),
        }

    def _outcomes(self, plays: Plays, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
        """Of all processes: which answers are right, their lengths in tokens, and which were cut; (prompts of all, samples) each."""
        answers, samples = self._answers, self.config.rollouts
        assert answers is not None
        scores = answers.score(plays.examples, plays.answers) if plays.answers else []
        self._warn_of_no_numbers(plays.examples, scores)
        right = [float(score >= _RIGHT) for score in scores]  # a score that is no number is not right
        lengths, truncated = answers.lengths(plays.answers), answers.truncated(plays.answers)
        rows = torch.tensor([right, lengths, truncated], dtype=torch.float64)  # (3, answers)
        of_all = gather(rows.T.reshape(-1, samples * 3)).view(-1, samples, 3)  # (prompts of all, samples, 3)
        return of_all[..., 0] > 0, of_all[..., 1], of_all[..., 2] > 0

    def _warn_of_no_numbers(self, examples: Sequence[Example], scores: Sequence[float]) -> None:
        repeated = [example for example in examples for _ in range(self.config.rollouts)]
        message = nan_message(self.environment, repeated, scores)
        if message is not None and not self._warned:
            self._warned = True
            _log.warning(message)

    def learn(self, trainable: Trainable, plays: Plays, backward: Backward) -> dict[str, float]:
        """Accumulate the gradient of −J.

        Args:
            trainable: the model.
            plays: of `reward`.
            backward: called with each part of the loss; the gradients of all processes add up to −J's.

        Returns:
            Of all processes: `loss`, `reward` (mean), `accuracy`, `kl` (nats an answer), `tokens` (mean length of an answer), `log_ratio`
            (the mean |log ratio| a token between the policies that learn and that sampled), `truncated` and `learnt` (shares of answers).
        """
        trainable.train_mode()
        own = self._accumulate(trainable, plays, backward) if plays.answers else torch.zeros(1, 5, dtype=torch.float64)
        loss, kl, ratio, answers, tokens = plays.gather(own).sum(0).tolist()
        return {"loss": loss, **plays.figures, "kl": kl / max(1.0, answers), "log_ratio": ratio / max(1.0, tokens)}

    def _accumulate(self, trainable: Trainable, plays: Plays, backward: Backward) -> Tensor:
        """Forward and backward of this process's answers; (1, 5): sums of loss, KL, |log ratio|, answers and tokens."""
        answers = self.answers(trainable)
        shares, advantage = plays.shares.to(trainable.device), plays.advantages.to(trainable.device)
        kept = [[place for place in unit if plays.shares[place] > 0] for unit in answers.units(trainable, plays.examples, plays.answers)]
        units = [unit for unit in kept if unit]
        lengths = answers.lengths(plays.answers)

        def work(part: list[int]) -> Tensor:
            places = [place for unit in part for place in units[unit]]
            measured = answers.measure(trainable, plays.examples, plays.answers, places, self.parts.size)
            losses = policy_loss(measured.log_probs, advantage[places], measured.penalties, self.coefficient)
            loss = (losses * shares[places]).sum()
            backward(loss)
            tokens = sum(lengths[place] for place in places)
            penalty = measured.penalties.sum().item()
            return torch.tensor([[loss.item(), penalty, measured.log_ratio, len(places), tokens]], dtype=torch.float64)

        parameters = [parameter for parameter in trainable.model.parameters() if parameter.requires_grad]
        totals = torch.zeros(1, 5, dtype=torch.float64)
        costs = answers.costs(trainable, plays.examples, units)
        passes = math.ceil(sum(costs) / self.parts.size)
        with trainable.learning(answers.read(trainable, plays.examples, plays.answers), passes):
            room = tokens_with_room(trainable.model, again=self.config.checkpoint_activations)
            longest = answers.longest(trainable, plays.examples, plays.answers, units)
            for _, of_part in self.parts.run(costs, work, parameters, lengths=longest, room=room):
                totals += of_part
        return totals
