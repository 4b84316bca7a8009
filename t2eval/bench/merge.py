"""Merge: the rows of several folders of one benchmark as if they were one folder's: its shards, or parts that were run apart.

A cell that lies in several folders is kept once where the results are equal, which is said, and refused by name where they differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.bench import manifest
from t2eval.bench.config import parse_config
from t2eval.bench.neighbours import Neighbours, differences
from t2eval.bench.plan import make_plan
from t2eval.bench.rows import ROWS, Row, read, read_samples
from t2eval.bench.shards import missing_shards, parse_name, shard_folders
from t2eval.errors import T2Error, UsageError, listed, shown

_PLACES = frozenset({"name", "assume", "methods", "tasks", "seeds", "experts", "baselines", "include_path", "device", "train"})
"""Settings in which parts may differ: what only says which cells there are, and places, whose contents the rows' hashes say."""
_RESULT = ("metric", "higher_is_better", "score", "stderr", "n", "undefined", "trainable_parameters")


@dataclass(frozen=True)
class Merged:
    """Rows of one benchmark, from one folder or several.

    Attributes:
        rows: one a cell; where there are several folders, each with the one that it was read from (`folder`).
        folders: that they lie in.
        notes: what there was twice, and what is not there.
    """

    rows: tuple[Row, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def parts_of(where: Path) -> list[Path]:
    """The folders with rows that a folder stands for: itself, and those of the shards inside it."""
    shards = shard_folders(where)
    return [where, *shards] if not shards or (where / ROWS).exists() else shards


def merged(places: Sequence[Path]) -> Merged:
    """Read one folder, or several as one.

    Args:
        places: of `t2 bench --output`, or of single shards inside such a folder.

    Raises:
        UsageError: parts of different benchmarks, a cell with two results, or rows that do not belong beside each other.
        T2Error: damaged rows, samples or manifests.
    """
    folders = list(dict.fromkeys(folder for place in places for folder in parts_of(Path(place))))
    if folders == [Path(places[0])]:  # one folder, whose samples are found from itself
        rows = read(folders[0])
        Neighbours(folders[0], rows)
        manifests = {} if parse_name(folders[0]) is None else _manifests(folders)
        return Merged(tuple(rows), tuple(folders), tuple(_missing(manifests, rows)))
    manifests = _manifests(folders)
    _refuse_other_benchmarks(manifests)
    kept: dict[str, tuple[Path, Row]] = {}
    notes: list[str] = []
    for folder in folders:
        for row in read(folder):
            before = kept.get(row.cell)
            kept[row.cell] = (folder, row) if before is None else _one(before, (folder, row), notes)
    neighbours = Neighbours(folders[0])
    for folder, row in kept.values():
        neighbours.admit(row, folder)
    rows = [row.within(folder) for folder, row in kept.values()]
    return Merged(tuple(rows), tuple(folders), (*notes, *_missing(manifests, rows)))


def _one(first: tuple[Path, Row], second: tuple[Path, Row], notes: list[str]) -> tuple[Path, Row]:
    """Which of two rows of one cell counts: one that is finished, else the first.

    Raises:
        UsageError: both are finished, and their results differ.
    """
    (folder, row), (other_folder, other) = first, second
    where = f"{row.cell} lies in {folder} and in {other_folder}"
    if "failed" in (row.status, other.status):
        best = second if row.status == "failed" and other.status == "ok" else first
        notes.append(f"Twice: {where}; it failed in {folder if row.status == 'failed' else other_folder}, and the row of {best[0]} counts.")
        return best
    if difference := _difference(first, second):
        raise UsageError(
            f"{where} with different results: {difference}. Only one can be right: leave one of the folders out, or remove its line from "
            f"one {ROWS}."
        )
    notes.append(f"Twice: {where} with equal results, and counts once.")
    return first


def _difference(first: tuple[Path, Row], second: tuple[Path, Row]) -> str:
    """The first thing in which two rows of a cell differ besides their times and memory; empty where there is none."""
    (folder, row), (other_folder, other) = first, second
    for field in _RESULT:
        here, there = getattr(row, field), getattr(other, field)
        if here != there:
            return f"{field} is {shown(here)} in {folder} and {shown(there)} in {other_folder}"
    if made := differences(row, other):
        return f"they were made with {made[0].words}"
    scores = [{sample.doc_id: (sample.doc_hash, sample.score) for sample in read_samples(*side)} for side in (first, second)]
    return "" if scores[0] == scores[1] else "their examples have other scores"


# ---------------------------------------------------------------------- manifests
def _manifests(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Of those folders that have one: rows may have been copied without."""
    return {folder: found for folder in folders if (found := manifest.read(folder)) is not None}


def _refuse_other_benchmarks(manifests: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse parts whose settings differ in what changes scores."""
    first: tuple[Path, Mapping[str, Any]] | None = None
    for folder, found in manifests.items():
        first = first or (folder, found)
        here, there = first[1]["config"], found["config"]
        for key in sorted((here.keys() & there.keys()) - _PLACES):
            if here[key] != there[key]:
                raise UsageError(
                    f"{first[0]} and {folder} are of different benchmarks: {key} is {shown(here[key])} in the first and "
                    f"{shown(there[key])} in the second. Only parts of one can be merged."
                )


def _sharded(manifests: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    return [str(found["shard"]) for found in manifests.values() if found["shard"]]


def _missing(manifests: Mapping[Path, Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """Shards and cells that the benchmark has and these folders have not."""
    notes = []
    if shards := missing_shards(_sharded(manifests)):
        notes.append(f"Missing: {'shard' if len(shards) == 1 else 'shards'} {listed(shards)}.")
    there = {row.cell for row in rows}
    absent = [key for key in _cells(manifests) if key not in there]
    if absent:
        count = "1 cell has" if len(absent) == 1 else f"{len(absent)} cells have"
        notes.append(f"Missing: {count} no row: {listed(absent)}.")
    return notes


def _cells(manifests: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """The keys of all cells that the parts together should have: each part's own, and of a shard those of its whole benchmark."""
    found: dict[str, None] = {}
    whole: set[str] = set()
    for part in manifests.values():
        found |= dict.fromkeys(part["cells"])
        text = json.dumps(part["config"], sort_keys=True)
        if not part["shard"] or text in whole:
            continue
        whole.add(text)
        try:
            found |= {cell.key: None for cell in make_plan(parse_config(part["config"])).cells}
        except T2Error:  # another release's settings: then the parts' own cells are all that is known
            continue
    return list(found)
