"""Table: a leaderboard's entries, as Markdown and JSON.

A gain over the base is bold only where the paired test says so after Holm's correction over all cells of the table, and where every test
example stood on both sides.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from t2eval.stats.corrections import LEVEL
from t2eval.store.texts import code_span, visible

_TAG = re.compile(r"<(?=[A-Za-z/!?])")


@dataclass(frozen=True)
class Entry:
    """One method on one task: scores averaged over seeds, and the test against the base.

    `stderr` is over examples (of seed-averaged scores; None for one example), `seed_std` the standard deviation between the seeds' scores
    (None for one seed), `gain` the difference to the base in the direction in which more is better. `p` is Holm-adjusted. `adapted` are
    the test documents on which the method adapted, and `undefined` those for which the metric is not a number: both are left out of the
    score and of both sides of the test. `whole` says that no document was left out on either side. `clusters` is the number of groups of
    dependent examples that the score is of (None where they are independent; `stderr` and the test take them into account), `smallest` the
    smallest true difference to the base that so many examples would show, four times in five at 5% before the correction (None: none).
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
    adapted: tuple[int, ...] = ()
    undefined: tuple[int, ...] = ()
    whole: bool = True
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str | None = None
    clusters: int | None = None
    smallest: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference to the base is significant after correction."""
        return self.p is not None and self.p < LEVEL

    @property
    def better(self) -> bool:
        """Whether it is a significant gain, on all test examples."""
        return self.significant and self.whole and (self.gain or 0.0) > 0

    @property
    def worse(self) -> bool:
        """Whether it is a significant loss."""
        return self.significant and (self.gain or 0.0) < 0


@dataclass(frozen=True)
class Failure:
    """A cell that did not work."""

    method: str
    task: str
    seed: int
    error: str


@dataclass(frozen=True)
class Leaderboard:
    """The table of one benchmark; `title` is the benchmark's name."""

    title: str
    model: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def entry(self, method: str, task: str) -> Entry | None:
        """One cell of the table."""
        return self._places.get((method, task))

    @functools.cached_property
    def _places(self) -> dict[tuple[str, str], Entry]:
        return {(entry.method, entry.task): entry for entry in self.entries}

    def as_dict(self) -> dict[str, Any]:
        """The whole table, as JSON has it."""
        entries = [{**asdict(entry), "significant": entry.significant} for entry in self.entries]
        failures = [asdict(failure) for failure in self.failures]
        content: dict[str, Any] = {"title": self.title, "model": self.model, "methods": self.methods, "tasks": self.tasks}
        return {**content, "notes": self.notes, "entries": entries, "failures": failures}

    def to_json(self) -> str:
        """The whole table as JSON, without NaN or infinity."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)

    def totals(self, method: str) -> list[str]:
        """A method's mean score, mean seconds and trainable parameters, as the table shows them; `–` where there is none."""
        found = [self.entry(method, task) for task in self.tasks]
        return _totals([entry for entry in found if entry], found)

    def to_markdown(self) -> str:
        """The table and its notes as Markdown. Names and errors are text: no character of theirs is read as Markdown or HTML."""
        header = ["method", *self.tasks, "mean", "seconds a cell", "trainable parameters"]
        lines = [
            f"# {_name(self.title)}",
            "",
            f"Base model: {_name(self.model)}",
            "",
            _line(map(_name, header)),
            _line(["---", *["---:"] * (len(header) - 1)]),
        ]
        for method in self.methods:
            found = [self.entry(method, task) for task in self.tasks]
            lines.append(_line([_name(method), *(_cell(entry) for entry in found), *self.totals(method)]))
        notes = [*(f"- {_name(note)}" for note in self.notes), *map(_failed, self.failures)]
        return "\n".join([*lines, "", *self._comparisons(), *notes]) + "\n"

    def _comparisons(self) -> list[str]:
        """What each method gains over the base, and what so many examples could show."""
        tested = [entry for entry in self.entries if entry.p is not None]
        if not tested:
            return []
        header = ["against the base", "task", "gain", "95% interval", "p", "could show"]
        lines = [_line(header), _line(["---", "---", *["---:"] * (len(header) - 2)])]
        for entry in tested:
            gain = f"**{entry.gain:+.3f}**" if entry.better else f"{entry.gain:+.3f}"
            interval = "N/A" if entry.low is None else f"{entry.low:+.3f} to {entry.high:+.3f}"
            smallest = "nothing" if entry.smallest is None else f"{entry.smallest:.3f}"
            lines.append(_line([_name(entry.method), _name(entry.task), gain, interval, f"{entry.p:.2g}", smallest]))
        return [*lines, ""]


def _failed(failure: Failure) -> str:
    """A failed cell, as a line of Markdown: its error may have what a model wrote in it."""
    return f"- FAILED: {_name(failure.method)} on {_name(failure.task)}, seed {failure.seed}: {code_span(failure.error)}"


def _name(text: str) -> str:
    """A name or a note, of whoever gave it, inside Markdown: it ends no cell, and begins no HTML."""
    return _TAG.sub("&lt;", visible(text).replace("|", "\\|"))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    score = f"**{entry.score:.3f}**" if entry.better else f"{entry.score:.3f}"
    error = f" ± {entry.stderr:.3f}" if entry.stderr is not None else " ± N/A" if 1 in (entry.n, entry.clusters) else ""
    clusters = "" if entry.clusters is None else f" in {entry.clusters}"
    return f"{score}{error} (n={entry.n}{clusters})"


def _totals(entries: Sequence[Entry], found: Sequence[Entry | None]) -> list[str]:
    """Mean score, mean seconds and parameters of a method. No mean where a task is missing: it would not be comparable."""
    if not entries:
        return ["–", "–", "–"]
    mean = f"{np.mean([entry.score for entry in entries]):.3f}" if all(found) else "–"
    sizes = {entry.trainable_parameters for entry in entries if entry.trainable_parameters is not None}
    parameters = "–" if not sizes else f"{max(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    return [mean, f"{np.mean([entry.seconds for entry in entries]):.1f}", parameters]
