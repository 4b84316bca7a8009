"""Executors: what a benchmark asks of whatever runs its processes, and what comes back. `registry` lists those that there are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from t2eval.basemodel.devices import AUTO
from t2eval.errors import T2Error

Answer = Callable[[Any], Any]
"""What a process does with one item."""


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        item: which.
        value: what the process answered.
        error: what was raised instead; a `T2Error` or a plain `OSError`.
        exit_code: of the process, if it died over the item.
        lost: in words, if its processes were lost with their machines more often than is tried again.
    """

    item: Any
    value: Any = None
    error: Exception | None = None
    exit_code: int | None = None
    lost: str | None = None

    @property
    def death(self) -> str | None:
        """Why there is neither a value nor an error, in words; None where there is one."""
        if self.lost is not None:
            return self.lost
        return None if self.exit_code is None else f"its process ended with exit code {self.exit_code}"


@dataclass(frozen=True)
class Request:
    """What a user asks of an executor; None is left to it.

    Attributes:
        workers: processes, each with a base model of its own.
        device: the benchmark's device setting.
        address: of a cluster.
        num_cpus, num_gpus: of each process; parts of a GPU are shared.
        retries: how often an item is tried again whose process was lost with its machine.
    """

    workers: int | None = None
    device: str = AUTO
    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    retries: int | None = None


class Executor(Protocol):
    """Processes that answer items."""

    workers: int
    elsewhere: bool
    """Whether its processes may be on other machines, which share no disk with this one."""

    def run(
        self, setup: Callable[[], Answer], items: Sequence[Any], log: Path, group: Callable[[Any], Any] = lambda item: None
    ) -> Generator[Outcome]:
        """Have items answered; outcomes come as they are finished, one an item.

        Args:
            setup: makes a process ready, and gives what answers items there; picklable. A `Portable` one, if `elsewhere`.
            items: picklable.
            log: gets what the processes print, or where they are.
            group: items of one group go to the same process where that costs no waiting.

        Raises:
            T2Error, OSError: `setup` failed.
        """

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None:
        """End all processes."""


@runtime_checkable
class Portable(Protocol):
    """A setup that can work on a machine which shares no disk with this one."""

    def files(self) -> list[Path]:
        """What it reads here, as absolute paths."""

    def moved(self, scratch: Path, root: Path | None) -> Callable[[], Answer]:
        """The same, on another machine.

        Args:
            scratch: a folder there, to work in; what is kept of it goes into the answers.
            root: where the files have been put, each at its absolute path below it; None: they are there under their own paths.
        """


def portable_error(error: Exception) -> Exception:
    """An exception that another process can read: those of libraries often cannot be pickled."""
    if isinstance(error, T2Error):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror or str(error))
    return T2Error(f"{type(error).__name__}: {error}")
