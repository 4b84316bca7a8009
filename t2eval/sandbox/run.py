"""Run programs: hand them to warm supervisors, one fresh process each, and collect the verdicts.

One thread, one loop: safe to call from threads (each call has supervisors of its own) and after a fork (a child starts anew).
An exception in the middle, Ctrl-C included, ends every supervisor that still works, and with it its program.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import selectors
import signal
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from t2eval.errors import T2Error
from t2eval.sandbox.isolation import Isolation, Kind, asked, missing, refusal, start

Status = Literal["passed", "failed", "error", "timeout", "memory", "killed", "refused"]
LONGEST_SOURCE = 1 << 20  # bytes
_START_SECONDS = 120.0  # an overloaded machine is slow, not unsafe
_GRACE_SECONDS = 30.0  # how long after the limit a supervisor may take to say so
_KEPT = 8  # idle supervisors, for the next call

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


class _Supervisor:
    """The harness's end of one warm jail."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.process = start(kind)
        self.job = -1
        self.deadline = 0.0
        _living.add(self)
        try:
            ready = self.receive(_START_SECONDS)
        except BaseException:
            self.kill()
            raise
        assert self.process.stderr is not None
        if ready is None:
            self.kill()
            reason = self.process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        self.process.stderr.close()
        if ready is None:
            raise T2Error(f"{kind} does not work here ({reason[-1][:300] if reason else 'it ended without a word'})")

    @property
    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, job: int, source: bytes, seconds: float) -> None:
        assert self.process.stdin is not None
        self.job, self.deadline = job, time.monotonic() + seconds + _GRACE_SECONDS
        data = memoryview(struct.pack("<Id", len(source), seconds) + source)
        try:
            while data:
                data = data[os.write(self.process.stdin.fileno(), data) :]
        except BrokenPipeError:
            return  # it died while idle: `receive` finds the end of the stream, and the caller starts another

    def receive(self, seconds: float = _GRACE_SECONDS) -> dict[str, object] | None:
        """One answer, or `None` if the supervisor is dead or silent."""
        data = b""
        end = time.monotonic() + seconds
        while len(data) < 4 or len(data) < 4 + struct.unpack("<I", data[:4])[0]:
            waiting = select.poll()
            waiting.register(self.output, select.POLLIN)
            if not waiting.poll(max(0.0, end - time.monotonic()) * 1000):
                return None
            chunk = os.read(self.output, 65536)
            if not chunk:
                return None
            data += chunk
        return cast("dict[str, object]", json.loads(data[4:]))

    def kill(self) -> None:
        """End it now. Its program's process dies with it (PDEATHSIG, or as a member of its process namespace)."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def abandon(self) -> None:
        """In a forked process: let go of the parent's jail without ending it."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.process.returncode = 0


_lock = threading.Lock()
_idle: list[_Supervisor] = []
_living: weakref.WeakSet[_Supervisor] = weakref.WeakSet()
_known: dict[str, Isolation] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for supervisor in list(_living):
        supervisor.abandon()
    _living.clear()
    _idle.clear()


def close() -> None:
    """End the idle supervisors. Called at exit; the next program starts new ones."""
    with _lock:
        ended = list(_idle)
        _idle.clear()
    for supervisor in ended:
        supervisor.kill()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close)


def _borrow(kind: Kind) -> _Supervisor:
    with _lock:
        for supervisor in reversed(_idle):
            if supervisor.kind == kind:
                _idle.remove(supervisor)
                return supervisor
    return _Supervisor(kind)


def _give_back(supervisors: Sequence[_Supervisor]) -> None:
    for supervisor in supervisors:
        with _lock:
            room = len(_idle) < _KEPT
            if room:
                _idle.append(supervisor)
        if not room:
            supervisor.kill()


def _why_not(kind: Kind) -> str | None:
    """Start a jail and let a canary try its walls: why the kind does not hold here, or `None`."""
    if reason := missing(kind):
        return reason
    try:
        supervisor = _Supervisor(kind)
    except (T2Error, OSError) as error:
        return str(error)
    supervisor.send(0, _CANARY.encode(), _START_SECONDS)
    answer = supervisor.receive(_START_SECONDS + _GRACE_SECONDS)
    if answer is None or answer["status"] != "passed":
        supervisor.kill()
        return f"{kind} does not hold here ({answer['detail'] if answer else 'no answer'})"
    _give_back([supervisor])
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


def run_program(source: str, *, timeout: float = 5.0) -> Verdict:
    """Run one program, asserts included, in a fresh jailed process.

    Args:
        source: the program's text; it passes if it runs to its end.
        timeout: wall-clock seconds.

    Returns:
        The verdict.

    Raises:
        T2Error: programs cannot be isolated on this machine.
    """
    return run_programs([source], timeout=timeout, workers=1)[0]


