"""The settings guard: a folder goes on only with the settings that it was begun with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from t2eval.errors import UsageError, shown


def changed_setting(before: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str] = frozenset()) -> str | None:
    """The first setting, by name, that differs between two sets and may not; None where there is none.

    Args:
        before: as it was begun.
        now: as it is asked for. A setting that one side lacks differs unless the other side's is None.
        may_change: names that do not matter.
    """
    changed = (name for name in sorted(now.keys() | before.keys()) if now.get(name) != before.get(name))
    return next((name for name in changed if name not in may_change), None)


def refuse_other_settings(
    where: str | Path, before: Mapping[str, Any], now: Mapping[str, Any], *, may_change: Collection[str] = frozenset(), remedy: str
) -> None:
    """Refuse to go on where something was begun with other settings.

    Args:
        where: what was begun: a folder, most often.
        before, now, may_change: as in `changed_setting`; values must be JSON's, so that what was read back compares equal.
        remedy: what to do: "Choose another --output, or give the same settings."

    Raises:
        UsageError: with the first setting that differs, and both its values.
    """
    if (name := changed_setting(before, now, may_change)) is not None:
        was, given = (shown(side[name]) if name in side else "not set" for side in (before, now))
        raise UsageError(f"{where} was begun with other settings: {name} was {was} there, and is {given} now. {remedy}")
