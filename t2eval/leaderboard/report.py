"""Leaderboards: what the rows of a benchmark say, as a table with tests against the base.

Everything here is a function of the rows and their samples alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2eval.bench.config import METHODS, BenchConfig
from t2eval.bench.manifest import MANIFEST
from t2eval.bench.merge import Merged
from t2eval.bench.rows import Row
from t2eval.errors import T2Error
from t2eval.leaderboard.cells import Group, Where, groups_of, mean, merged_rows
from t2eval.leaderboard.comparison import tested
from t2eval.leaderboard.table import Entry, Failure, Leaderboard
from t2eval.paths import is_embedded
from t2eval.stats.corrections import LEVEL, holm
from t2eval.stats.means import spread
from t2eval.stats.paired import Paired
from t2eval.store.files import read_record

LATENT_SKILL = (
    "The embedded base model has latent skill by construction: its corpus answers some questions well and some badly, and it follows "
    "the habit of each. Gains over it show that a method elicits a skill, not that it teaches one."
)
_SHOWN = 10


def leaderboard(where: Where) -> Leaderboard:
    """The table of a benchmark.

    Args:
        where: a folder with `rows.jsonl` and `samples/` (or with those of shards in it), or several that are merged.

    Returns:
        Methods in the order of `METHODS`, those with names of their own behind what they are; tasks by name (workers may finish in any
        order); one test per method and task.

    Raises:
        UsageError: no finished cells, cells of several base models, rows made with different inputs, or a cell with two results.
        T2Error: damaged rows or samples.
    """
    found = merged_rows(where)
    return table_of(found, groups_of(where, found.rows))


def table_of(found: Merged, groups: Mapping[tuple[str, str], Group]) -> Leaderboard:
    """The table of rows that were read: of `merged_rows`, with their `groups_of`."""
    rows, directory = found.rows, found.folders[0]
    tasks = tuple(sorted({row.task for row in rows}))
    methods = tuple(dict.fromkeys(row.method for row in sorted(rows, key=_place)))
    entries, tests = [], []
    for method in methods:
        for task in tasks:
            if (method, task) not in groups:
                continue
            group, base = groups[method, task], groups.get(("base", task))
            entries.append(_entry(group, base))
            tests.append(tested(group, base) if method != "base" and base and group.examples and base.examples else None)
    failed = [row for row in rows if row.status == "failed"]
    failures = tuple(
        Failure(row.method, row.task, row.seed, row.reason) for row in sorted(failed, key=lambda row: (_place(row), row.task, row.seed))
    )
    complete = _with_tests(entries, tests)
    model = rows[0].model
    notes = (*_notes(model, groups, complete), *found.notes)
    return Leaderboard(_title(directory, model), model, methods, tasks, complete, failures, notes)


def _place(row: Row) -> tuple[int, bool, str]:
    """Where a row's method stands among the others."""
    known = METHODS.index(row.kind) if row.kind in METHODS else len(METHODS)  # a failed cell does not say what its method is
    return known, row.method not in METHODS, row.method


def _title(folder: Path, model: str) -> str:
    """The benchmark's own name; where its file gave none, what it is of."""
    try:
        name = read_record(folder / MANIFEST, dict[str, Any], what="manifest")["name"]
    except (T2Error, KeyError):  # rows that were copied without their manifest still make a table
        name = None
    return name if isinstance(name, str) and name != BenchConfig.model_fields["name"].default else f"Leaderboard: {model}"


def _entry(group: Group, base: Group | None) -> Entry:
    rows, scores = group.rows, group.seed_scores
    return Entry(
        method=rows[0].method,
        task=rows[0].task,
        metric=rows[0].metric,
        score=group.score,
        stderr=group.stderr,
        n=group.n,
        seeds=tuple(row.seed for row in rows),
        seed_std=spread(scores),
        seconds=mean([row.seconds for row in rows]) or 0.0,
        first_pass_seconds=mean([row.first_pass_seconds for row in rows]),
        second_pass_seconds=mean([row.second_pass_seconds for row in rows]),
        trainable_parameters=max((row.trainable_parameters or 0 for row in rows), default=None),
        peak_memory_bytes=max((row.peak_memory_bytes or 0 for row in rows), default=None),
        adapted=group.adapted,
        undefined=group.undefined,
        whole=group.whole and (base is None or base.whole),
        clusters=group.cluster_count,
    )


