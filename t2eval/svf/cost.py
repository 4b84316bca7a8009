"""Cost: which of two ways to put z into a model is faster, counted, so that it repeats.

A training step's z learns under the hooks or from merged weights. Under the hooks a matrix of narrow side r takes four products of 2 r²
operations a token (two forward, two backward), from merged weights two (backward), and one merge a step.

Answers of one z come from merged weights, or under the hooks (two products of 2 r² operations a token more) where it answers too little
to be worth a merge. Sequences of several z are answered together, in common batches with one z a sequence under the hooks, or apart, z by
z. Together they need fewer passes where a z has few sequences: a pass over few tokens takes as long as its weights take to read, and each
of its matrices takes a while besides.

What a hook or a merge costs besides its products was, on a CPU, fitted to the grids of `benchmarks/learning_paths.py` and
`benchmarks/mixed_batch.py`; for a GPU it was measured once (`benchmarks/train_step.py`, `benchmarks/at_8b.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shapes = Sequence[tuple[int, int]]

_CPU, _GPU = "cpu", "cuda"
OPERATIONS = {_CPU: 30e9, _GPU: 500e12}
"""Of matrix products, a second."""
HOOK = {_CPU: 200e-6, _GPU: 60e-6}
"""Seconds that a hook costs in a forward and backward pass besides its products; from merged weights half of it."""
MERGE = {_CPU: 120e-6, _GPU: 60e-6}
"""Seconds that the merge of one matrix costs besides its products."""
FEW = {_CPU: 6, _GPU: 150}
"""Tokens below which a product takes as long as its weights take to read."""
MATRIX = {_CPU: 240e-6, _GPU: 130e-6}
"""Seconds a matrix that a forward pass costs besides products: launches, and what lies between matrices."""
ONE = {_CPU: 80e-6, _GPU: 30e-6}
"""Seconds that a hook costs in a forward pass besides its products."""
ONE_EACH = {_CPU: 120e-6, _GPU: 60e-6}
"""Seconds that a hook with one z a sequence costs in a forward pass besides its products."""


def _kind(device: str) -> str:
    return _CPU if device == _CPU else _GPU


def _merge_seconds(shapes: Shapes, kind: str) -> float:
    """Of the merge of all matrices."""
    return sum(2.0 * min(shape) ** 2 * (min(shape) + max(shape)) for shape in shapes) / OPERATIONS[kind] + len(shapes) * MERGE[kind]


def learning_from_merged_is_cheaper(shapes: Shapes, tokens: int, passes: int, device: str) -> bool:
    """Whether `Adapted.learning` is worth its merge.

    Args:
        shapes: (out, in) of the matrices.
        tokens: that the model reads in the step, padding included.
        passes: forward and backward passes that they are read in.
        device: its type.
    """
    kind = _kind(device)
    products = sum(2.0 * min(shape) ** 2 for shape in shapes) * tokens / OPERATIONS[kind]
    hooks = 4 * products + passes * len(shapes) * HOOK[kind]
    return 2 * products + passes * len(shapes) * HOOK[kind] / 2 + _merge_seconds(shapes, kind) < hooks


@dataclass(frozen=True)
class Work:
    """What a sequence takes to be answered.

    Attributes:
        prompt: tokens of its prompt, the mean.
        new: tokens of its answer; 0 where prompts are only read.
        batch: the most sequences of a batch.
    """

    prompt: float
    new: float
    batch: int


def _answer_seconds(shapes: Shapes, sequences: int, work: Work, kind: str, hook: float | None) -> float:
    """Of the passes over so many sequences: their prompts, then a token of each at a time.

    Args:
        hook: seconds that a hook costs besides its products; None without hooks.
    """
    operations = sum(2.0 * out * into for out, into in shapes)  # a token
    if hook is not None:
        operations += sum(4.0 * min(shape) ** 2 for shape in shapes)
    batches = math.ceil(sequences / work.batch)
    steps = max(work.new - 1, 0)  # an answer's first token comes with its prompt
    tokens = max(sequences * work.prompt, FEW[kind] * batches) + steps * max(sequences, FEW[kind] * batches)
    return tokens * operations / OPERATIONS[kind] + batches * (1 + steps) * len(shapes) * (MATRIX[kind] + (hook or 0))


def _one_seconds(shapes: Shapes, sequences: int, work: Work, kind: str) -> tuple[float, float]:
    """Of the sequences of one z: by `Adapted.merged`, with its merge, and under the hooks."""
    merged = _answer_seconds(shapes, sequences, work, kind, None) + _merge_seconds(shapes, kind)
    return merged, _answer_seconds(shapes, sequences, work, kind, ONE[kind])


def merging_is_cheaper(shapes: Shapes, sequences: int, work: Work, device: str) -> bool:
    """Whether sequences of one z are answered faster by `Adapted.merged` than under the hooks."""
    merged, hooked = _one_seconds(shapes, sequences, work, _kind(device))
    return merged < hooked


def together_is_cheaper(shapes: Shapes, groups: Sequence[int], work: Work, device: str, *, merges: bool = True) -> bool:
    """Whether `Adapted.per_sequence` answers sequences of several z faster than one z after the other, each in its faster way.

    Args:
        shapes: (out, in) of the matrices.
        groups: how many sequences each z answers.
        work: what a sequence takes.
        device: its type.
        merges: False where a z alone works under the hooks too (quantised weights).
    """
    kind = _kind(device)
    apart = 0.0
    for sequences in groups:
        merged, hooked = _one_seconds(shapes, sequences, work, kind)
        apart += min(hooked, merged) if merges else hooked
    return _answer_seconds(shapes, sum(groups), work, kind, ONE_EACH[kind]) < apart
