"""Leaderboards: what the rows of a benchmark say, as Markdown and JSON, and whether one benchmark is worse than another.

Everything here is a function of the rows and their samples alone. A gain over the base is bold only where the paired test says so
after Holm's correction over all cells of the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2eval.bench.plan import METHODS
from t2eval.bench.rows import ROWS, Row, read, read_samples, scores_by_example
from t2eval.errors import UsageError, unknown
from t2eval.paths import is_embedded
from t2eval.stats.corrections import LEVEL, holm
from t2eval.stats.means import average_seeds, mean_stderr, spread
from t2eval.stats.paired import Paired, paired, unpaired

LATENT_SKILL = (
    "The embedded base model has latent skill by construction: its corpus answers some questions well and some badly, and it follows "
    "the habit of each. Gains over it show that a method elicits a skill, not that it teaches one."
)


@dataclass(frozen=True)
class Entry:
    """One method on one task: scores averaged over seeds, and the test against the base.

    `stderr` is over examples (of seed-averaged scores), `seed_std` the standard deviation between the seeds' scores (None for one
    seed), `gain` the difference to the base in the direction in which more is better. `p` is Holm-adjusted.
    """

    method: str
    task: str
    metric: str | None
    score: float
    stderr: float | None
    n: int
    seeds: tuple[int, ...]
    seed_std: float | None
    seconds: float
    first_pass_seconds: float | None
    second_pass_seconds: float | None
    trainable_parameters: int | None
    peak_memory_bytes: int | None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference to the base is significant after correction."""
        return self.p is not None and self.p < LEVEL

    @property
    def better(self) -> bool:
        """Whether it is a significant gain."""
        return self.significant and (self.gain or 0.0) > 0


@dataclass(frozen=True)
class Failure:
    """A cell that did not work."""

    method: str
    task: str
    seed: int
    error: str