def run_programs(sources: Sequence[str], *, timeout: float = 5.0, workers: int | None = None) -> list[Verdict]:
    """Run programs side by side, each in a fresh jailed process.

    Args:
        sources: the programs' texts.
        timeout: wall-clock seconds for each.
        workers: how many at a time; default: one a processor that this process may use, at most 8.

    Returns:
        One verdict a program, in order.

    Raises:
        T2Error: programs cannot be isolated on this machine.
        ValueError: `timeout` or `workers` is not positive.
    """
    if timeout <= 0 or (workers is not None and workers < 1):
        raise ValueError(f"timeout ({timeout}) and workers ({workers}) must be positive")
    kind = require().kind
    assert kind is not None
    verdicts: list[Verdict | None] = [None] * len(sources)
    jobs: list[tuple[int, bytes]] = []
    for index, source in enumerate(sources):
        encoded = _encode(source)
        if isinstance(encoded, Verdict):
            verdicts[index] = encoded
        else:
            jobs.append((index, encoded))
    if jobs:
        count = min(len(jobs), workers or min(8, len(os.sched_getaffinity(0))))
        _Loop(kind, jobs, timeout, verdicts).run(count)
    return [cast(Verdict, verdict) for verdict in verdicts]


def _encode(source: str) -> bytes | Verdict:
    try:
        encoded = source.encode("utf-8")
    except UnicodeEncodeError:
        return Verdict(False, "refused", "the program is not text: it holds lone surrogates")
    if len(encoded) > LONGEST_SOURCE:
        return Verdict(False, "refused", f"the program has {len(encoded)} bytes, more than {LONGEST_SOURCE}")
    return encoded


class _Loop:
    """One call of `run_programs`: jobs out, verdicts in."""

    def __init__(self, kind: Kind, jobs: list[tuple[int, bytes]], seconds: float, verdicts: list[Verdict | None]) -> None:
        self.kind, self.seconds, self.verdicts = kind, seconds, verdicts
        self.sources = dict(jobs)
        self.waiting = [index for index, _ in reversed(jobs)]
        self.retried: set[int] = set()
        self.selector = selectors.DefaultSelector()
        self.borrowed: list[_Supervisor] = []

    def run(self, workers: int) -> None:
        try:
            for _ in range(workers):
                self._next(self._hire())
            while self.selector.get_map():
                soonest = min(cast(_Supervisor, key.data).deadline for key in self.selector.get_map().values())
                ready = self.selector.select(max(0.0, soonest - time.monotonic()))
                for key, _ in ready:
                    self._collect(key.data)
                for late in [key.data for key in self.selector.get_map().values() if key.data.deadline < time.monotonic()]:
                    self._replace(late, Verdict(False, "timeout", f"still running after {self.seconds:g} s; its jail was ended"))
        except BaseException:
            for supervisor in self.borrowed:
                supervisor.kill()
            raise
        finally:
            self.selector.close()
        _give_back(self.borrowed)

    def _hire(self) -> _Supervisor:
        supervisor = _borrow(self.kind)
        self.borrowed.append(supervisor)
        return supervisor

    def _next(self, supervisor: _Supervisor) -> None:
        if self.waiting:
            job = self.waiting.pop()
            supervisor.send(job, self.sources[job], self.seconds)
            self.selector.register(supervisor.output, selectors.EVENT_READ, supervisor)

    def _collect(self, supervisor: _Supervisor) -> None:
        answer = supervisor.receive()
        job = supervisor.job
        if answer is None:
            if job not in self.retried:  # perhaps it had died while idle, or the machine was out of memory
                self.retried.add(job)
                self.waiting.append(job)
                self._replace(supervisor, None)
            else:
                self._replace(supervisor, Verdict(False, "killed", "its jail ended with it, twice"))
            return
        status = cast(Status, answer["status"])
        detail = "".join(letter if letter.isprintable() else " " for letter in str(answer["detail"]))
        verdict = Verdict(status == "passed", status, detail)
        if answer["spent"]:
            self._replace(supervisor, verdict)
            return
        self.verdicts[job] = verdict
        self.selector.unregister(supervisor.output)
        self._next(supervisor)

    def _replace(self, supervisor: _Supervisor, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.verdicts[supervisor.job] = verdict
        self.selector.unregister(supervisor.output)
        self.borrowed.remove(supervisor)
        supervisor.kill()
        if self.waiting:
            self._next(self._hire())
