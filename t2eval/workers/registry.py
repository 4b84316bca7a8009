"""Registry: the executors that there are, one entry each; `t2 bench --executor NAME` takes them by name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from t2eval.errors import T2Error, UsageError, unknown
from t2eval.workers.executor import Executor, Request


@dataclass(frozen=True)
class Entry:
    """An executor.

    Attributes:
        target: `module:Class`, loaded when it is used. The class has `opened(request)`, and `describe(request)`, which starts nothing.
        elsewhere: as `Executor.elsewhere`.
        package: that must be installed for it, and the extra that does so.
    """

    target: str
    elsewhere: bool = False
    package: str | None = None

    def load(self) -> Any:
        """The class.

        Raises:
            T2Error: its package is not installed.
        """
        module, _, name = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if self.package is None or error.name != self.package:
                raise
            raise T2Error(f"The package {self.package} is not installed. pip install 't2eval[{self.package}]'") from error


EXECUTORS: dict[str, Entry] = {
    "local": Entry("t2eval.workers.pool:Pool"),
    "ray": Entry("t2eval.workers.ray_pool:RayPool", elsewhere=True, package="ray"),
}


def check_executor(name: str) -> Entry:
    """The executor of a name.

    Raises:
        UsageError: there is none, with near matches.
    """
    if name not in EXECUTORS:
        raise unknown("executor", name, EXECUTORS)
    return EXECUTORS[name]


def open_executor(name: str, request: Request) -> Executor:
    """Make an executor ready.

    Raises:
        UsageError: an unknown one, or one that does not take what is asked.
        T2Error: its package is missing, or its cluster cannot be reached or has no room for one process.
    """
    entry = check_executor(name)
    if request.workers is not None and request.workers < 1:
        raise UsageError(f"--workers must be at least 1, not {request.workers}.")
    made: Executor = entry.load().opened(request)
    return made


def describe_executor(name: str, request: Request) -> dict[str, Any]:
    """What an executor would use, without starting a process; `text` says it in a line. Raises as `open_executor`."""
    described: dict[str, Any] = {"executor": name, **check_executor(name).load().describe(request)}
    return described
