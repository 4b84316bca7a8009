"""Task facts: what a task's YAML and the caches say of it, without a download."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2eval.basemodel import probe as hub
from t2eval.environment.harness import is_known
from t2eval.environment.loading import checked_config, load_task
from t2eval.environment.splits import split_roles
from t2eval.forecast.figures import Figure


@dataclass(frozen=True)
class TaskFacts:
    """What a task's YAML and the caches say of it.

    Attributes:
        name: of the task.
        examples: by role: train, validation, test.
        longest: tokens of an answer at most; None: a choice.
        samples: answers to each test example.
        data: its data sets.
        cluster: the field by which its documents depend on each other; None: they do not.
    """

    name: str
    examples: Mapping[str, Figure]
    longest: int | None
    samples: int
    data: tuple[hub.HubData, ...]
    cluster: str | None = None


def task_facts(manager: Any, name: str) -> TaskFacts:
    """What can be said of a task without a download.

    Raises:
        T2Error: its programs would run unprotected.
    """
    config = checked_config(manager, name)
    own: Mapping[str, Any] = (config.get("metadata") or {}).get("t2") or {}
    data = task_data(manager, config)
    splits = {role: split for role, split in split_roles(config, own).items() if role != "adaptation"}
    sizes = {split: Figure(float(count), "read", "stated in the task's YAML") for split, count in (own.get("sizes") or {}).items()}
    if not sizes and not data:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # each load tells how a custom data set takes arguments: no news here
        loaded = load_task(manager, name).dataset
        sizes = {split: Figure(float(len(loaded[split])), "measured", "counted") for split in loaded}
    if not sizes and len(data) == 1 and (found := hub.cached_data(data[0])) is not None:
        sizes = {split: Figure(float(count), "read", "stated in the cache") for split, count in found.sizes.items()}
    unknown = Figure(None, "unknown", "in the data set, which is not on this machine")
    generates = config.get("output_type", "generate_until") == "generate_until"
    return TaskFacts(
        name,
        {role: sizes.get(str(split), unknown) for role, split in splits.items() if split},
        int((config.get("generation_kwargs") or {}).get("max_gen_toks") or 256) if generates else None,
        int((config.get("metadata") or {}).get("n") or config.get("repeats") or 1),
        data,
        own.get("cluster"),
    )


def task_data(manager: Any, config: Mapping[str, Any]) -> tuple[hub.HubData, ...]:
    """The data sets of a task, with those of the tasks whose questions it is made of (`dataset_kwargs.tasks`: dispatch)."""
    others = (config.get("dataset_kwargs") or {}).get("tasks") or []
    theirs = [data for name in others if is_known(manager, name) for data in hub.hub_data(checked_config(manager, name))]
    return tuple(dict.fromkeys([*hub.hub_data(config), *theirs]))
