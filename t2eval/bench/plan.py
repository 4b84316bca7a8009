"""Plans: a benchmark file and the cells that it asks for.

A cell is one (base model, method, task, seed). Which expert a cell uses follows from its task's label (`metadata.t2.label` of
the task's YAML, or `labels` of the benchmark file):

1. The paper takes, for an unseen task, the LoRA of all training tasks with the best test score. Here lora, ia3 and dora use the
   adapter trained for the task's own label, chosen without looking at the test set; so does the method `expert`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.bench.config import METHODS, BenchConfig, parse_config
from t2eval.environment import harness
from t2eval.errors import T2Error, UsageError, did_you_mean, listed, unknown
from t2eval.expert.location import is_hub
from t2eval.paths import configs_dir, experts_dir, is_embedded, joined
from t2eval.store.files import read_yaml

_PATH_FIELDS = ("experts", "baselines", "include_path")


@dataclass(frozen=True)
class Cell:
    """One (base model, method, task, seed)."""

    model: str
    method: str
    task: str
    seed: int

    @property
    def key(self) -> str:
        """A name for the cell that is stable between runs and is a file name."""
        return f"{_slug(self.model)}__{self.method}__{_slug(self.task)}__seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A benchmark file's contents and its cells, base first, then method by method and seed by seed; of a shard, its part of them."""

    config: BenchConfig
    cells: tuple[Cell, ...]
    shard: str | None = None


def _slug(name: str) -> str:
    """A file-name form of a name; a hash keeps apart what it makes alike."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    return slug if slug == name else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def make_plan(config: BenchConfig) -> Plan:
    """All cells of a benchmark. The base does not depend on the seed: it has one cell a task, recorded with seed 0."""
    cells = []
    for method in sorted(config.methods, key=lambda method: METHODS.index(config.kind(method))):
        for seed in (0,) if method == "base" else config.seeds:
            cells += [Cell(config.model, method, task, seed) for task in config.tasks]
    return Plan(config, tuple(cells))


def _anchor(value: str, folder: Path) -> str:
    """A path of a benchmark file, or several joined by `+`, relative to that file. A place on the hub stays as it is."""

    def anchored(part: str) -> str:
        path = Path(part).expanduser()
        return part if is_hub(part) else str(path if path.is_absolute() else (folder / path).resolve())

    return "+".join(map(anchored, joined(value)))


def _absolute(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with their paths made absolute: those of the path fields, and a model that is a folder there."""
    settings = dict(settings)
    for field in _PATH_FIELDS:
        if isinstance(settings.get(field), str):
            settings[field] = _anchor(settings[field], folder)
    methods = settings.get("methods")
    if isinstance(methods, list | tuple):
        settings["methods"] = [_with_experts_at(each, folder) for each in methods]
    train = settings.get("train")
    if isinstance(train, Mapping) and isinstance(train.get("recipe"), str):
        settings["train"] = {**train, "recipe": _anchor(train["recipe"], folder)}
    model = settings.get("model")
    if isinstance(model, str) and not is_embedded(model) and (folder / model).is_dir():
        settings["model"] = _anchor(model, folder)
    return settings


def _with_experts_at(method: Any, folder: Path) -> Any:
    """A method with the path of the experts that it has of its own made absolute."""
    own = method.get("experts") if isinstance(method, Mapping) else None
    return {**method, "experts": _anchor(own, folder)} if isinstance(own, str) else method


def shipped_files() -> dict[str, Path]:
    """The benchmark files that come with t2eval, by name (`paper-llama3-8b`, `embedded`)."""
    found = [*configs_dir().glob("*.yaml"), *(experts_dir() / "benchmarks").glob("*.yaml")]
    return {file.stem: file for file in sorted(found)}


def find_file(name: str | Path) -> Path:
    """The benchmark file that is meant.

    A file that exists is itself. Otherwise the name of a shipped one will do, also with the folder and the ending that it has in the
    repository: so `configs/paper-llama3-8b.yaml` works from a wheel, wherever one is.

    Raises:
        UsageError: no such file, with the shipped names.
    """
    path = Path(name)
    shipped = shipped_files()
    if path.exists() and not path.is_dir():
        return path
    if path.suffix in ("", ".yaml") and path.parent in (Path(), Path("configs"), Path("experts/benchmarks")) and path.stem in shipped:
        return shipped[path.stem]
    near = difflib.get_close_matches(path.stem, shipped, n=2, cutoff=0.6)
    raise UsageError(
        f"Cannot read the benchmark file {path}: there is none.{did_you_mean(near)} Shipped with t2eval: {', '.join(shipped)}."
    )


def load_plan(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read a benchmark file.

    Args:
        path: YAML, or the name of a shipped one; its relative paths are relative to it.
        overrides: settings that replace the file's (`seeds`, `limit`, …); None values are ignored, relative paths are relative
            to the current folder.

    Returns:
        The checked settings and their cells. Task names are checked when the plan is run (`open_tasks`).

    Raises:
        UsageError: no such file, not YAML, an unknown key or name, a wrong value.
    """
    path = find_file(path)
    try:
        settings = read_yaml(path, what="benchmark file", remedy="It is a YAML mapping with at least `tasks:`.")
    except T2Error as error:
        raise UsageError(str(error)) from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path} must be a mapping with at least `tasks:`.")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    merged = {**_absolute(settings, path.parent), **_absolute(given, Path.cwd())}
    if "assume" in given:
        merged["assume"] = {**(settings.get("assume") or {}), **given["assume"]}
    return make_plan(parse_config(merged, str(path)))


def open_tasks(names: Sequence[str], include_path: str | None = None) -> Any:
    """A TaskManager that knows the tasks; lm-eval's own 14,000 (15 s to index) are read only where they are asked for.

    Args:
        names: the tasks to be loaded.
        include_path: a further folder with task YAMLs.

    Raises:
        UsageError: a name that nobody knows, with near matches, a group of tasks, or a folder that does not exist.
    """
    from t2eval.environment.loading import make_task_manager, refuse_unreadable

    managers = [make_task_manager(include_path, task=name) for name in names]
    manager = max(managers, key=lambda manager: len(manager.all_tasks))
    for name in names:
        if name not in manager.all_tasks:
            refuse_unreadable(include_path)
            raise unknown("task", name, manager.all_subtasks)
        if name not in manager.all_subtasks:
            tasks = listed(harness.members(manager, name)) or "see `lm_eval ls groups`"
            raise UsageError(f"{name!r} is a group of tasks, and one task is needed. Its tasks: {tasks}.")
    return manager


def task_label(config: BenchConfig, task: str, metadata: Mapping[str, Any] | None) -> str:
    """The skill label of a task: the benchmark file's, else `metadata.t2.label` of its YAML.

    Raises:
        UsageError: neither says.
    """
    label = config.labels.get(task) or ((metadata or {}).get("t2") or {}).get("label")
    if not label:
        raise UsageError(
            f"Task {task!r} has no skill label: add `labels: {{{task}: <label>}}` to the benchmark file, "
            "so that its expert or adapter can be chosen."
        )
    return str(label)
