"""The catalogue: t2eval's tasks and those of a folder of one's own, with splits, sizes and what they need."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2eval.environment import harness
from t2eval.environment.loading import is_ours, load_task
from t2eval.environment.splits import split_roles
from t2eval.errors import UsageError
from t2eval.paths import tasks_dir

_LOCAL_READERS = frozenset({"json", "csv", "parquet", "arrow", "text"})


@dataclass(frozen=True)
class TaskEntry:
    """One task.

    Attributes:
        name: for `--tasks`.
        label: the skill label, None where the YAML gives none.
        metric: the first of its metrics, by which t2eval compares.
        splits: role (`train`, `validation`, `adaptation`, `test`) -> examples, None where that takes a download.
        needs: of `hub`, `code execution`, `images`.
    """

    name: str
    label: str | None
    metric: str
    splits: dict[str, int | None]
    needs: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def list_tasks(include_path: Path | None = None) -> list[TaskEntry]:
    """All tasks of `t2eval/tasks`, by name, after those of a folder of one's own. What needs the hub is described from its YAML.

    Args:
        include_path: a further folder with task YAMLs.

    Raises:
        T2Error: a task's YAML or data cannot be read, or the folder has none.
    """
    # Each load tells how a custom dataset can be given arguments, which is no news here.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = harness.open_index([str(folder) for folder in (tasks_dir(), include_path) if folder], defaults=False)
    own: list[str] = []
    ours: list[str] = []
    for name in manager.all_subtasks:
        (ours if is_ours(manager, name) else own).append(name)
    if include_path is not None and not own:
        raise UsageError(f"No task was found in {include_path}: no YAML file there, or below it, has a `task:` that lm-eval can read.")
    return [_entry(manager, name) for name in own + ours]


def _entry(manager: Any, name: str) -> TaskEntry:
    config: Mapping[str, Any] = harness.raw_config(manager, name)
    own: Mapping[str, Any] = (config.get("metadata") or {}).get("t2") or {}
    needs = _needs(config)
    splits = _roles(config, own)
    sizes: Mapping[str, int] = own.get("sizes") or {}
    if "hub" not in needs:
        dataset = load_task(manager, name).dataset
        sizes = {split: len(dataset[split]) for split in dataset}
    counted = {role: sizes.get(split) for role, split in splits.items()}
    metrics = config.get("metric_list") or [{"metric": "–"}]
    return TaskEntry(name, own.get("label"), str(metrics[0]["metric"]), counted, needs)


def _roles(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, str]:
    """Role -> the split that plays it. A split that is there for adaptation only is not counted as validation too."""
    found = split_roles(config, own)
    if found["validation"] == found["adaptation"]:
        found["validation"] = None
    order = ("train", "validation", "adaptation", "test")
    return {role: split for role in order if (split := found[role]) is not None}


def _needs(config: Mapping[str, Any]) -> tuple[str, ...]:
    path = config.get("dataset_path")
    needs = {
        "hub": bool(path) and path not in _LOCAL_READERS,  # also where a `custom_dataset` makes the splits of it
        "code execution": bool(config.get("unsafe_code")),
        "images": "doc_to_image" in config,
    }
    return tuple(need for need, needed in needs.items() if needed)
