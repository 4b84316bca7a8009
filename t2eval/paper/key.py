"""Key: the settings that a kept result depends on, beside it, so that a later session never takes it for a result of other settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2eval.errors import UsageError


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists, keys are texts."""
    return json.loads(json.dumps(value))


def check_key(place: Path, before: Any, now: Any) -> None:
    """Refuse a kept result of other settings.

    Args:
        place: the file or folder that holds it.
        before, now: its key and this run's, JSON values.

    Raises:
        UsageError: they differ; it names the first setting that does.
    """
    found = _difference(plain(before), plain(now))
    if found is not None:
        name, then, given = found
        raise UsageError(
            f"{place} was made with {name} = {then}, and this run has {given}. Choose another --output, or delete {place} to make it anew."
        )


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, str, str] | None:
    """(name, value before, value now) of the first difference, with the names of the mappings around it."""
    if before == now:
        return None
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return name or "key", json.dumps(before), json.dumps(now)
    for part in sorted(before.keys() | now.keys()):
        inner = f"{name}.{part}" if name else part
        if (part in before) != (part in now):
            then, given = (json.dumps(side[part]) if part in side else "nothing" for side in (before, now))
            return inner, then, given
        if (found := _difference(before[part], now[part], inner)) is not None:
            return found
    return None
