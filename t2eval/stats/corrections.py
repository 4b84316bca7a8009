"""Corrections: p-values of a family of comparisons, adjusted so that the whole family keeps its level."""

from __future__ import annotations

from collections.abc import Sequence

LEVEL = 0.05
"""The level at which a (corrected) p-value is called significant."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction.

    Args:
        p_values: of one family of comparisons, in any order.

    Returns:
        Adjusted p-values in the same order, at most 1.
    """
    if not len(p_values):
        return []
    from statsmodels.stats.multitest import multipletests  # half a second to import: not for those who only read rows

    return [float(p) for p in multipletests(p_values, method="holm")[1]]
