"""Supervised training: next-token prediction on the gold answers (the baselines' objective, and rows 4, 6 and 7 of Table 4).

The answer is the task's own target, or the field with a worked solution that the task's YAML names, followed by what ends an answer: the
task's first stop string if that is white space, else the end-of-sequence token. For a choice task it is the right choice's continuation.
The loss is the mean over all counted tokens of the batch. The prompt carries none, as in Figure 8 of the paper; `mask_prompt=False`
counts it too. What the model has no room for is cut as lm-eval cuts it: from the prompt's beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from t2eval.environment.environment import Environment, Example
from t2eval.errors import T2Error, UsageError
from t2eval.training.activations import tokens_with_room
from t2eval.training.choices import alike
from t2eval.training.config import TrainConfig
from t2eval.training.likelihood import Policy, pad
from t2eval.training.objective import Backward, Gather, Objective, alone
from t2eval.training.parts import Parts
from t2eval.training.reading import PairReader, read_example
from t2eval.training.readout import Readout
from t2eval.training.trainable import Trainable
from t2eval.vision.features import Features, Reader, within


@dataclass
class Lessons:
    """What a step learns on this process.

    Attributes:
        pairs: the (unpredicted, predicted) token ids of each example, the longest first. features: of each one's images.
        total: the predicted tokens of all processes. examples: how many they have.
        gather: puts the rows of all processes under one another.
    """

    pairs: list[tuple[list[int], list[int]]]
    features: list[Features | None]
    total: float = 0.0
    examples: float = 0.0
    gather: Gather = alone


class Supervised(Objective[Lessons]):
    """The objective of one run.

    Args:
        environment: the task.
        tokenizer: the model's.
        config: batch size, micro batch, prompt mask.
        reader: for a task with images.

    Raises:
        UsageError: the prompt is to be learnt too, and it has images.
    """

    def __init__(self, environment: Environment, tokenizer: Any, config: TrainConfig, reader: Reader | None = None) -> None:
        self.environment, self.tokenizer, self.config, self.reader = environment, tokenizer, config, reader
        if reader is not None and not config.mask_prompt:
            raise UsageError("mask_prompt=false would learn to predict the tokens of images: leave it out for a task with images.")
        self.parts = Parts(config.largest_pass)
        self._policy: Policy | None = None
        self._pairs: PairReader | None = None

    @property
    def prompts(self) -> int:
        """How many examples a step draws, over all processes."""
        return self.config.batch_size

    def sample(self, trainable: Trainable, examples: Sequence[Example], seed: int, first: int = 0) -> Lessons:
        """The gold answers, which nobody has to draw.

        Args:
            trainable: the model.
            examples: this process's; there may be none.
            seed, first: not used: nothing is sampled.

        Raises:
            T2Error: an example has no gold answer.
        """
        if self._pairs is None:
            self._pairs = PairReader(self.tokenizer, trainable.model.config)
        encoded = self._pairs.read([(self._key(example), *self._texts(example)) for example in examples])
        read: list[tuple[tuple[list[int], list[int]], Features | None]] = []
        for example, (prompt, predicted) in zip(examples, encoded, strict=True):
            features = None
            if self.reader is not None:  # an image is many tokens there; what comes behind it is the same
                prompt, features = read_example(self.environment, example, example.prompt.rstrip(), self.reader)
                prompt = within(prompt, features, self._pairs.length + 1 - len(predicted))
            if not self.config.mask_prompt:
                prompt, predicted = prompt[:1], prompt[1:] + predicted
            read.append(((prompt, predicted), features))
        read.sort(key=lambda each: -len(each[0][0]) - len(each[0][1]))
        return Lessons([pair for pair, _ in read], [features for _, features in read])

    def reward(self, lessons: Lessons, gather: Gather = alone) -> None:
        """Count the predicted tokens of all processes, by which the loss is divided."""
        own = [float(sum(len(predicted) for _, predicted in lessons.pairs)), float(len(lessons.pairs))]
        lessons.total, lessons.examples = gather(torch.tensor([own], dtype=torch.float64)).sum(0).tolist()
        lessons.gather = gather

    def learn(self, trainable: Trainable, lessons: Lessons, backward: Backward) -> dict[str, float]:
        """Accumulate the gradient of the mean negative log-likelihood.

        Args:
            trainable: the model.
            lessons: of `reward`.
            backward: called with each part of the loss; the gradients of all processes add up to the whole one's.

        Returns:
            Of all processes: `loss` (nats a token) and `tokens` (mean counted tokens an example).
        """
        if self._policy is None:
            # Finding the readout runs the model: dropout would draw, and a resumed run would draw once more than an undisturbed one.
            trainable.eval_mode()
            self._policy = Policy(Readout(trainable.model))
        trainable.train_mode()
        policy, model = self._policy, trainable.model
        lengths = [len(prompt) + len(more) for prompt, more in lessons.pairs]

        def work(places: list[int]) -> float:
            total = 0.0
            for group in alike([lengths[place] for place in places], trainable.device):
                read = [places[each] for each in group]
                batch = pad([lessons.pairs[place] for place in read], trainable.device, [lessons.features[place] for place in read])
                log_probs, _ = policy.scores(policy.states(model, batch), batch.targets)  # (n,)
                loss = -log_probs.sum() / lessons.total
                backward(loss)
                total += loss.item()
            return total

        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with trainable.learning(sum(lengths), math.ceil(len(lengths) / self.parts.size)):
            room = tokens_with_room(model, again=self.config.checkpoint_activations)
            done = self.parts.run([1] * len(lengths), work, parameters, lengths=lengths, room=room)
            own = sum(loss for _, loss in done)
        loss = lessons.gather(torch.tensor([[own]], dtype=torch.float64)).sum().item()
        return {"loss": loss, "tokens": lessons.total / max(1.0, lessons.examples)}

    def encoded(self, example: Example, model_config: Any) -> tuple[list[int], list[int]]:
        """The unpredicted and the predicted token ids of one example without images, as `sample` has them.

        Args:
            example: with a gold answer.
            model_config: the base model's configuration, which says how much it reads.

        Raises:
            T2Error: the example has no gold answer.
        """
        ((prompt, predicted),) = PairReader(self.tokenizer, model_config).read([(self._key(example), *self._texts(example))])
        return (prompt, predicted) if self.config.mask_prompt else (prompt[:1], prompt[1:] + predicted)

    @staticmethod
    def _key(example: Example) -> tuple[str, int]:
        return example.split, example.index

    def _texts(self, example: Example) -> tuple[str, str]:
        """The context and the answer, with what ends it."""
        if not example.answer:
            raise T2Error(
                f"Example {example.index} of split {example.split!r} of task {example.task!r} has no gold answer, so there is "
                "nothing to learn by next-token prediction. Use the objective reinforce, or name a field by metadata.t2.answer_field."
            )
        context, answer = example.prompt, example.answer
        if example.choices is not None and example.gold is not None:
            context, answer = example.requests[example.gold]
        return context, answer + self._end(example)

    def _end(self, example: Example) -> str:
        if example.choices is not None:
            return ""
        first = self.environment.until[0] if self.environment.until else ""
        return first if first.isspace() else str(self.tokenizer.eos_token or first)
