"""Gate: whether a benchmark has become worse than another one of it, and how far the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2eval.bench.manifest import limit_of
from t2eval.bench.merge import parts_of
from t2eval.bench.neighbours import Difference, differences
from t2eval.bench.rows import ROWS, Row, read
from t2eval.errors import UsageError, listed
from t2eval.leaderboard.cells import Group, Where, folders, groups_of, rows_of
from t2eval.leaderboard.comparison import Comparison, adjusted
from t2eval.stats.corrections import LEVEL
from t2eval.store.texts import visible

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


def fail_on_regression(where: Where, other: str | Path, leave_out_changed: bool = False) -> Gate:
    """Hold one benchmark against another. Cells that only one of the two has are not judged.

    Args:
        where: the new benchmark, in one folder or several.
        other: the one that it is held against. Where it has no rows yet there is nothing to become worse than: the first run passes.
        leave_out_changed: do not judge tasks whose YAML, data or prompts differ, instead of refusing them.

    Raises:
        UsageError: the other one is a file, the two share no cell, or a task of both was another one there; the message names it, what
            differs, and both folders.
        T2Error: damaged rows or samples.
    """
    rows = rows_of(where)
    directory = listed(map(str, folders(where)))
    if Path(other).is_file():  # not a first run: a slip, which would open the gate
        raise UsageError(f"{other} is a file. Give the folder of the run that {directory} is held against.")
    if not any(read(folder) for folder in parts_of(Path(other))):
        return Gate((), (f"No baseline: {other} has no {ROWS} yet. Keep {directory} there, and the next run is held against it.",))
    new, old = groups_of(where, rows), groups_of(other, rows_of(other))
    here, there = (limit_of(parts_of(place)[0]) for place in (folders(where)[0], Path(other)))
    both = {key: (new[key], old[key]) for key in sorted(new.keys() & old.keys())}
    changed = _changed(both, same_limit=here == there)
    told = _listed(list(changed.values()))
    if changed and not leave_out_changed:
        raise UsageError(
            f"{directory} cannot be held against {other}: they were made with {told}. What differs in scores may be theirs. "
            f"Run {other} anew with the tasks of now, or give --leave-out-changed-tasks: then these tasks are not judged."
        )
    judged = {key: pair for key, pair in both.items() if key[1] not in changed}
    broken = _broken(rows, old)
    found = adjusted([(*key, *pair) for key, pair in judged.items()])
    if not found and not broken and not changed:
        raise UsageError(f"{directory} and {other} share no cell that can be compared.")
    worse = [item for item in found if item.p is not None and item.p < LEVEL and (item.gain or 0.0) < 0]
    left_out = (f"Not judged, as {directory} and {other} were made with {told}.",) if changed else ()
    return Gate((*broken, *worse), (*left_out, *_notes(judged, here, there)))


def _broken(rows: Sequence[Row], old: Mapping[tuple[str, str], Group]) -> list[Comparison]:
    """The cells that worked there and failed here."""
    failed = {(row.method, row.task): row.reason for row in rows if row.status == "failed"}
    return [
        Comparison(*key, None, old[key].score, None, None, None, 0, None, f"failed now: {visible(failed[key])}")
        for key in sorted(failed.keys() & old.keys())
    ]


Pairs = Mapping[tuple[str, str], tuple[Group, Group]]
"""(method, task) → the group of the new benchmark, and that of the other."""


def _changed(pairs: Pairs, same_limit: bool) -> dict[str, str]:
    """Task → what differs in it. Prompts are hashed over all documents of a run: under two limits they say nothing."""
    found: dict[str, str] = {}
    for (_, task), (group, then) in pairs.items():
        for inputs in _made_with(group, then):
            if inputs.kind == "task" or (inputs.kind == "prompts" and same_limit and group.rows[0].n == then.rows[0].n):
                found.setdefault(task, inputs.words)
    return found


def _made_with(group: Group, then: Group) -> list[Difference]:
    """What the rows of each seed of both were made with that is not the same."""
    before = {row.seed: row for row in then.rows}
    return [found for row in group.rows for found in differences(row, before.get(row.seed, then.rows[0]))]


def _notes(pairs: Pairs, *limits: int | None) -> tuple[str, ...]:
    """In what shared cells differ besides their scores and tasks: not refused, as it is what a change may be about."""
    notes = []
    if limits[0] != limits[1]:
        here, there = ("all examples" if limit is None else f"limit {limit}" for limit in limits)
        notes.append(f"The runs differ in their limit: {here} here, {there} there.")
    numbers, seeds, others = [], [], []
    for key, (group, then) in pairs.items():
        where = f"{key[0]} on {key[1]}"
        if group.n != then.n:
            numbers.append(f"{where} {group.n} here, {then.n} there")
        if (mine := _seeds(group)) != (theirs := _seeds(then)):
            seeds.append(f"{where} {mine} here, {theirs} there")
        others += [found.words for found in _made_with(group, then) if found.kind not in ("task", "prompts")]
    notes += [f"The runs differ in n: {_listed(numbers)}."] if numbers else []
    notes += [f"The runs differ in seeds: {_listed(seeds)}."] if seeds else []
    notes += [f"The runs were made with {_listed(list(dict.fromkeys(others)))} (here and there)."] if others else []
    return tuple(notes)


def _seeds(group: Group) -> str:
    return ", ".join(str(row.seed) for row in group.rows)


def _listed(found: list[str]) -> str:
    return "; ".join(found[:_SHOWN]) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
