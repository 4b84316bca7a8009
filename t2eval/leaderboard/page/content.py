"""Content: what the page shows of a benchmark's folder: the table and its tests as printed elsewhere, and the examples behind them.

A page has a summary, which it reads at once, and chunks (the examples of one cell, the documents of one task), which it reads when somebody
looks at them. All of it is a function of what the folders hold.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from t2eval.bench import commits
from t2eval.bench.documents import read_documents
from t2eval.bench.manifest import read as read_manifest
from t2eval.bench.merge import Merged
from t2eval.bench.rows import Row, read_samples
from t2eval.leaderboard.cells import Group, Where, folders, groups_of, merged_rows
from t2eval.leaderboard.comparison import Comparison, adjusted
from t2eval.leaderboard.page.learning import learning
from t2eval.leaderboard.report import table_of
from t2eval.leaderboard.table import Leaderboard
from t2eval.store.versions import commits_between

Groups = Mapping[tuple[str, str], Group]
Tested = tuple[str, str, Group, Group]
Tests = Callable[[Sequence[Tested]], list[Comparison]]
_KEY = 16  # digits of lm-eval's hash of a document: enough for a task's documents not to be taken for each other


@dataclass
class Content:
    """What a page holds.

    Attributes:
        title: of the page.
        summary: can be written as JSON.
        chunks: name → what makes it, which can be written as JSON.
        text: the newest run's table in Markdown, for those who read without a script.
    """

    title: str
    summary: dict[str, Any]
    chunks: dict[str, Callable[[], Any]] = field(default_factory=dict)
    text: str = ""


def content(where: Where, earlier: Sequence[Path] = (), tests: Tests = adjusted) -> Content:
    """Gather what a page shows.

    Args:
        where: a benchmark's folder, or the folders of its parts.
        earlier: folders of its earlier runs, oldest first, for the history.
        tests: of pairs of groups; a server keeps what it has tested.

    Raises:
        UsageError: no finished cells, or rows that do not belong together.
        T2Error: damaged rows, samples or records.
    """
    places: list[Where] = [*earlier, where]
    chunks: dict[str, Callable[[], Any]] = {}
    boards, runs, groups = [], [], []
    for number, (place, name) in enumerate(zip(places, _names([folders(place)[0] for place in places]), strict=True)):
        found = merged_rows(place)
        groups.append(groups_of(place, found.rows))
        boards.append(table_of(found, groups[-1]))
        runs.append({"name": name, **_table(boards[-1]), **_run(found, folders(place)[0], number, chunks)})
        runs[-1]["comparisons"] = _pairs(groups[-1], tests)
    history = [
        {"between": _between(first, second), "comparisons": _same_method(new, old, tests)}
        for (first, second), (old, new) in zip(itertools.pairwise(runs), itertools.pairwise(groups), strict=True)
    ]
    summary = {"format": 1, "runs": runs, "history": history}
    return Content(boards[-1].title, summary, chunks, boards[-1].to_markdown())


def _table(board: Leaderboard) -> dict[str, Any]:
    """The table as JSON has it, with what the Markdown computes from it."""
    totals = {method: board.totals(method) for method in board.methods}
    return {**board.as_dict(), "totals": totals, "better": [[entry.method, entry.task] for entry in board.entries if entry.better]}


def _run(found: Merged, place: Path, number: int, chunks: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What stands behind a table: its cells, whose examples become chunks, and where they are from."""
    done = [row for row in found.rows if row.status == "ok"]
    cells = [_cell(place, row, f"{number}-{at}", chunks) for at, row in enumerate(done)]
    _add_documents(cells, place, done, number, chunks)
    manifests = [manifest for folder in found.folders if (manifest := read_manifest(folder)) is not None]
    return {
        "cells": cells,
        "ended": len(found.rows),
        "planned": len({cell for manifest in manifests for cell in manifest["cells"]}),
        "versions": found.rows[-1].versions,
        "labels": _labels(done),
        "commits": sorted(
            (line.model_dump() for folder in found.folders for line in commits.read(folder)), key=lambda line: str(line["time"])
        ),
        "learning": learning(found.folders),
    }


def _names(places: Sequence[Path]) -> list[str]:
    """What the runs are called: their folders' own names, or as much of the paths as tells them apart."""
    parts = [place.resolve().parts for place in places]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number})" for number, part in enumerate(parts, start=1)]


