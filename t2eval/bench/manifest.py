"""Manifest: what the rows of one folder have in common, and the refusal to add others (`neighbours` compares the rows themselves).

`manifest.json` has the benchmark file's settings, the cells, the digests of experts, adapters and tasks, and the versions of the
libraries, as they were when the first row was written. Methods, tasks and seeds may be added to; what changes the score of a cell may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from t2eval.bench.plan import Plan
from t2eval.errors import UsageError
from t2eval.store.files import read_record, write_json
from t2eval.store.guard import refuse_other_settings
from t2eval.store.versions import versions

MANIFEST = "manifest.json"
_CELLS = frozenset({"methods", "tasks", "seeds"})
_GROWS = frozenset({"name", "assume"}) | _CELLS
_OF_METHODS = ("strategies", "model_args")
_BYTES = 256 << 20  # a thousand seeds of a thousand tasks
_ANEW = "Choose another --output, or remove {folder} to begin anew."


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="allow")

    config: dict[str, Any]
    inputs: dict[str, str]
    cells: list[str]
    tasks: dict[str, str] = {}
    versions: dict[str, str] = {}
    shard: Any = None


def checked(folder: Path, plan: Plan, files: Mapping[str, str], tasks: Mapping[str, str], *, grows: bool) -> dict[str, Any]:
    """The manifest that this run will write, after a check that the folder's own is of the same benchmark.

    Args:
        folder: the benchmark's.
        plan: as its file has it, before places for what is trained have been filled in.
        files: digests of expert and adapter files (`inputs.files_of`).
        tasks: digests of the tasks (`inputs.task_digest`).
        grows: whether rows will be added, so that other versions of the libraries would mix with those of before.

    Raises:
        UsageError: another benchmark, or experts, tasks or versions have changed since it was begun; the message names the first.
        T2Error: the folder's manifest is damaged.
    """
    now: dict[str, Any] = {
        "format_version": 1,
        "name": plan.config.name,
        "config": plan.config.model_dump(mode="json"),
        "cells": [cell.key for cell in plan.cells],
        "shard": plan.shard,
        "inputs": dict(files),
        "tasks": dict(tasks),
        "versions": versions(),
    }
    if not (folder / MANIFEST).exists():
        return now
    before = _read(folder)
    anew = _ANEW.format(folder=folder)
    settings = {key: value for key, value in before["config"].items() if key in now["config"]}
    asked = dict(now["config"])
    shared = {*before["config"].get("methods", []), *before["config"].get("strategies", {})} & set(asked["methods"])
    for key in _OF_METHODS:  # what is said of a method that only one of both has is no other setting
        settings[key], asked[key] = ({m: each for m, each in side.get(key, {}).items() if m in shared} for side in (settings, asked))
        now["config"][key] = {**before["config"].get(key, {}), **now["config"][key]}
    # Which cells a shard has follows from all methods, tasks and seeds: with others, cells would change their shard, or be in none.
    may_change = _GROWS if plan.shard is None else _GROWS - _CELLS
    refuse_other_settings(folder, settings, asked, may_change=may_change, remedy=f"Give the same settings. {anew}")
    if before["shard"] != plan.shard:
        then, this = ("all cells" if name is None else f"shard {name}" for name in (before["shard"], plan.shard))
        raise UsageError(f"{folder} was begun for {then}, and this is {this}. Give the same --shard. {anew}")
    for what, verb in (("inputs", "would mix two experts"), ("tasks", "would mix two tasks of one name")):
        for name, digest in now[what].items():
            if before[what].get(name, digest) != digest:
                kind = "" if what == "inputs" else "The task "
                raise UsageError(f"{kind}{name} has changed since {folder} was begun: its rows {verb}. Undo the change. {anew}")
        now[what] = {**before[what], **now[what]}
    if grows:
        for package, version in now["versions"].items():
            if (then := before["versions"].get(package, version)) != version:
                raise UsageError(
                    f"{folder} was begun with {package} {then}, and this is {version}: its rows would mix two versions. Install the first "
                    f"one. {anew}"
                )
    now["cells"] = list(dict.fromkeys([*before["cells"], *now["cells"]]))
    return now


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where there is none: rows may have been copied without it.

    Raises:
        T2Error: it is damaged.
    """
    return _read(folder) if (folder / MANIFEST).exists() else None


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    found = read_record(path, _Manifest, what="benchmark's manifest", remedy="Choose another --output.", limit=_BYTES)
    return found.model_dump()


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Keep a manifest."""
    write_json(folder / MANIFEST, dict(manifest))


def limit_of(folder: Path) -> int | None:
    """The number of test examples a task that a folder's rows are of; None: all, or not known."""
    found = read(folder)
    limit: int | None = None if found is None else found["config"].get("limit")
    return limit
