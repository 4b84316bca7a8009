"""Run programs: hand them to warm supervisors, one fresh process each, and collect the verdicts.

One thread, one loop: safe to call from threads (each call has supervisors of its own) and after a fork (a child starts anew).
An exception in the middle, Ctrl-C included, ends every supervisor that still works, and with it its program.

A verdict says something of the program and nothing of the machine: where a jail is lost, cannot be started for want of processes, or gave a
program no core, that program runs again, alone once the others are done.
"""

from __future__ import annotations

import math
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from t2eval.basemodel.devices import available_cores
from t2eval.errors import T2Error, UsageError
from t2eval.sandbox.isolation import Isolation, Kind, asked, missing, refusal
from t2eval.sandbox.jail import GRACE_SECONDS, START_SECONDS, Supervisor, borrow, close, give_back

__all__ = ["Verdict", "available", "close", "require", "run_program", "run_programs"]

Status = Literal["passed", "failed", "error", "timeout", "memory", "killed", "refused"]
LONGEST_SOURCE = 1 << 20  # bytes
_LONGEST_SECONDS = 86_400.0
_TRIES = 3  # jails that a program may lose before that is held against it
_START_TRIES = 30  # seconds in which no jail can be started before that is an error

_CANARY = """
import os
def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return True
    return False
def fork():
    if os.fork() == 0:
        os._exit(0)
assert refused(open, "/etc/passwd"), "it can read /etc"
assert refused(os.listdir, "/proc/self"), "it can read /proc"
assert refused(fork), "it can fork"
assert refused(os.kill, os.getppid(), 0), "it can signal"
import socket
assert refused(socket.socket), "it can open a socket"
"""


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Attributes:
        passed: it ran to its end, and every assert held.
        status: `passed`; `failed` (an assertion); `error` (another exception, a syntax error, or it left before its end);
            `timeout`; `memory`; `killed` (by a signal); `refused` (never run: too long, or not text).
        detail: one line: the exception with its line number, the signal, or nothing. Written in part by the program: not to be trusted.
    """

    passed: bool
    status: Status
    detail: str


_known: dict[str, Isolation] = {}


def _why_not(kind: Kind) -> str | None:
    """Start a jail and let a canary try its walls: why the kind does not hold here, or `None`."""
    if reason := missing(kind):
        return reason
    try:
        supervisor = Supervisor(kind)
    except (T2Error, OSError) as error:
        return str(error)
    try:
        supervisor.send(0, _CANARY.encode(), START_SECONDS)
        answer = supervisor.receive(START_SECONDS + GRACE_SECONDS)
    except BaseException:
        supervisor.kill()
        raise
    if answer is None or answer["status"] != "passed":
        supervisor.kill()
        return f"{kind} does not hold here ({answer['detail'] if answer else 'no answer'})"
    give_back([supervisor])
    return None


def available() -> Isolation:
    """Which isolation programs get on this machine. Tried once a process, with a canary that knocks on the walls from inside.

    Raises:
        UsageError: `T2EVAL_SANDBOX` has an unknown value.
    """
    wanted = asked()
    if wanted not in _known:
        _known[wanted] = _choose(wanted)
    return _known[wanted]


def _choose(wanted: str) -> Isolation:
    if wanted == "none":
        return Isolation("none", "T2EVAL_SANDBOX=none: no isolation, by the user's wish")
    reasons: list[str] = []
    for kind in cast("tuple[Kind, ...]", ("bubblewrap", "landlock") if wanted == "auto" else (wanted,)):
        reason = _why_not(kind)
        if reason is None:
            return Isolation(kind, "; ".join([*reasons, f"{kind} holds"]))
        reasons.append(reason)
    return Isolation(None, "; ".join(reasons))


def require() -> Isolation:
    """`available`, or an error that says what to do.

    Raises:
        T2Error: no isolation can be had here, and the user did not ask for none.
    """
    isolation = available()
    if isolation.kind is None:
        raise refusal(isolation)
    return isolation


def run_program(source: str, test: str | None = None, *, timeout: float = 5.0) -> Verdict:
    """Run one program in a fresh jailed process, and its test in another.

    Args:
        source: the program's text.
        test: as in `run_programs`; without one the program passes if it runs to its end, its own asserts included.
        timeout: seconds of processor time, and of doing nothing; waiting for a core counts for neither (10 times as long in all).

    Returns:
        The verdict.

    Raises:
        T2Error: programs cannot be isolated on this machine.
    """
    return run_programs([source], None if test is None else [test], timeout=timeout, workers=1)[0]


def run_programs(
    sources: Sequence[str], tests: Sequence[str] | None = None, *, timeout: float = 5.0, workers: int | None = None
) -> list[Verdict]:
    """Run programs side by side, each in a fresh jailed process.

    Args:
        sources: the programs' texts.
        tests: a test for each, run in a process of its own that the program cannot reach. What a test does not define itself it takes from
            its program: functions are called there, and what they return is compared in the test's process. A test that gives its program
            more than plain values (numbers, texts, containers, functions) runs behind it in one process, which the program can forge.
            Default: a program passes if it runs to its end, its own asserts included.
        timeout: seconds for each, as in `run_program`.
        workers: how many at a time; default: one a core that this process may use (affinity and the container's quota), at most 8.

    Returns:
        One verdict a program, in order.

    Raises:
        T2Error: programs cannot be isolated on this machine.
        UsageError: `timeout` is not a positive number of seconds, or `workers` not positive.
    """
    if not (math.isfinite(timeout) and 0 < timeout <= _LONGEST_SECONDS) or (workers is not None and workers < 1):
        raise UsageError(
            f"Programs need a timeout above 0, up to {_LONGEST_SECONDS:,.0f} seconds (given: {timeout}) and a worker or more ({workers})."
        )
    kind = require().kind
    assert kind is not None
    verdicts: list[Verdict | None] = [None] * len(sources)
    jobs: list[tuple[int, tuple[bytes, bytes]]] = []
    for index, (source, test) in enumerate(zip(sources, [""] * len(sources) if tests is None else tests, strict=True)):
        encoded = _encode(source, test)
        if isinstance(encoded, Verdict):
            verdicts[index] = encoded
        else:
            jobs.append((index, encoded))
    if jobs:
        count = min(len(jobs), workers or min(8, available_cores()))
        _Loop(kind, jobs, timeout, verdicts).run(count)
    return [cast(Verdict, verdict) for verdict in verdicts]


def _encode(source: str, test: str) -> tuple[bytes, bytes] | Verdict:
    try:
        program, asked = source.encode("utf-8"), test.encode("utf-8")
    except UnicodeEncodeError:
        return Verdict(False, "refused", "the program is not text: it holds lone surrogates")
    if (length := len(program) + len(asked)) > LONGEST_SOURCE:
        return Verdict(False, "refused", f"the program has {length} bytes, more than {LONGEST_SOURCE}")
    return program, asked


class _Loop:
    """One call of `run_programs`: jobs out, verdicts in."""

    def __init__(self, kind: Kind, jobs: list[tuple[int, tuple[bytes, bytes]]], seconds: float, verdicts: list[Verdict | None]) -> None:
        self.kind, self.seconds, self.verdicts = kind, seconds, verdicts
        self.sources = dict(jobs)
        self.waiting = [index for index, _ in reversed(jobs)]
        self.alone: list[int] = []  # run again, one at a time, when all others are done
        self.lost: dict[int, int] = {}  # jails that a job has lost
        self.starved: set[int] = set()
        self.selector = selectors.DefaultSelector()
        self.borrowed: list[Supervisor] = []

    def run(self, workers: int) -> None:
        try:
            self._all(workers)
            while self.alone:
                self.waiting = [self.alone.pop(0)]
                self._all(1)
        except BaseException:
            for supervisor in self.borrowed:
                supervisor.kill()
            raise
        finally:
            self.selector.close()
        give_back(self.borrowed)

    def _all(self, workers: int) -> None:
        """Run what waits, by so many supervisors."""
        for supervisor in self.borrowed[:workers]:
            self._next(supervisor)
        while len(self.borrowed) < workers and self.waiting:
            if not self._hire():
                break
        while self.selector.get_map():
            soonest = min(cast(Supervisor, key.data).deadline for key in self.selector.get_map().values())
            ready = self.selector.select(max(0.0, soonest - time.monotonic()))
            for key, _ in ready:
                self._collect(key.data)
            for late in [key.data for key in self.selector.get_map().values() if key.data.deadline < time.monotonic()]:
                self._lose(late)

    def _hire(self) -> bool:
        """One more supervisor, at work; False where none can be had now, and others are at work.

        Raises:
            T2Error: none can be had for half a minute, and nothing runs.
        """
        for wait in range(_START_TRIES):
            try:
                supervisor = borrow(self.kind)
            except (T2Error, OSError) as error:  # no process, no descriptor, no memory to spare
                if self.selector.get_map():
                    return False
                if wait == _START_TRIES - 1:
                    raise T2Error(
                        f"Programs cannot be run any more: {error}. The machine has no processes or memory to spare: run fewer at a time."
                    ) from error
                time.sleep(1.0)
            else:
                self.borrowed.append(supervisor)
                self._next(supervisor)
                return True
        return False

    def _next(self, supervisor: Supervisor) -> None:
        if self.waiting:
            job = self.waiting.pop()
            program, test = self.sources[job]
            supervisor.send(job, program, self.seconds, test)
            self.selector.register(supervisor.output, selectors.EVENT_READ, supervisor)

    def _collect(self, supervisor: Supervisor) -> None:
        answer = supervisor.receive()
        job = supervisor.job
        if answer is None or (answer["status"] == "refused" and self.lost.get(job, 0) < _TRIES - 1):
            self._lose(supervisor)
            return
        if answer["starved"] and job not in self.starved:
            self.starved.add(job)
            self.alone.append(job)
        elif answer["status"] == "unfit":  # what the test hands over cannot leave its process: the two in one
            self.sources[job] = (b"\n".join(self.sources[job]), b"")
            self.waiting.append(job)
        else:
            status = cast(Status, answer["status"])
            detail = "".join(letter if letter.isprintable() else " " for letter in str(answer["detail"]))
            self.verdicts[job] = Verdict(status == "passed", status, detail)
        if answer["spent"]:
            self._replace(supervisor)
            return
        self.selector.unregister(supervisor.output)
        self._next(supervisor)

    def _lose(self, supervisor: Supervisor) -> None:
        """A jail that is dead or silent says nothing of its program, which may have been the first that an idle one was given."""
        job = supervisor.job
        self.lost[job] = self.lost.get(job, 0) + 1
        if self.lost[job] < _TRIES:
            self.alone.append(job)
        else:
            self.verdicts[job] = Verdict(False, "killed", f"its jail ended with it, {_TRIES} times, the last ones alone")
        self._replace(supervisor)

    def _replace(self, supervisor: Supervisor) -> None:
        self.selector.unregister(supervisor.output)
        self.borrowed.remove(supervisor)
        supervisor.kill()
        if self.waiting:
            self._hire()
