"""Trackers: a benchmark's cells in TensorBoard or Weights & Biases as they end, by accelerate's trackers, as trainings are.

The names are the same in each: `TASK/METHOD/seed-N/score`, `stderr`, `n`, `seconds`, `first_pass_seconds` and `second_pass_seconds`; the
step is the number of cells that have ended (Weights & Biases drops figures whose step goes back). A cell that failed has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from t2eval.bench.rows import Row

FOLDER = "trackers"
_FIGURES = ("score", "stderr", "n", "seconds", "first_pass_seconds", "second_pass_seconds")


def figures(row: Row) -> dict[str, float]:
    """What a tracker gets of a finished cell, by name."""
    if row.status != "ok":
        return {}
    found = {name: getattr(row, name) for name in _FIGURES}
    return {f"{row.task}/{row.method}/seed-{row.seed}/{name}": float(value) for name, value in found.items() if value is not None}


class Trackers:
    """Trackers of one run of a benchmark, to be used with `with`.

    Args:
        names: of accelerate's trackers: `tensorboard`, `wandb`, ….
        output: the benchmark's folder; trackers write into `trackers/` of it.
        settings: the benchmark file's.

    Raises:
        UsageError: a tracker that accelerate does not know, or whose package is not installed.
    """

    def __init__(self, names: Sequence[str], output: Path, settings: Mapping[str, Any]) -> None:
        self._trackers: list[Any] = []
        if not names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        from t2eval.training.processes import check_trackers

        check_trackers(names)
        PartialState()
        folder = output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        plain = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in settings.items()}
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            where: dict[str, Any] = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            tracker = kind("t2eval", **where, **({"dir": str(folder)} if name == "wandb" else {}))
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(plain)
            self._trackers.append(tracker)

    def log(self, row: Row, step: int) -> None:
        """Hand a finished cell on, the `step`th of the benchmark."""
        if found := figures(row):
            for tracker in self._trackers:
                tracker.log(found, step=step)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for tracker in self._trackers:
            tracker.finish()
