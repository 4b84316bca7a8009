"""Corrections: p-values of a family of comparisons, adjusted so that the whole family keeps its level."""

from __future__ import annotations

from collections.abc import Sequence

LEVEL = 0.05
"""The level at which a (corrected) p-value is called significant."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the same as statsmodels' `multipletests(method="holm")`, which collects garbage at each call (0.8 s a
    call in a process that holds many rows).

    Args:
        p_values: of one family of comparisons, in any order.

    Returns:
        Adjusted p-values in the same order, at most 1.
    """
    m, running = len(p_values), 0.0
    adjusted = [0.0] * m
    for rank, at in enumerate(sorted(range(m), key=p_values.__getitem__)):  # the smallest p first, times m, m - 1, …
        running = max(running, min(1.0, (m - rank) * p_values[at]))
        adjusted[at] = running
    return adjusted
