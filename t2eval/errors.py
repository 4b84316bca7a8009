"""Errors that a user can act on: what failed, which value, what to do.

Everything that t2eval raises for a user's mistake is a `T2Error`; the command line prints its text and exits, without a stack trace.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class T2Error(Exception):
    """A problem that the user can mend. The message says what failed, which value, and what to do."""


class UsageError(T2Error):
    """The request itself is wrong (an unknown name, a bad option): the command line exits with 2 instead of 1."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 160
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxset = 3, 8, 12, 12, 12


def shown(value: object) -> str:
    """A value as a message shows it: `repr`, cut short however large or deep the value is (nested YAML aliases stand for gigabytes)."""
    text = _SHORT.repr(value)
    return text if len(text) <= 240 else f"{text[:200]} … {text[-30:]}"


def unknown(kind: str, name: str, available: Iterable[str]) -> UsageError:
    """A `UsageError` for a name that does not exist, with near matches and what is available.

    Args:
        kind: what the name should have been, in the singular (`"task"`, `"module"`).
        name: the value that was given.
        available: the names that would have been accepted.
    """
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    shown = ", ".join(names[:40]) + (f", and {len(names) - 40} more" if len(names) > 40 else "")
    return UsageError(f"Unknown {kind} {name!r}.{hint} Available: {shown or 'none'}.")
