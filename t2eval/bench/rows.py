"""Rows: one finished cell's record, in `rows.jsonl`, and its examples, in `samples/`.

A row is appended with a single write to a file opened with O_APPEND and is synced before `append` returns, so that a killed run
loses at most the row that it was writing. The samples file is complete under its final name before the row that points to it.
"""

from __future__ import annotations

import gzip
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from t2eval.errors import T2Error, shown, wrong_value
from t2eval.store import files
from t2eval.store.files import DiskError
from t2eval.store.texts import Text

ROWS = "rows.jsonl"
SAMPLES = "samples"
REMEDY = "Every finished row is intact. Free some space, then run the same command again: it continues."
_AGAIN = f"Remove its row from {ROWS} and run the benchmark again."
Line = TypeVar("Line", bound=BaseModel)
_BYTES = 2 << 30  # ten thousand rows take some 100 MB, the examples of one cell less


class Row(BaseModel):
    """One finished cell. Scores are in the task's own unit (most often 0 to 1), times in seconds, memory in bytes.

    `stderr` is the standard error of the mean over examples; None for a single one, and where a metric is no mean over examples. `n` is the
    number of examples that the score is of, `clusters` that of the groups of dependent ones among them, which `stderr` takes into account
    (None where examples are independent); `undefined` are the documents beside them for which the metric is not a number (NaN, infinite).
    `samples` is relative to the benchmark's folder. `seed` 0 of the base is shared by all seeds: the base does not depend on one.
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
    clusters: int | None = None
    undefined: list[int] = []
    seconds: float = 0.0
    first_pass_seconds: float | None = None
    second_pass_seconds: float | None = None
    trainable_parameters: int | None = None
    peak_memory_bytes: int | None = None
    samples: str | None = None
    t2: dict[str, Any] | None = None
    versions: dict[str, str] = {}
    hashes: dict[str, Any] = {}
    _folder: Path | None = PrivateAttr(default=None)

    @property
    def kind(self) -> str:
        """What its method is: the strategy of one with a name of its own (`config.t2` says it), else the method's own name."""
        return str((self.t2 or {}).get("strategy") or self.method)

    @property
    def reason(self) -> str:
        """Why it failed: its error's first line; empty where it did not."""
        return (self.error or "").split("\n")[0]

    @property
    def folder(self) -> Path | None:
        """The folder that it was read from, where rows of several are shown together; never written with it."""
        return self._folder

    def within(self, folder: Path) -> Row:
        """This row, with the folder that it was read from."""
        found = self.model_copy()
        found._folder = folder
        return found


