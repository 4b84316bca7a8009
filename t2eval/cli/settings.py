"""Settings: `KEY=VALUE` options of the command line, with values read as YAML reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2eval.errors import UsageError


def parse_settings(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The pairs of a repeatable option.

    Args:
        option: its name, for messages.
        pairs: `KEY=VALUE` each.

    Raises:
        UsageError: not such a pair, a value that is not YAML, or a key that is given twice.
    """
    import yaml

    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"{option} takes KEY=VALUE, not {pair!r}.")
        if key in parsed:
            raise UsageError(f"{option} sets {key} twice.")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"{option} {key}: {value!r} is not a YAML value.") from error
    return parsed
