"""Source: the finished rows of a benchmark with what its folders say beside them, read once for whichever export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from t2eval.bench import manifest
from t2eval.bench.config import BenchConfig
from t2eval.bench.rows import ROWS, Row, Sample, read_samples
from t2eval.errors import UsageError
from t2eval.leaderboard.cells import Where, merged_rows
from t2eval.store.files import json_text


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        name: the benchmark's.
        rows: those that worked.
        settings: the benchmark file's, as the manifest has them; empty without one.
        inputs: file of an expert or adapter → its digest, as the manifest has them.
        made: when the last row was written, UTC.
        organization: who made the rows.
        notes: what is not exported.
    """

    name: str
    rows: tuple[Row, ...]
    settings: dict[str, Any]
    inputs: dict[str, str]
    made: datetime
    organization: str
    notes: tuple[str, ...]
    folder: Path

    @property
    def model(self) -> str:
        """The base model's name; a folder's last part."""
        return model_name(self.rows[0].model)

    def runs(self) -> Iterator[tuple[str, int, list[Row]]]:
        """(method, seed, rows by task) of each."""
        keys = dict.fromkeys((row.method, row.seed) for row in self.rows)
        for method, seed in keys:
            yield method, seed, sorted((row for row in self.rows if (row.method, row.seed) == (method, seed)), key=lambda row: row.task)

    def samples(self, row: Row) -> list[Sample]:
        """A row's examples."""
        return read_samples(self.folder, row)


def source_of_rows(where: Where, organization: str = "unknown") -> Source:
    """Read a benchmark.

    Raises:
        UsageError: no cell worked, or as `merged_rows`.
        T2Error: damaged rows.
    """
    found = merged_rows(where)
    rows = tuple(row for row in found.rows if row.status == "ok" and row.score is not None)
    failed = len(found.rows) - len(rows)
    if not rows:
        raise UsageError(f"No cell of {found.folders[0]} worked: there is nothing to export.")
    settings: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    for folder in found.folders:
        if (said := manifest.read(folder)) is not None:
            settings = settings or said["config"]
            inputs |= said["inputs"]
    name = settings.get("name") or BenchConfig.model_fields["name"].default
    times = [(folder / ROWS).stat().st_mtime for folder in found.folders if (folder / ROWS).is_file()]
    notes = [*found.notes, *([f"{failed} failed cells are not exported."] if failed else [])]
    made = datetime.fromtimestamp(max(times, default=0), timezone.utc)
    return Source(str(name), rows, settings, inputs, made, organization, tuple(notes), found.folders[0])


def model_name(model: str) -> str:
    """A base model's name for others: a hub id or a name as it is, of a folder its last part."""
    return Path(model).name if model.startswith(("/", ".", "~")) or Path(model).is_dir() else model


def is_hub_id(model: str) -> bool:
    """Whether a model's name is one of the hub."""
    return model.count("/") == 1


def text_of(value: Any, what: str) -> str:
    """JSON for a file."""
    return json_text(value, what=what) + "\n"