class Sample(BaseModel):
    """One example of a cell.

    `doc_hash` is lm-eval's; `score` is None where the metric has no value for a single example, and where that value is not a number
    (`undefined`); `response` is what was graded: the answer after the task's filter, or the choices' log-likelihoods.

    Attributes:
        raw: the answer as the model wrote it, where the filter made another of it.
        metrics: every metric of the task for this example, where there are several.
        why: what the grader says beside the score, such as how a program ended; written in part by the model.
        dispatch: the label that the example was given, where the method dispatches. probabilities: of all labels, as dispatch saw them.
        cluster: what the example shares with others, where its task says so (`metadata.t2.cluster`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    doc_id: int
    doc_hash: str
    score: float | None
    undefined: bool = False
    response: Text
    dispatch: Text | None = None
    raw: Text | None = None
    metrics: dict[str, float] | None = None
    why: Text | None = None
    probabilities: dict[str, float] | None = None
    cluster: str | None = None


def disk_error(directory: Path, error: OSError) -> DiskError:
    """The message for a write that failed."""
    return files.disk_error(directory, error, REMEDY)


def _parse(line: bytes) -> Row | str:
    """A row, or why the line is none."""
    try:
        return Row.model_validate(files.parse_json(line.decode("utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        return f"{place}: no such field in this version" if first["type"] == "extra_forbidden" else f"{place}: {wrong_value(first)}"
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except ValueError as error:
        return str(error)


def repair(directory: Path) -> None:
    """Cut what a killed writer left of its last line. Call it only where no one else is writing.

    Args:
        directory: the benchmark's folder; a missing `rows.jsonl` is fine.
    """
    files.cut_unfinished(directory / ROWS, what="benchmark's rows", remedy="Start in a new folder.", limit=_BYTES)


def append(directory: Path, row: Row) -> None:
    """Append a row in one write and sync it. There is one writer at a time.

    Args:
        directory: the benchmark's folder.
        row: the finished cell.

    Raises:
        DiskError: the disk is full or broken; what was written of this row is taken back first.
        T2Error: a number in it is not finite.
    """
    files.append_line(directory / ROWS, files.json_text(row.model_dump(), what=f"The row of {row.cell}", indent=None), remedy=REMEDY)


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
    lines = files.read_bytes(path, what="benchmark's rows", remedy="Start in a new folder.", limit=_BYTES).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        row = _parse(line)
        if isinstance(row, str):
            if number == len(lines):
                continue
            raise T2Error(
                f"{path}, line {number}, is not a row: {row}. Where another version of t2eval wrote it, use that one; else remove the line "
                "(its cell will run again), or start in a new folder."
            )
        rows[row.cell] = row
    return list(rows.values())


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
    files.write_bytes(directory / relative, gzip.compress(text.encode("utf-8", "backslashreplace"), mtime=0), remedy=REMEDY)
    return relative


def read_samples(directory: Path, row: Row) -> list[Sample]:
    """The examples of a row; empty where the row has none.

    Args:
        directory: the benchmark's folder; a row of a merge knows its own.
        row: finished.

    Raises:
        T2Error: the file is missing or damaged.
    """
    if row.samples is None:
        return []
    what = f"file of cell {shown(row.cell)}'s examples"
    return read_lines(files.inside(row.folder or directory, row.samples, what=what, remedy=_AGAIN), Sample, what=what, remedy=_AGAIN)


def read_lines(path: Path, kind: type[Line], *, what: str, remedy: str) -> list[Line]:
    """The lines of a packed file, each a record.

    Raises:
        T2Error: the file is missing or damaged.
    """
    lines = files.read_packed(path, what=what, remedy=remedy, limit=_BYTES).split(b"\n")
    return [_line(line, number, path, kind, what, remedy) for number, line in enumerate(lines, start=1) if line]


def _line(line: bytes, number: int, path: Path, kind: type[Line], what: str, remedy: str) -> Line:
    try:
        value = files.parse_json(line.decode("utf-8"))
    except ValueError as error:
        raise T2Error(f"The {what} {str(path)!r} cannot be read: line {number}: {error}. {remedy}") from error
    return files.of_shape(value, kind, path, what=what, remedy=remedy, place=f"line {number}")


def scores_by_example(samples: Sequence[Sample], without: Container[int] = ()) -> dict[str, float] | None:
    """Scores under a key that names the same example in every cell of a task: its hash, numbered where a hash comes twice.

    Args:
        samples: of one cell.
        without: documents that are left out, as are those whose score is not a number.

    Returns:
        Key → score, or None where an example has no score of its own.
    """
    scores: dict[str, float] = {}
    for key, sample in by_key(samples).items():
        if sample.score is None and not sample.undefined:
            return None
        if sample.score is not None and sample.doc_id not in without:
            scores[key] = sample.score
    return scores


def by_key(samples: Sequence[Sample]) -> dict[str, Sample]:
    """A cell's examples under the keys of `scores_by_example`, by document."""
    seen: dict[str, int] = {}
    found: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: sample.doc_id):
        repeat = seen[sample.doc_hash] = seen.get(sample.doc_hash, -1) + 1
        found[f"{sample.doc_hash}#{repeat}"] = sample
    return found
