"""Progress: what a training run shows while it runs: reward, KL, validation score, time left, and remarks."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]

QUIET_SECONDS = 25.0
"""The longest silence where the output is no terminal, less than the half minute that is promised."""
_log = logging.getLogger("t2eval.training")


class Show:
    """Shows nothing. The base of what shows something.

    Attributes:
        remarks: what was said, in order.
    """

    def __init__(self) -> None:
        self.remarks: list[str] = []

    def report(self, row: dict[str, Any]) -> None:
        """Show one row of the log."""

    def say(self, text: str) -> None:
        """Show a remark."""
        self.remarks.append(text)
        log_remark(text)

    def close(self) -> None:
        """Leave the terminal as it was."""


class Handed(Show):
    """Hands each row to a function."""

    def __init__(self, function: Report) -> None:
        super().__init__()
        self._function = function

    def report(self, row: dict[str, Any]) -> None:
        self._function(row)


class Lines(Show):
    """Lines on standard error, where that is no terminal: at each validation, and whenever half a minute has been silent."""

    def __init__(self, title: str, quiet: float = QUIET_SECONDS) -> None:
        super().__init__()
        self._title, self._quiet, self._lock = title, quiet, threading.Lock()
        self._row: dict[str, Any] = {}
        self._began = self._reported = self._printed = time.monotonic()
        self._validation: float | None = None
        self._closed = threading.Event()
        self._clock = threading.Thread(target=self._keep_talking, daemon=True)
        self._clock.start()

    def report(self, row: dict[str, Any]) -> None:
        with self._lock:
            validated = row.get("validation") is not None
            self._validation = row["validation"] if validated else self._validation
            self._row, self._reported = {**row, "validation": self._validation}, time.monotonic()
            if validated or self._reported - self._printed >= self._quiet:
                self._print(describe(self._row))

    def say(self, text: str) -> None:
        with self._lock:
            self.remarks.append(text)
            self._print(text)

    def close(self) -> None:
        self._closed.set()
        self._clock.join(timeout=1)

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        print(f"{self._title}: {text}", file=sys.stderr, flush=True)

    def _keep_talking(self) -> None:
        while not self._closed.wait(max(0.01, self._printed + self._quiet - time.monotonic())):
            with self._lock:
                now = time.monotonic()
                if now - self._printed < self._quiet:
                    continue
                if not self._row:
                    self._print(f"validating the base model, {_clock(now - self._began)} so far")
                    continue
                left = self._row.get("seconds_left")
                since = now - self._reported
                self._print(describe({**self._row, "seconds_left": None if left is None else max(0.0, left - since)}))


class Bar(Show):
    """A progress bar on standard error."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__()
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"), console=console
        )
        self._task = self._progress.add_task(title, total=1.0, text="validating the base model")
        self._validation: float | None = None
        self._progress.start()

    def report(self, row: dict[str, Any]) -> None:
        if row.get("validation") is not None:
            self._validation = row["validation"]
        text = describe({**row, "validation": self._validation})
        self._progress.update(self._task, completed=row.get("progress", 0.0), text=text)

    def say(self, text: str) -> None:
        self.remarks.append(text)
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def describe(row: dict[str, Any]) -> str:
    """One row of the log in a line: step, reward or loss, KL, validation score, time left."""
    parts = [f"step {row['step']}"]
    for key, form in (("reward", "reward {:+.2f}"), ("kl", "KL {:.3f}"), ("validation", "validation {:.3f}")):
        if row.get(key) is not None:
            parts.append(form.format(row[key]))
    if row.get("reward") is None and row.get("loss") is not None:
        parts.insert(1, f"loss {row['loss']:.3f}")
    left = row.get("seconds_left")
    if left is not None:
        parts.append(f"{_clock(left)} left")
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def show(progress: bool | Report, title: str) -> Show:
    """What shows a run.

    Args:
        progress: True: a bar, or lines where standard error is no terminal; False: nothing; or a function that gets each row.
        title: of the bar, and of each line.
    """
    if progress is True:
        return Bar(title) if sys.stderr.isatty() else Lines(title)
    return Handed(progress) if callable(progress) else Show()


def log_remark(text: str) -> None:
    """A remark where nothing shows the run: a warning in Python's log."""
    _log.warning(text)


def opening(progress: bool | Report, text: str) -> None:
    """A line that stands before a run's own, or after them, where the run is shown to a person."""
    if progress is True:
        print(text, file=sys.stderr, flush=True)