def _with_tests(entries: Sequence[Entry], tests: Sequence[Paired | None]) -> tuple[Entry, ...]:
    """Entries with their tests, the p-values adjusted together."""
    adjusted = iter(holm([test.p for test in tests if test is not None]))
    return tuple(entry if test is None else _tested(entry, test, next(adjusted)) for entry, test in zip(entries, tests, strict=True))


def _tested(entry: Entry, test: Paired, p: float) -> Entry:
    return replace(entry, gain=test.difference, low=test.low, high=test.high, p=p, test=test.test, smallest=test.smallest)


# ---------------------------------------------------------------------- notes
def _notes(model: str, groups: Mapping[tuple[str, str], Group], entries: Sequence[Entry]) -> tuple[str, ...]:
    notes = [_seed_note(entries)]
    tests = sorted({entry.test for entry in entries if entry.test})
    number = sum(entry.p is not None for entry in entries)
    if number:
        notes.append(
            f"Bold: significantly better than the base on the same examples ({', '.join(tests)}; two-sided, Holm's correction over "
            f"{number} comparison{'' if number == 1 else 's'}, p < {LEVEL})."
        )
        notes.append(
            "Could show: the smallest true difference that so many examples find four times in five, at 5% before the correction, by the "
            "spread of the differences (nothing: too few examples, or none on which the two differ)."
        )
        worse = [f"{entry.method} on {entry.task}" for entry in entries if entry.worse]
        notes += [f"Significantly worse than the base: {', '.join(worse)}."] if worse else []
    elif any(entry.method != "base" for entry in entries):
        notes.append("No tests: the base has no scores on the same examples.")
    notes += _cluster_notes(groups)
    notes += [note for group in groups.values() for note in _left_out(group)]
    if is_embedded(model):
        notes.append(LATENT_SKILL)
    return tuple(notes)


def _cluster_notes(groups: Mapping[tuple[str, str], Group]) -> list[str]:
    """Which tasks' examples are clustered, and by how many clusters."""
    found = {task: (group.n, group.cluster_count) for (_, task), group in sorted(groups.items(), reverse=True) if group.cluster_count}
    if not found:
        return []
    told = ", ".join(f"{task} ({n} examples in {count})" for task, (n, count) in sorted(found.items()))
    return [f"Examples that share something (metadata.t2.cluster) are not independent; errors and tests are over their clusters: {told}."]


def _left_out(group: Group) -> list[str]:
    """What was left out of a cell's score and of both sides of its comparison, and that it is never bold."""
    row = group.rows[0]
    where = f"{row.method} on {row.task}"
    found = []
    if group.undefined:
        found.append(
            f"{where}: the metric {row.metric!r} is not a number (NaN or infinite) for {_documents(group.undefined)}, left out of the "
            "score and of both sides of its comparisons, none of which is bold."
        )
    if group.adapted:
        found.append(
            f"{where}: adapted on {_documents(group.adapted)} of the test split, left out of the score and of both sides of its "
            "comparison, which is never bold."
        )
    return found


def _documents(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"document{'' if len(ids) == 1 else 's'} {', '.join(map(str, ids[:_SHOWN]))}{more}"


def _seed_note(entries: Sequence[Entry]) -> str:
    counts = sorted({len(entry.seeds) for entry in entries if entry.method != "base"})
    spread = [entry.seed_std for entry in entries if entry.seed_std is not None]
    if not counts:
        return "The base does not depend on the seed: one run."
    text = f"{' to '.join(str(count) for count in (counts[:1] + counts[-1:] if len(counts) > 1 else counts))} "
    text += "seed" if counts == [1] else "seeds"
    text += " a method (the base does not depend on the seed: one run). Scores are means over seeds, ± is the standard error over examples"
    if spread:
        text += f"; the standard deviation between seeds is at most {max(spread):.3f}"
    return text + "."
