"""What the task tests share: t2eval's task manager, and the hub's data sets as hand-made rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from t2eval.environment.environment import Environment, make_task_manager
from tests.offline_datasets import datasets_cache, write_hub


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `datasets` cache with all hand-made data sets."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    return folder


@pytest.fixture(scope="module")
def hub(hub_folder: Path) -> Iterator[None]:
    """The hub is the hand-made data sets, and nothing else."""
    with datasets_cache(hub_folder):
        yield


@pytest.fixture(scope="module")
def environment(hub: None) -> Callable[[str], Environment]:
    """Environments of t2eval's tasks by name, each loaded once a module."""
    known: dict[str, Environment] = {}

    def get(name: str) -> Environment:
        if name not in known:
            known[name] = Environment(name, task_manager=make_task_manager(task=name))
        return known[name]

    return get