# ---------------------------------------------------------------------- cells and their examples
def _cell(place: Path, row: Row, name: str, chunks: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What the page knows of one finished row before anybody looks at its examples."""
    t2 = row.t2 or {}
    adaptation = (t2.get("adaptation") or {}).get(row.task)
    if row.samples:
        chunks[f"s{name}"] = functools.partial(_examples, place, row)
    return {
        "method": row.method,
        "task": row.task,
        "seed": row.seed,
        "metric": row.metric,
        "higher": row.higher_is_better,
        "score": row.score,
        "stderr": row.stderr,
        "n": row.n,
        "seconds": row.seconds,
        "first_pass_seconds": row.first_pass_seconds,
        "second_pass_seconds": row.second_pass_seconds,
        "left_out": adaptation["doc_ids"] if adaptation and adaptation.get("overlaps_test") else [],
        "dispatch": (t2.get("dispatch") or {}).get(row.task),
        "alphas": (t2.get("alphas") or {}).get(row.task),
        "alpha_order": t2.get("alpha_order"),
        "adaptation": adaptation and {name: adaptation.get(name) for name in ("split", "examples", "search", "metric", "score", "history")},
        "experts": [expert["name"] for expert in t2.get("experts") or []],
        "mix": t2.get("mix"),
        "samples": f"s{name}" if row.samples else None,
    }


def _examples(place: Path, row: Row) -> dict[str, list[Any]]:
    """A cell's examples, field by field; a field that none has is left out."""
    samples = sorted(read_samples(place, row), key=lambda sample: sample.doc_id)
    seen: dict[str, int] = {}
    keys = []
    for sample in samples:
        repeat = seen[sample.doc_hash] = seen.get(sample.doc_hash, -1) + 1
        keys.append(f"{sample.doc_hash[:_KEY]}#{repeat}" if repeat else sample.doc_hash[:_KEY])
    names = ("score", "response", "raw", "metrics", "why", "dispatch", "probabilities")
    columns = {name: [getattr(sample, name) for sample in samples] for name in names}
    found: dict[str, list[Any]] = {"doc": [sample.doc_id for sample in samples], "key": keys, "score": columns.pop("score")}
    return found | {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _add_documents(
    cells: Sequence[dict[str, Any]], place: Path, rows: Sequence[Row], number: int, chunks: dict[str, Callable[[], Any]]
) -> None:
    """Name the chunk of a task's documents in each of its cells; cells with the same prompts share one."""
    known: dict[tuple[str, str], str | None] = {}
    for cell, row in zip(cells, rows, strict=True):
        key = (row.task, str(row.hashes.get("prompts")))
        if key not in known:
            found = read_documents(place, row)
            known[key] = None if found is None else f"d{number}-{len(known)}"
            if found is not None:
                chunks[f"d{number}-{len(known) - 1}"] = functools.partial(_documents, place, row)
        cell["documents"] = known[key]


def _documents(place: Path, row: Row) -> dict[str, list[Any]]:
    found = list((read_documents(place, row) or {}).values())
    names = ("doc_id", "prompt", "choices", "target", "images")
    return {name: [getattr(document, name) for document in found] for name in names}


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    """Task → its own skill: the label of the one expert that method `expert` evaluates on it."""
    found = {}
    for row in rows:
        experts = (row.t2 or {}).get("experts") or []
        if row.kind == "expert" and len(experts) == 1:
            found[row.task] = str(experts[0]["label"])
    return found


# ---------------------------------------------------------------------- tests
def _pairs(groups: Groups, tests: Tests) -> list[dict[str, Any]]:
    """Every two methods, tested on the tasks that both have, p-values adjusted over the tasks: what `--compare` says."""
    methods = list(dict.fromkeys(method for method, _ in groups))
    found = []
    for first, second in itertools.combinations(methods, 2):
        tasks = sorted(task for method, task in groups if method == first and (second, task) in groups)
        said = tests([(f"{first} against {second}", task, groups[first, task], groups[second, task]) for task in tasks])
        found += [{**asdict(item), "a": first, "b": second} for item in said]
    return found


def _same_method(new: Groups, old: Groups, tests: Tests) -> list[dict[str, Any]]:
    """The cells that two runs share, the newer one over the older, p-values adjusted over all of them: what the gate for CI says."""
    shared = [key for key in new if key in old]
    return [asdict(item) for item in tests([(*key, new[key], old[key]) for key in shared])]


def _between(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The commits between two runs, of the repository that they ran in and of t2eval's, as far as the repository around here knows them."""
    found: dict[str, Any] = {}
    for name in ("repository", "t2eval"):
        begin, end = (run["commits"][-1][name] if run["commits"] else None for run in (first, second))
        log = commits_between(Path.cwd(), begin, end) if begin and end else None
        found[name] = {"first": begin, "last": end, "log": log}
    return found
