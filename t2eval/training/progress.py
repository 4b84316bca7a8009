"""Progress: what a training run shows while it runs: reward, KL, validation score, time left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]


class Bar:
    """A progress bar on standard error; where that is not a terminal, a line at each validation."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._title = title
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"), console=self._console
        )
        self._task = self._progress.add_task(title, total=1.0, text="validating the base model")
        self._validation: float | None = None
        if self._live:
            self._progress.start()

    def __call__(self, row: dict[str, Any]) -> None:
        """Show one row of the log."""
        if row.get("validation") is not None:
            self._validation = row["validation"]
        text = describe({**row, "validation": self._validation})
        if self._live:
            self._progress.update(self._task, completed=row.get("progress", 0.0), text=text)
        elif row.get("validation") is not None:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
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
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    return " · ".join(parts)


def reporter(progress: bool | Report, title: str) -> tuple[Report, Callable[[], None]]:
    """The function that shows a row and the one that ends the show.

    Args:
        progress: True: a bar; False: nothing; or a function that gets each row.
        title: of the bar.
    """
    if progress is True:
        bar = Bar(title)
        return bar, bar.close
    return (progress if callable(progress) else _silent), _nothing


def _silent(_: dict[str, Any]) -> None:
    return None


def _nothing() -> None:
    return None
