"""The names of t2eval's tasks, read from their YAMLs when tests are collected."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from t2eval.environment.environment import make_task_manager
from t2eval.sandbox import available

MANAGER = make_task_manager(task="embedded_math_seen")
"""Over t2eval's tasks only: they are found without lm-eval's."""
GROUPS: list[str] = list(MANAGER.all_groups)


def raw(name: str) -> dict[str, Any]:
    """A task's YAML as it is written, with what it includes."""
    return MANAGER.task_index[name].cfg or {}


ALL: list[str] = list(MANAGER.all_subtasks)
TEXT = [name for name in ALL if "doc_to_image" not in raw(name)]
"""Tasks with pictures need a multimodal model: they have tests of their own."""


def params(names: list[str]) -> list[Any]:
    """Tasks as test parameters; those that run programs are skipped where there is no sandbox."""
    reason = f"no sandbox: {available().reason}"
    unsafe = [bool(raw(name).get("unsafe_code")) and available().kind is None for name in names]
    return [pytest.param(name, marks=[pytest.mark.skip(reason=reason)] if skip else []) for name, skip in zip(names, unsafe, strict=True)]


@lru_cache(maxsize=64)
def load_once(manager: Any, name: str) -> Any:
    """lm-eval's task object, the same one for all tests of a process: making the embedded ones' text takes most of the time."""
    return manager.load([name])["tasks"][name]
