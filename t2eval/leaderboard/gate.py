"""Gate: whether a benchmark has become worse than another one of it, and how far the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from t2eval.bench.manifest import limit_of
from t2eval.bench.merge import parts_of
from t2eval.bench.rows import ROWS, read
from t2eval.errors import UsageError, listed
from t2eval.leaderboard.cells import Group, Where, folders, groups_of, rows_of
from t2eval.leaderboard.comparison import Comparison, adjusted
from t2eval.stats.corrections import LEVEL

_SHOWN = 10


@dataclass(frozen=True)
class Gate:
    """What a gate says.

    Attributes:
        worse: cells (seeds averaged) that are significantly worse, after correction over all shared cells, and cells that worked there and
            failed here. Empty: the gate is open.
        notes: in what the two benchmarks differ, so that a difference in scores may not be one of methods; or that there is nothing to
            compare.
    """

    worse: tuple[Comparison, ...]
    notes: tuple[str, ...]


def fail_on_regression(where: Where, other: str | Path) -> Gate:
    """Hold one benchmark against another. Cells that only one of the two has are not judged.

    Args:
        where: the new benchmark, in one folder or several.
        other: the one that it is held against. Where it has no rows yet there is nothing to become worse than: the first run passes.

    Raises:
        UsageError: the two share no cell.
        T2Error: damaged rows or samples.
    """
    rows = rows_of(where)
    directory = listed(map(str, folders(where)))
    if not any(read(folder) for folder in parts_of(Path(other))):
        return Gate((), (f"No baseline: {other} has no {ROWS} yet. Keep {directory} there, and the next run is held against it.",))
    new, old = groups_of(where, rows), groups_of(other, rows_of(other))
    shared = sorted(new.keys() & old.keys())
    failed = {(row.method, row.task): row for row in rows if row.status == "failed"}
    broken = [
        Comparison(*key, None, old[key].score, None, None, None, 0, None, f"failed now: {failed[key].error}")
        for key in sorted(failed.keys() & old.keys())
    ]
    found = adjusted([(*key, new[key], old[key]) for key in shared])
    if not found and not broken:
        raise UsageError(f"{directory} and {other} share no cell that can be compared.")
    worse = [item for item in found if item.p is not None and item.p < LEVEL and (item.gain or 0.0) < 0]
    notes = _differences(
        {key: new[key] for key in shared}, old, *(limit_of(parts_of(place)[0]) for place in (folders(where)[0], Path(other)))
    )
    return Gate((*broken, *worse), notes)


def _differences(new: Mapping[tuple[str, str], Group], old: Mapping[tuple[str, str], Group], *limits: int | None) -> tuple[str, ...]:
    """In what shared cells differ besides their scores."""
    notes = []
    if limits[0] != limits[1]:
        here, there = ("all examples" if limit is None else f"limit {limit}" for limit in limits)
        notes.append(f"The runs differ in their limit: {here} here, {there} there.")
    numbers, seeds, tasks = [], [], set()
    for key, group in new.items():
        where, then = f"{key[0]} on {key[1]}", old[key]
        if group.n != then.n:
            numbers.append(f"{where} {group.n} here, {then.n} there")
        if (mine := _seeds(group)) != (theirs := _seeds(then)):
            seeds.append(f"{where} {mine} here, {theirs} there")
        if _differ(group, then, "task") or _differ(group, then, "prompts"):
            tasks.add(key[1])
    notes += [f"The runs differ in n: {_listed(numbers)}."] if numbers else []
    notes += [f"The runs differ in seeds: {_listed(seeds)}."] if seeds else []
    if tasks:
        notes.append(
            f"The runs differ in their tasks (YAML, data or prompts): {_listed(sorted(tasks))}. What differs in scores may be theirs."
        )
    return tuple(notes)


def _seeds(group: Group) -> str:
    return ", ".join(str(row.seed) for row in group.rows)


def _differ(group: Group, other: Group, name: str) -> bool:
    """Whether both have hashes of a name, and share none."""
    here, there = ({row.hashes[name] for row in each.rows if name in row.hashes} for each in (group, other))
    return bool(here and there) and here.isdisjoint(there)


def _listed(found: list[str]) -> str:
    return "; ".join(found[:_SHOWN]) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
