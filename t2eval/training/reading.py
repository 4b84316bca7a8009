"""Reading: the prompts and answers of examples as token ids, cut where the model has no room for them."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any

from t2eval.environment.environment import Environment, Example
from t2eval.generation.encoding import Encoding, context_length
from t2eval.training.likelihood import cut_left
from t2eval.vision.features import Features, Reader

_log = logging.getLogger(__name__)


def read_prompts(
    environment: Environment, encoding: Encoding, examples: Sequence[Example], reader: Reader | None
) -> tuple[list[list[int]], list[Features | None] | None]:
    """The prompts of examples, as token ids and the features of their images (None where the task has none).

    Args:
        environment: of the examples.
        encoding: the tokenizer.
        examples: what is asked.
        reader: for a task with images.
    """
    if reader is None:
        return [encoding.text(example.prompt) for example in examples], None
    read = [read_example(environment, example, example.prompt, reader) for example in examples]
    return [ids for ids, _ in read], [features for _, features in read]


def read_example(environment: Environment, example: Example, text: str, reader: Reader) -> tuple[list[int], Features | None]:
    """A prompt with an example's images."""
    return reader.read(text, lambda: environment.images_of(example), (example.split, example.index))


class PairReader:
    """Contexts and their continuations as token ids, each encoded once. One warning counts those that are too long.

    Args:
        tokenizer: the model's.
        config: the model's, for its longest sequence.

    Attributes:
        length: of the longest sequence that the model reads, in tokens.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self._encoding, self.length = Encoding(tokenizer), context_length(config, tokenizer)
        self._known: dict[Hashable, tuple[list[int], list[int]]] = {}
        self._warned = False

    def read(self, texts: Sequence[tuple[Hashable, str, str]]) -> list[tuple[list[int], list[int]]]:
        """The token ids of (key, context, continuation) texts, cut as HFLM cuts them."""
        for key, context, continuation in texts:
            if key not in self._known:
                self._known[key] = self._encoding.pair(context, continuation)
        return self.cut([self._known[key] for key, _, _ in texts])

    def cut(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
        """Pairs without the beginnings that the model has no room for."""
        fitting = cut_left(pairs, self.length)
        short = sum(len(before[0]) + len(before[1]) > len(after[0]) + len(after[1]) for before, after in zip(pairs, fitting, strict=True))
        if short and not self._warned:
            self._warned = True
            message = "%d of the %d contexts of a step and their answers are longer than the model's %d tokens: they lose their beginning."
            _log.warning(message, short, len(pairs), self.length)
        return fitting
