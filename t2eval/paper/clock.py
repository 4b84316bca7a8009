"""Clock: the seconds that each item has taken, summed over the sessions of an output folder.

`seconds.json` is item → number of worker processes → seconds of wall time. It is written at every step that the lab reports, so that a
session that is killed loses only what came after its last finished cell or training, which the next session repeats.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from t2eval.store.files import read_record, write_json

SECONDS = "seconds.json"


class Clock:
    """The seconds of one output folder.

    Args:
        output: the folder.
        workers: of this session.
    """

    def __init__(self, output: Path, workers: int) -> None:
        self._file, self._workers = output / SECONDS, str(workers)
        self._spent: dict[str, dict[str, float]] = _read(self._file)
        self._running: tuple[str, float] | None = None

    @contextlib.contextmanager
    def running(self, item: str) -> Iterator[None]:
        """Inside, seconds are the item's, whether it ends well or not."""
        self._running = item, time.perf_counter()
        try:
            yield
        finally:
            self.save()
            self._running = None

    def save(self) -> None:
        """Count the seconds up to now."""
        if self._running is None:
            return
        item, since = self._running
        now = time.perf_counter()
        spent = self._spent.setdefault(item, {})
        spent[self._workers] = round(spent.get(self._workers, 0.0) + now - since, 3)
        self._running = item, now
        write_json(self._file, self._spent)

    def seconds(self, item: str) -> float:
        """Of an item, over all sessions."""
        return sum(self._spent.get(item, {}).values())

    def __str__(self) -> str:
        """All items' seconds over all sessions, for each number of workers: `5400 s with 2 workers`."""
        totals: dict[str, float] = {}
        for spent in self._spent.values():
            for workers, seconds in spent.items():
                totals[workers] = totals.get(workers, 0.0) + seconds
        parts = [f"{seconds:.0f} s with {workers} worker{'' if workers == '1' else 's'}" for workers, seconds in sorted(totals.items())]
        return " and ".join(parts) or "0 s"


def _read(file: Path) -> dict[str, dict[str, float]]:
    """The seconds of earlier sessions; none where there are none.

    Raises:
        T2Error: the file is damaged.
    """
    if not file.exists():
        return {}
    remedy = f"Delete {file}: only the seconds of earlier sessions are lost."
    return read_record(file, dict[str, dict[str, float]], what="seconds of `t2 paper`", remedy=remedy, limit=1 << 20)
