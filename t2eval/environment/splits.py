"""Splits: which of a task's splits plays which role.

- `train`: the task's training split. Where the task has no separate validation split, the first half of it, shuffled by a constant
  seed (the paper's equal halves).
- `validation`: the task's validation split, else the other half. A task without a test split is evaluated by lm-eval on its
  validation split; that split is then `test` here, and never used to choose anything.
- `adaptation`: what `metadata: {t2: {adaptation_split: …}}` names, else validation, else train, else the labelled test split.
- `test`: what lm-eval evaluates, less the adaptation examples where those had to come from it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from t2eval.environment.example import Split
from t2eval.errors import T2Error

Part = Literal["all", "first", "second"]
"""All of a split, or one of its halves."""

_HALVES_SEED = 16


def split_roles(config: Any, own: Mapping[str, Any]) -> dict[str, str | None]:
    """Role → the task's split, None where it has none. Halves are not told here.

    Args:
        config: the task's configuration: lm-eval's object, or the mapping of a YAML.
        own: its `metadata: {t2: …}`.
    """

    def named(key: str) -> str | None:
        # lm-eval's object is a dict too, and an empty one
        found = getattr(config, key, None) if hasattr(config, "test_split") else config.get(key)
        return None if found is None else str(found)

    test = named("test_split") or named("validation_split")
    return {
        "train": named("training_split") if named("training_split") != test else None,
        "validation": named("validation_split") if named("test_split") else None,
        "test": test,
        "adaptation": own.get("adaptation_split"),
    }


def source_of(config: Any, own: Mapping[str, Any], split: Split, task: str, have: Sequence[str]) -> tuple[str, Part]:
    """The task's split that a role draws from, and which half of it.

    Args:
        config, own: as in `split_roles`.
        split: the role.
        task: the task's name, and have: the splits of its data set, for the message.

    Raises:
        T2Error: the task has nothing to draw from.
    """
    roles = split_roles(config, own)
    train, validation, test = roles["train"], roles["validation"], roles["test"]
    if split == "adaptation":
        if chosen := roles["adaptation"] or validation or train:
            return str(chosen), "all"
        split = "test"
    if split == "test":
        if test is None:
            raise T2Error(f"Task {task!r} has no test split and no validation split.")
        return test, "all"
    if split == "validation" and validation:
        return validation, "all"
    if train is None:
        raise T2Error(
            f"Task {task!r} has no training split that is apart from what it is tested on; its dataset has: "
            f"{', '.join(have) or 'none'}. Name one as training_split in the task's YAML, or train on another task."
        )
    return train, ("all" if validation else "first" if split == "train" else "second")


def halves(size: int) -> dict[Part, list[int]]:
    """The places of a split's halves, each in order; of an odd number the first half has one more."""
    places = list(range(size))
    random.Random(_HALVES_SEED).shuffle(places)
    middle = (size + 1) // 2
    return {"first": sorted(places[:middle]), "second": sorted(places[middle:])}
