"""Log: `log.jsonl`, one row a step, and reading it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from t2eval.errors import T2Error
from t2eval.store.files import of_shape, parse_json, read_text

LOG = "log.jsonl"


class _Row(BaseModel):
    """What is read of a row."""

    step: int
    validation: float = 0.0
    accuracy: float = 0.0


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, each with a whole `step`. An unfinished last line, which a killed run leaves, does not count.

    Raises:
        T2Error: it is missing or damaged.
    """
    what, remedy = "log of a training", f"Remove {path}, which only the learning curve is drawn from, or train again with overwrite."
    lines = read_text(path, what=what, remedy=remedy, limit=2**30).split("\n")  # what follows the last line feed is unfinished, or nothing
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line:
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            raise T2Error(f"The {what} {str(path)!r} cannot be read: line {number}: {error}. {remedy}") from error
        of_shape(value, _Row, path, what=what, remedy=remedy, place=f"line {number}")
        rows.append(value)
    return rows
