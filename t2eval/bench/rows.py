"""Rows: one finished cell's record, in `rows.jsonl`, and its examples, in `samples/`.

A row is appended with a single write to a file opened with O_APPEND and is synced before `append` returns, so that a killed run
loses at most the row that it was writing. The samples file is complete under its final name before the row that points to it.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from t2eval.errors import T2Error

ROWS = "rows.jsonl"
SAMPLES = "samples"


class Row(BaseModel):
    """One finished cell. Scores are in the task's own unit (most often 0 to 1), times in seconds, memory in bytes.

    `stderr` is the standard error of the mean over examples. `samples` is relative to the benchmark's folder. `seed` 0 of the
    base is shared by all seeds: the base does not depend on one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    model: str
    method: str
    task: str
    seed: int
    status: Literal["ok", "failed"]
    error: str | None = None
    metric: str | None = None
    higher_is_better: bool = True
    score: float | None = None
    stderr: float | None = None
    n: int = 0
    seconds: float = 0.0
    first_pass_seconds: float | None = None
    second_pass_seconds: float | None = None
    trainable_parameters: int | None = None
    peak_memory_bytes: int | None = None
    samples: str | None = None
    t2: dict[str, Any] | None = None
    versions: dict[str, str] = {}
    hashes: dict[str, Any] = {}


class Sample(BaseModel):
    """One example of a cell.

    `doc_hash` is lm-eval's; `score` is None where the metric has no value for a single example; `dispatch` is the label that the
    example was given, where the method dispatches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    doc_id: int
    doc_hash: str
    score: float | None
    response: str
    dispatch: str | None = None


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that no more can be written, rather than that one cell is broken."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def disk_error(directory: Path, error: OSError) -> T2Error:
    """The message for a write that failed."""
    return T2Error(
        f"Could not write to {directory}: {error.strerror or error}. Every finished row is intact. "
        "Free some space, then run the same command again: it continues."
    )


def _parse(line: bytes) -> Row | None:
    """A row, or None where the line is not a whole one."""
    try:
        return Row.model_validate(json.loads(line))
    except (ValueError, ValidationError):
        return None


def repair(directory: Path) -> None:
    """Cut what a killed writer left of its last line. Call it only where no one else is writing.

    Args:
        directory: the benchmark's folder; a missing `rows.jsonl` is fine.
    """
    path = directory / ROWS
    if not path.exists():
        return
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())


def append(directory: Path, row: Row) -> None:
    """Append a row in one write and sync it. There is one writer at a time.

    Args:
        directory: the benchmark's folder.
        row: the finished cell.

    Raises:
        OSError: the disk is full or broken; what was written of this row is taken back first.
    """
    line = row.model_dump_json().encode() + b"\n"
    descriptor = os.open(directory / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def read(directory: Path) -> list[Row]:
    """The rows of a benchmark, one a cell: the last one, where a failed cell was run again.

    Args:
        directory: the benchmark's folder. An unfinished last line is skipped.

    Returns:
        Rows in the order in which their cells first ended.

    Raises:
        T2Error: a line in the middle is not a row.
    """
    path = directory / ROWS
    if not path.exists():
        return []
    rows: dict[str, Row] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        row = _parse(line)
        if row is None:
            if number == len(lines):
                continue
            raise T2Error(f"{path}, line {number}, is not a row. Remove the line (its cell will run again), or start in a new folder.")
        rows[row.cell] = row
    return list(rows.values())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it.

    Raises:
        OSError: nothing is left behind, and an older file of that name is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_samples(directory: Path, cell: str, samples: Iterable[Sample]) -> str:
    """Write a cell's examples.

    Args:
        directory: the benchmark's folder.
        cell: the cell's key, which names the file.
        samples: one per example.

    Returns:
        The file's path relative to `directory`.
    """
    text = "".join(sample.model_dump_json() + "\n" for sample in samples)
    relative = f"{SAMPLES}/{cell}.jsonl.gz"
    write_atomically(directory / relative, gzip.compress(text.encode(), mtime=0))
    return relative


def read_samples(directory: Path, row: Row) -> list[Sample]:
    """The examples of a row; empty where the row has none.

    Raises:
        T2Error: the file is missing or damaged.
    """
    if row.samples is None:
        return []
    path = directory / row.samples
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [Sample.model_validate_json(line) for line in file]
    except (OSError, EOFError, ValueError) as error:
        raise T2Error(
            f"Cannot read the examples of cell {row.cell} in {path}: {error}. Remove its row from {ROWS} and run the benchmark again."
        ) from error


def scores_by_example(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Scores under a key that names the same example in every cell of a task: its hash, numbered where a hash comes twice.

    Returns:
        Key → score, or None where an example has no score of its own.
    """
    seen: dict[str, int] = {}
    scores: dict[str, float] = {}
    for sample in sorted(samples, key=lambda sample: sample.doc_id):
        if sample.score is None:
            return None
        repeat = seen[sample.doc_hash] = seen.get(sample.doc_hash, -1) + 1
        scores[f"{sample.doc_hash}#{repeat}"] = sample.score
    return scores
