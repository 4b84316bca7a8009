"""Cost: which of two ways that give the same is faster, counted, so that it repeats: hooks or merged weights.

Under the hooks a matrix of narrow side r takes four products of 2 r² operations a token (two forward, two backward), from merged weights
two (backward), and one merge a step. What a hook or a merge costs besides its products was measured once (`benchmarks/train_step.py`); `benchmarks/learning_paths.py` and `benchmarks/mixed_batch.py` compare the choices with clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_CPU, _GPU = "cpu", "cuda"
OPERATIONS = {_CPU: 30e9, _GPU: 500e12}
"""Of matrix products, a second."""
HOOK = {_CPU: 60e-6, _GPU: 60e-6}
"""Seconds that a hook costs in a forward and backward pass besides its products; from merged weights half of it."""
MERGE = {_CPU: 150e-6, _GPU: 60e-6}
"""Seconds that the merge of one matrix costs besides its products."""


def learning_from_merged_is_cheaper(shapes: Sequence[tuple[int, int]], tokens: int, passes: int, device: str) -> bool:
    """Whether `Adapted.learning` is worth its merge.

    Args:
        shapes: (out, in) of the matrices.
        tokens: that the model reads in the step, padding included.
        passes: forward and backward passes that they are read in.
        device: its type.
    """
    kind = _CPU if device == _CPU else _GPU
    products = sum(2.0 * min(shape) ** 2 for shape in shapes) * tokens / OPERATIONS[kind]
    hooks = 4 * products + passes * len(shapes) * HOOK[kind]
    merge = sum(2.0 * min(shape) ** 2 * (min(shape) + max(shape)) for shape in shapes) / OPERATIONS[kind] + len(shapes) * MERGE[kind]
    return 2 * products + passes * len(shapes) * HOOK[kind] / 2 + merge < hooks


CALL = {_CPU: 40e-6, _GPU: 140e-6}
"""Seconds of a forward pass a matrix, however few its tokens: launches and what else is not products. On a GPU a step of 8B takes 31 ms."""
READ = {_CPU: 8e9, _GPU: 3e12}
"""Numbers of a weight that are read from memory a second, which a pass of few tokens waits for."""


@dataclass(frozen=True)
class Sizes:
    """What a batch of answers is counted by: sequences in all, tokens of a prompt and of an answer, and the most sequences of a batch."""

    sequences: int
    prompt: int
    new: int
    batch: int

    def passes(self, groups: Sequence[int]) -> int:
        """Forward passes over groups of sequences that are answered one after the other: each batch reads its prompts, then writes."""
        return self.new * sum(-(-group // self.batch) for group in groups)


def mixing_is_cheaper(shapes: Sequence[tuple[int, int]], groups: Sequence[int], sizes: Sizes, device: str) -> bool:
    """Whether sequences of several z' are answered faster in common batches, one z a sequence under the hooks, than by a merge for each z'.

    Args:
        shapes: (out, in) of the matrices.
        groups: how many sequences each z' has.
        sizes: of the answers.
        device: its type.
    """
    kind = _CPU if device == _CPU else _GPU
    together, apart = sizes.passes([sum(groups)]), sizes.passes(groups)
    products = sum(4.0 * min(shape) ** 2 for shape in shapes) * sizes.sequences * (sizes.prompt + sizes.new) / OPERATIONS[kind]
    hooks = products + together * len(shapes) * HOOK[kind] / 2
    merge = sum(2.0 * min(shape) ** 2 * (min(shape) + max(shape)) for shape in shapes) / OPERATIONS[kind] + len(shapes) * MERGE[kind]
    call = len(shapes) * CALL[kind] + sum(float(out * into) for out, into in shapes) / READ[kind]
    return hooks < len(groups) * merge + (apart - together) * call
