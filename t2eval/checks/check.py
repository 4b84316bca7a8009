"""Check: one thing that was looked at on this machine, for the doctor's report and for what a command says before it loads anything.

A check is `ok`, `note` (works, with a limit worth knowing) or `missing` (something that is needed is not there).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from t2eval.errors import T2Error


@dataclass(frozen=True)
class Check:
    """What was found; `remedy` is empty where there is nothing to do, or where `detail` says it."""

    name: str
    status: Literal["ok", "note", "missing"]
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}. {self.remedy}" if self.remedy else self.detail


@dataclass
class Findings:
    """The checks of one command, gathered so that all that is missing is said at once."""

    checks: list[Check] = field(default_factory=list)

    def missing(self, name: str, detail: str) -> None:
        """Something without which the command would fail."""
        self.checks.append(Check(name, "missing", detail))

    def note(self, name: str, detail: str) -> None:
        """Something with which the command may still succeed."""
        self.checks.append(Check(name, "note", detail))

    def needs(self, check: Check) -> None:
        """Take in a check of the machine; only one that is missing counts."""
        if check.status == "missing":
            self.checks.append(check)

    def settled(self) -> list[str]:
        """The notes, where nothing is missing.

        Raises:
            T2Error: all that is missing, and the notes after it.
        """
        missing, notes = ([str(check) for check in self.checks if check.status == status] for status in ("missing", "note"))
        if not missing:
            return notes
        lines = [f"- {line}" for line in dict.fromkeys([*missing, *notes])]
        count = "One thing is" if len(missing) == 1 else f"{len(missing)} things are"
        raise T2Error("\n".join([f"{count} missing, and nothing was loaded:", *lines]))


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """Package → its version, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
