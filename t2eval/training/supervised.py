"""Supervised training: next-token prediction on the gold answers (the baselines' objective, and rows 4, 6 and 7 of Table 4).

The answer is the task's own target, or the field with a worked solution that the task's YAML names, followed by what ends an answer: the
task's first stop string if that is white space, else the end-of-sequence token. For a choice task it is the right choice's continuation.
The loss is the mean over all counted tokens of the batch. The prompt carries none, as in Figure 8 of the paper; `mask_prompt=False`
counts it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from t2eval.environment.environment import Environment, Example
from t2eval.errors import T2Error, UsageError
from t2eval.generation.rollouts import answer_logits, encode_pair, pad_rows, read_example, token_log_probs
from t2eval.training.config import TrainConfig
from t2eval.training.methods import Trainable
from t2eval.vision.features import Features, Reader


class Supervised:
    """The objective of one run.

    Args:
        environment: the task.
        tokenizer: the model's.
        config: batch size, micro-batch, prompt mask.
        reader: for a task with images.

    Raises:
        UsageError: the prompt is to be learnt too, and it has images.
    """

    def __init__(self, environment: Environment, tokenizer: Any, config: TrainConfig, reader: Reader | None = None) -> None:
        self.environment, self.tokenizer, self.config, self.reader = environment, tokenizer, config, reader
        if reader is not None and not config.mask_prompt:
            raise UsageError("mask_prompt=false would learn to predict the tokens of images: leave it out for a task with images.")
        self._encoded: dict[tuple[str, int], tuple[list[int], list[int]]] = {}

    @property
    def prompts(self) -> int:
        """How many examples a step draws."""
        return self.config.batch_size

    def encoded(self, example: Example) -> tuple[list[int], list[int]]:
        """The (unpredicted, predicted) token ids of one example.

        Raises:
            T2Error: the example has no gold answer.
        """
        key = (example.split, example.index)
        if key not in self._encoded:
            if not example.answer:
                raise T2Error(
                    f"Example {example.index} of split {example.split!r} of task {example.task!r} has no gold answer, so there is "
                    "nothing to learn by next-token prediction. Use the objective reinforce, or name a field by metadata.t2.answer_field."
                )
            context, answer = example.prompt, example.answer
            if example.choices is not None and example.gold is not None:
                context, answer = example.requests[example.gold]
            prompt, predicted = encode_pair(self.tokenizer, context, answer + self._end(example))
            if self.reader is not None:  # an image is one token there; what comes behind it is the same
                prompt, _ = self._read(example)
            if not self.config.mask_prompt:
                prompt, predicted = prompt[:1], prompt[1:] + predicted
            self._encoded[key] = (prompt, predicted)
        return self._encoded[key]

    def _read(self, example: Example) -> tuple[list[int], Features | None]:
        """The prompt with its images, without the white space that `encode_pair` gives to the answer."""
        assert self.reader is not None
        return read_example(self.environment, example, example.prompt.rstrip(), self.reader)

    def _end(self, example: Example) -> str:
        if example.choices is not None:
            return ""
        first = self.environment.until[0] if self.environment.until else ""
        return first if first.isspace() else str(self.tokenizer.eos_token or first)

    def step(
        self, trainable: Trainable, model: Any, examples: Sequence[Example], seed: int, backward: Callable[[Tensor], Any]
    ) -> dict[str, float]:
        """Accumulate the gradient of the mean negative log-likelihood.

        Args:
            trainable: the model. model: the same, as wrapped for training.
            examples: of this step. seed: not used: nothing is sampled.
            backward: called with each part of the loss.

        Returns:
            `loss` (nats a token) and `tokens` (mean counted tokens an example).
        """
        trainable.train_mode()
        ordered = sorted(examples, key=lambda example: -sum(map(len, self.encoded(example))))
        pairs = [self.encoded(example) for example in ordered]
        images = [self._read(example)[1] for example in ordered] if self.reader is not None else [None] * len(pairs)
        total = sum(len(predicted) for _, predicted in pairs)
        sum_of_losses = 0.0
        for start in range(0, len(pairs), self.config.micro_batch):
            part = slice(start, start + self.config.micro_batch)
            rows = pad_rows(pairs[part], trainable.device, images=images[part])
            loss = -token_log_probs(answer_logits(model, rows), rows).sum() / total
            backward(loss)
            sum_of_losses += loss.item()
        return {"loss": sum_of_losses, "tokens": total / len(pairs)}
