"""Hub tasks: which data set of the hub a task's test split is, for scores that others compare."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from t2eval.basemodel.probe import HubData, hub_data
from t2eval.environment import harness
from t2eval.environment.loading import make_task_manager


def hub_data_of(tasks: Iterable[str], include_path: str | Path | None = None) -> dict[str, HubData]:
    """The data set of the hub that each task tests on, of those that test on one data set as it is.

    Left out are tasks that are not known here, that make their splits themselves (`custom_dataset`), and that read local files or several
    data sets.

    Args:
        tasks: their names.
        include_path: a further folder of task YAMLs.
    """
    found: dict[str, HubData] = {}
    for name in tasks:
        manager = make_task_manager(include_path, task=name)
        if not harness.is_known(manager, name) or name not in set(manager.all_subtasks):
            continue
        config = harness.raw_config(manager, name)
        data = hub_data(config)
        if len(data) == 1 and data[0].name.count("/") == 1 and not config.get("custom_dataset") and config.get("test_split"):
            found[name] = data[0]
    return found
