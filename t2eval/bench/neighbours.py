"""Neighbours: rows that stand beside each other, in one folder or in several, none made with other inputs than another.

Inputs are a task's YAML with its Python and local data (`hashes.task`), its documents and prompts (`hashes.prompts`), the experts and
adapters of one name and seed, and the versions of the libraries. Rows of older releases have fewer hashes, and what they lack is not
compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.bench.config import METHODS
from t2eval.bench.rows import ROWS, Row
from t2eval.errors import UsageError


class Neighbours:
    """The finished rows that may stand beside each other.

    Args:
        folder: that holds the first of them.
        rows: those that are there.

    Raises:
        UsageError: two differ; the message names what differs, both cells, and both folders.
    """

    def __init__(self, folder: Path, rows: Iterable[Row] = ()) -> None:
        self._folder = folder
        self._seen: dict[tuple[Any, ...], tuple[Any, Row, Path]] = {}
        for row in rows:
            self.admit(row)

    def admit(self, row: Row, folder: Path | None = None) -> None:
        """Take one more row in.

        Args:
            row: finished or failed; failed ones have no score that could be mixed with another.
            folder: that holds it; by default the first one.

        Raises:
            UsageError: as the class.
        """
        if row.status != "ok":
            return
        here = self._folder if folder is None else folder
        for key, (value, what) in _inputs(row).items():
            known, first, there = self._seen.setdefault(key, (value, row, here))
            if known != value:
                raise UsageError(_message(first, there, row, here, what + _both(known, value)))


def _message(first: Row, there: Path, row: Row, here: Path, what: str) -> str:
    if here == there:
        return (
            f"{here} holds rows that do not belong together: {first.cell} and {row.cell} were made with {what}. "
            f"Remove the older one's line from {ROWS} and run the benchmark again, or start in a new folder."
        )
    one, other = (f"{each.method} on {each.task} (seed {each.seed})" for each in (first, row))
    return (
        f"{there} and {here} do not belong beside each other: {one} of the first and {other} of the second were made with {what}. "
        "Run one of them anew with the other's, or show them apart."
    )


@dataclass(frozen=True)
class Difference:
    """Something that two rows were not made with alike: its kind (`task`, `prompts`, `expert`, `adapter`, `version`), and words for it."""

    kind: str
    words: str


def differences(first: Row, second: Row) -> list[Difference]:
    """What two rows of one method and task were made with that is not the same; what one of them lacks is not compared."""
    mine, theirs = _inputs(first), _inputs(second)
    return [
        Difference(key[0], f"{what}{_both(value, theirs[key][0])}")
        for key, (value, what) in mine.items()
        if key in theirs and theirs[key][0] != value
    ]


def _both(first: Any, second: Any) -> str:
    """Two values, where they are versions and not digests."""
    return "" if max(len(str(first)), len(str(second))) > 40 else f" ({first} and {second})"


def _inputs(row: Row) -> dict[tuple[Any, ...], tuple[Any, str]]:
    """What a row was made with: key → value, and the words for two that differ."""
    hashes = row.hashes
    found: dict[tuple[Any, ...], tuple[Any, str]] = {}
    if "task" in hashes:
        found["task", row.task] = hashes["task"], f"two versions of the task {row.task}"
    if "prompts" in hashes:
        found["prompts", row.task] = hashes["prompts"], f"other prompts or documents of {row.task}"
    for name, digest in (hashes.get("experts") or {}).items():
        # a method with a name of its own may have experts of its own
        found["expert", row.method if row.method not in METHODS else "", name, row.seed] = (
            digest,
            f"two experts named {name} (seed {row.seed})",
        )
    for name, digest in (hashes.get("adapter") or {}).items():
        found["adapter", row.method, name, row.seed] = digest, f"two adapters named {name} (seed {row.seed})"
    for package, version in row.versions.items():
        found["version", package] = version, f"two versions of {package}"
    return found
