"""Figures: numbers with their sources; one that is computed from several has the weakest of theirs."""

from __future__ import annotations

from dataclasses import dataclass

from t2eval.forecast.shape import Source

_WEAKEST: tuple[Source, ...] = ("unknown", "assumed", "read", "measured")


@dataclass(frozen=True)
class Figure:
    """A number and where it is from; None where it is not known. `note` says how it came about."""

    value: float | None
    source: Source
    note: str = ""


def figure(value: float | None, *sources: Source, note: str = "") -> Figure:
    """A figure with the weakest of its sources."""
    return Figure(value, "unknown" if value is None else min(sources, key=_WEAKEST.index), note)


def limited(count: Figure, limit: int | None) -> Figure:
    """A count, or the limit where that is less."""
    return count if count.value is None or limit is None else Figure(min(count.value, limit), count.source, count.note)


def times(count: Figure, factor: float) -> Figure:
    """A figure times a number that is known."""
    return Figure(None if count.value is None else count.value * factor, count.source, count.note)


def total(*parts: Figure) -> Figure:
    """Their sum; not known where one of them is not."""
    known = [part.value for part in parts if part.value is not None]
    return figure(sum(known) if len(known) == len(parts) else None, "measured", *(part.source for part in parts))
