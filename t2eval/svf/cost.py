"""Cost: whether a training step's z learns faster under the hooks or from merged weights, counted, so that it repeats.

Under the hooks a matrix of narrow side r takes four products of 2 r² operations a token (two forward, two backward), from merged weights
two (backward), and one merge a step. What a hook or a merge costs besides its products was, on a CPU, fitted to the grid
of `benchmarks/learning_paths.py`; for a GPU it was measured once (`benchmarks/train_step.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

_CPU, _GPU = "cpu", "cuda"
OPERATIONS = {_CPU: 30e9, _GPU: 500e12}
"""Of matrix products, a second."""
HOOK = {_CPU: 200e-6, _GPU: 60e-6}
"""Seconds that a hook costs in a forward and backward pass besides its products; from merged weights half of it."""
MERGE = {_CPU: 120e-6, _GPU: 60e-6}
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