@dataclass(frozen=True)
class Leaderboard:
    """The table of one benchmark."""

    model: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def entry(self, method: str, task: str) -> Entry | None:
        """One cell of the table."""
        return next((entry for entry in self.entries if (entry.method, entry.task) == (method, task)), None)

    def to_json(self) -> str:
        """The whole table as JSON."""
        entries = [{**asdict(entry), "significant": entry.significant} for entry in self.entries]
        failures = [asdict(failure) for failure in self.failures]
        content: dict[str, Any] = {"model": self.model, "methods": self.methods, "tasks": self.tasks, "notes": self.notes}
        return json.dumps({**content, "entries": entries, "failures": failures}, indent=2)

    def to_markdown(self) -> str:
        """The table and its notes as Markdown."""
        header = ["method", *self.tasks, "mean", "seconds a cell", "trainable parameters"]
        lines = [f"# Leaderboard: {self.model}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
        for method in self.methods:
            found = [self.entry(method, task) for task in self.tasks]
            lines.append(_line([method, *(_cell(entry) for entry in found), *_totals([entry for entry in found if entry], found)]))
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    score = f"**{entry.score:.3f}**" if entry.better else f"{entry.score:.3f}"
    error = " ± N/A" if entry.n == 1 else "" if entry.stderr is None else f" ± {entry.stderr:.3f}"
    return f"{score}{error} (n={entry.n})"


def _totals(entries: Sequence[Entry], found: Sequence[Entry | None]) -> list[str]:
    """Mean score, mean seconds and parameters of a method. No mean where a task is missing: it would not be comparable."""
    if not entries:
        return ["–", "–", "–"]
    mean = f"{np.mean([entry.score for entry in entries]):.3f}" if all(found) else "–"
    sizes = {entry.trainable_parameters for entry in entries if entry.trainable_parameters is not None}
    parameters = "–" if not sizes else f"{max(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    return [mean, f"{np.mean([entry.seconds for entry in entries]):.1f}", parameters]


def _rows(directory: str | Path) -> list[Row]:
    rows = read(Path(directory))
    if not rows:
        raise UsageError(f"{directory} holds no finished cells (no {ROWS}). Run `t2 bench FILE.yaml --output {directory}`.")
    models = sorted({row.model for row in rows})
    if len(models) > 1:
        raise UsageError(f"{directory} mixes base models ({', '.join(models)}): a leaderboard is of one.")
    return rows


def _group(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Finished rows by method and task, seeds in order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted((row for row in rows if row.status == "ok"), key=lambda row: row.seed):
        groups.setdefault((row.method, row.task), []).append(row)
    return groups


def _examples(directory: Path, group: Sequence[Row]) -> dict[str, float] | None:
    """Scores by example, averaged over the seeds; None where the metric has none."""
    runs = [scores_by_example(read_samples(directory, row)) for row in group]
    kept = [run for run in runs if run]
    return average_seeds(kept) if kept and len(kept) == len(runs) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _entry(group: Sequence[Row], examples: dict[str, float] | None) -> Entry:
    scores = [row.score for row in group if row.score is not None]
    stderr = mean_stderr(list(examples.values()))[1] if examples else _mean([row.stderr for row in group])
    return Entry(
        method=group[0].method,
        task=group[0].task,
        metric=group[0].metric,
        score=float(np.mean(scores)),
        stderr=stderr,
        n=len(examples) if examples else group[0].n,
        seeds=tuple(row.seed for row in group),
        seed_std=spread(scores),
        seconds=_mean([row.seconds for row in group]) or 0.0,
        first_pass_seconds=_mean([row.first_pass_seconds for row in group]),
        second_pass_seconds=_mean([row.second_pass_seconds for row in group]),
        trainable_parameters=max((row.trainable_parameters or 0 for row in group), default=None),
        peak_memory_bytes=max((row.peak_memory_bytes or 0 for row in group), default=None),
    )


def _signed(result: Paired, higher_is_better: bool) -> Paired:
    """A difference in which more is better."""
    if higher_is_better:
        return result
    low, high = (None, None) if result.low is None or result.high is None else (-result.high, -result.low)
    return Paired(-result.difference, low, high, result.n, result.p, result.test)


def _with_tests(entries: Sequence[Entry], tests: Sequence[Paired | None]) -> tuple[Entry, ...]:
    """Entries with their tests, the p-values adjusted together."""
    made = [test for test in tests if test is not None]
    adjusted = iter(holm([test.p for test in made]))
    complete = []
    for entry, test in zip(entries, tests, strict=True):
        if test is not None:
            found = {"gain": test.difference, "low": test.low, "high": test.high, "p": next(adjusted), "test": test.test}
            entry = Entry(**{**asdict(entry), **found})
        complete.append(entry)
    return tuple(complete)


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


def _notes(model: str, entries: Sequence[Entry], failures: Sequence[Failure]) -> tuple[str, ...]:
    notes = [_seed_note(entries)]
    tests = sorted({entry.test for entry in entries if entry.test})
    number = sum(entry.p is not None for entry in entries)
    if number:
        notes.append(
            f"Bold: significantly better than the base on the same examples ({', '.join(tests)}; two-sided, Holm's correction over "
            f"{number} comparisons, p < {LEVEL})."
        )
        worse = [f"{entry.method} on {entry.task}" for entry in entries if entry.significant and not entry.better]
        notes += [f"Significantly worse than the base: {', '.join(worse)}."] if worse else []
    elif any(entry.method != "base" for entry in entries):
        notes.append("No tests: the base has no scores on the same examples.")
    notes += [f"FAILED: {failure.method} on {failure.task}, seed {failure.seed}: {failure.error}" for failure in failures]
    if is_embedded(model):
        notes.append(LATENT_SKILL)
    return tuple(notes)


def leaderboard(directory: str | Path) -> Leaderboard:
    """The table of a benchmark's folder.

    Args:
        directory: with `rows.jsonl` and `samples/`.

    Returns:
        Methods in the order of `METHODS`, tasks by name (workers may finish in any order), one test per method and task.

    Raises:
        UsageError: no finished cells, or cells of several base models.
        T2Error: damaged rows or samples.
    """
    folder = Path(directory)
    rows = _rows(folder)
    groups = _group(rows)
    examples = {key: _examples(folder, group) for key, group in groups.items()}
    tasks = tuple(sorted({row.task for row in rows}))
    methods = tuple(method for method in METHODS if any(row.method == method for row in rows))
    entries, tests = [], []
    for method in methods:
        for task in tasks:
            if (method, task) not in groups:
                continue
            entries.append(_entry(groups[method, task], examples[method, task]))
            mine, base = examples[method, task], examples.get(("base", task))
            test = paired(mine, base) if method != "base" and mine and base else None
            tests.append(_signed(test, groups[method, task][0].higher_is_better) if test else None)
    failed = [row for row in rows if row.status == "failed"]
    failures = tuple(
        Failure(row.method, row.task, row.seed, (row.error or "").split("\n")[0])
        for row in sorted(failed, key=lambda row: (METHODS.index(row.method), row.task, row.seed))
    )
    complete = _with_tests(entries, tests)
    return Leaderboard(rows[0].model, methods, tasks, complete, failures, _notes(rows[0].model, complete, failures))


@dataclass(frozen=True)
class Comparison:
    """Two methods on one task (or one method in two benchmarks); `gain` is the first over the second, `p` Holm-adjusted."""

    method: str
    task: str
    first: float | None
    second: float | None
    gain: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    test: str

    def __str__(self) -> str:
        if self.gain is None or self.p is None:
            return f"{self.method} on {self.task}: {self.test}"
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return (
            f"{self.method} on {self.task}: {self.first:.3f} against {self.second:.3f}, gain {self.gain:+.3f}{interval}, n={self.n}, "
            f"p={self.p:.2g} ({self.test})"
        )


def _adjust(found: Sequence[tuple[str, str, Sequence[Row], Sequence[Row], Paired]]) -> list[Comparison]:
    adjusted = holm([result.p for *_, result in found])
    comparisons = []
    for (method, task, first, second, result), p in zip(found, adjusted, strict=True):
        scores = _mean([row.score for row in first]), _mean([row.score for row in second])
        comparisons.append(Comparison(method, task, *scores, result.difference, result.low, result.high, result.n, p, result.test))
    return comparisons


def _test(first_dir: Path, first: Sequence[Row], second_dir: Path, second: Sequence[Row]) -> Paired | None:
    """Paired on shared examples, else unpaired from the two means."""
    a, b = _examples(first_dir, first), _examples(second_dir, second)
    result = paired(a, b) if a and b else None
    if result is None:
        one, two = _entry(first, a), _entry(second, b)
        result = unpaired((one.score, one.stderr, one.n), (two.score, two.stderr, two.n))
    return _signed(result, first[0].higher_is_better) if result else None


def compare(directory: str | Path, first: str, second: str) -> list[Comparison]:
    """Test one method against another on every task that both have.

    Args:
        directory: the benchmark's folder.
        first: a method.
        second: another.

    Returns:
        One comparison a task, p-values adjusted over the tasks.

    Raises:
        UsageError: a method that the benchmark does not have.
    """
    folder = Path(directory)
    groups = _group(_rows(folder))
    present = {method for method, _ in groups}
    for method in (first, second):
        if method not in present:
            raise unknown(f"method in {directory}", method, present)
    found = []
    for task in sorted(task for method, task in groups if method == first and (second, task) in groups):
        result = _test(folder, groups[first, task], folder, groups[second, task])
        if result is not None:
            found.append((f"{first} against {second}", task, groups[first, task], groups[second, task], result))
    return _adjust(found)


def fail_on_regression(directory: str | Path, other: str | Path) -> list[Comparison]:
    """What has become worse.

    Args:
        directory: the new benchmark.
        other: the one that it is held against.

    Returns:
        Cells (seeds averaged) that are significantly worse, p < 0.05 after correction over all shared cells, and cells that
        worked there and failed here. Empty: nothing got worse. Cells that only one of the two has are not judged.

    Raises:
        UsageError: the two share no cell.
    """
    here, there = Path(directory), Path(other)
    rows = _rows(here)
    new, old = _group(rows), _group(_rows(there))
    failed = {(row.method, row.task): row for row in rows if row.status == "failed"}
    found = []
    for key in sorted(new.keys() & old.keys()):
        result = _test(here, new[key], there, old[key])
        if result is not None:
            found.append((*key, new[key], old[key], result))
    broken = [
        Comparison(*key, None, _mean([row.score for row in old[key]]), None, None, None, 0, None, f"failed now: {failed[key].error}")
        for key in sorted(failed.keys() & old.keys())
    ]
    if not found and not broken:
        raise UsageError(f"{directory} and {other} share no cell that can be compared.")
    worse = [item for item in _adjust(found) if item.p is not None and item.p < LEVEL and (item.gain or 0.0) < 0]
    return broken + worse
