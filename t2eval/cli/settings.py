"""Settings: what several commands take alike: `KEY=VALUE` options, seeds, and paths that are a file, a folder, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from t2eval.errors import UsageError

FOLDER = click.Path(path_type=Path, file_okay=False)
"""A folder, there or not."""
EXISTING_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
"""A file; what reads it says what is wrong with one that is not there."""
SEED = click.IntRange(min=0)


def parse_settings(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The pairs of a repeatable option.

    Args:
        option: its name, for messages.
        pairs: `KEY=VALUE` each.

    Raises:
        UsageError: not such a pair, a value that is not YAML, or a key that is given twice.
    """
    from t2eval.store.yamls import parse_yaml

    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"{option} takes KEY=VALUE, not {pair!r}.")
        if key in parsed:
            raise UsageError(f"{option} sets {key} twice.")
        try:
            parsed[key] = parse_yaml(value)
        except ValueError as error:
            raise UsageError(f"{option} {key}: {value!r} is not a YAML value.") from error
    return parsed


def parse_seeds(text: str | None) -> list[int] | None:
    """Seeds that are joined by commas; None stays None.

    Raises:
        UsageError: one is not a number from 0 on, or none is there.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal():
            raise UsageError(f"--seeds takes numbers from 0 on, such as 0,1,2, not {part!r} (in {text!r}).")
    return [int(part) for part in parts]


def parse_names(option: str, text: str | None) -> list[str] | None:
    """Names that are joined by commas; None stays None.

    Raises:
        UsageError: one is empty.
    """
    if text is None:
        return None
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise UsageError(f"{option} takes names joined by commas, such as a,b, not {text!r}.")
    return names
