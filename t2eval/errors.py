"""Errors that a user can act on: what failed, which value, what to do.

Everything that t2eval raises for a user's mistake is a `T2Error`; the command line prints its text and exits, without a stack trace.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

_SHOWN = 640
"""Characters of names in one message: with its first words, ten lines of a terminal of eighty columns at most."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 160
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxset = 3, 8, 12, 12, 12


class T2Error(Exception):
    """A problem that the user can mend. The message says what failed, which value, and what to do."""


class UsageError(T2Error):
    """The request itself is wrong (an unknown name, a bad option): the command line exits with 2 instead of 1."""


def shown(value: object) -> str:
    """A value as a message shows it: `repr`, cut short however large or deep the value is (nested YAML aliases stand for gigabytes)."""
    text = _SHORT.repr(value)
    return text if len(text) <= 240 else f"{text[:200]} … {text[-30:]}"


_WRONG = {
    "greater_than_equal": "it must be at least {ge:g}",
    "greater_than": "it must be more than {gt:g}",
    "less_than_equal": "it must be at most {le:g}",
    "less_than": "it must be less than {lt:g}",
    "literal_error": "it must be {expected}",
    "extra_forbidden": "there is no such setting",
    "missing": "it is missing",
    "finite_number": "it must be a finite number",
    "too_short": "it must hold at least {min_length}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "it must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "it must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "it must be a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "it must be a mapping"),
    **dict.fromkeys(("string_type", "path_type"), "it must be text"),
}
"""What a value must be, by the type of pydantic's error."""


def wrong_value(problem: Mapping[str, Any]) -> str:
    """What is wrong with a value, in our words.

    Args:
        problem: one of the `errors()` of pydantic's `ValidationError`.
    """
    said = _WRONG.get(str(problem["type"]))
    return said.format(**problem.get("ctx", {})) if said else str(problem["msg"]).removeprefix("Value error, ").rstrip(".")


def near_matches(name: str, available: Iterable[str], limit: int = 3, cutoff: float = 0.5) -> list[str]:
    """The names that somebody who gave `name` may have meant, nearest first; case does not count, and `name` itself is never among them.

    Args:
        name: what was given.
        available: what would have been accepted.
        limit: at most so many.
        cutoff: the least similarity, from 0 to 1 (`difflib`'s ratio).
    """
    by_lower: dict[str, str] = {}
    for other in available:
        if other != name:
            by_lower.setdefault(other.lower(), other)
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=cutoff)]


def did_you_mean(matches: Iterable[object]) -> str:
    """The question that follows a message's first sentence, with a space before it; nothing where there is no match."""
    words = " or ".join(map(str, matches))
    return f" Did you mean {words}?" if words else ""


def unknown(kind: str, name: str, available: Iterable[str]) -> UsageError:
    """A `UsageError` for a name that does not exist, with near matches and what is available, as far as ten lines hold it.

    Args:
        kind: what the name should have been, in the singular (`"task"`, `"module"`).
        name: the value that was given.
        available: the names that would have been accepted.
    """
    names = sorted(set(available) - {name})
    near = near_matches(name, names)
    return UsageError(f"Unknown {kind} {shown(name)}.{did_you_mean(map(repr, near))} Available: {listed(names) or 'none'}.")


def listed(names: Iterable[str]) -> str:
    """Names joined by commas; where there are too many for one message, the first of them and the number of the others."""
    names = list(names)
    room, count = _SHOWN, 0
    for name in names:
        room -= len(name) + 2
        if room < 0 and count:
            break
        count += 1
    more = f", and {len(names) - count} more" if count < len(names) else ""
    return ", ".join(names[:count]) + more
