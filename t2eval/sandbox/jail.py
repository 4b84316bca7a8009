"""Jails: the harness's end of one warm supervisor, and the idle ones that wait for the next call.

Safe to use from threads, and after a fork: a child starts anew.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from typing import cast

from t2eval.errors import T2Error
from t2eval.sandbox.isolation import Kind, start

START_SECONDS = 120.0  # an overloaded machine is slow, not unsafe
GRACE_SECONDS = 30.0  # how long after its last limit a supervisor may take to answer
_PATIENCE = 10  # times its seconds that a supervisor gives to a program that gets no core
_KEPT = 8  # idle supervisors, for the next call


class Supervisor:
    """The harness's end of one warm jail."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.process = start(kind)
        self.job = -1
        self.number = 0  # of the last question, which its answer repeats
        self.deadline = 0.0
        _living.add(self)
        try:
            ready = self.receive(START_SECONDS)
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

    def send(self, job: int, source: bytes, seconds: float, test: bytes = b"") -> None:
        assert self.process.stdin is not None
        self.job, self.deadline = job, time.monotonic() + _PATIENCE * seconds + GRACE_SECONDS
        self.number += 1
        data = memoryview(struct.pack("<qIId", self.number, len(source), len(test), seconds) + source + test)
        try:
            while data:
                data = data[os.write(self.process.stdin.fileno(), data) :]
        except BrokenPipeError:
            return  # it died while idle: `receive` finds the end of the stream, and the caller starts another

    def receive(self, seconds: float = GRACE_SECONDS) -> dict[str, object] | None:
        """The answer to the last question, or `None` if the supervisor is dead or silent."""
        end = time.monotonic() + seconds
        length = self._read(4, end)
        text = self._read(struct.unpack("<I", length)[0], end) if length else None
        if not text:
            return None
        answer = cast("dict[str, object]", json.loads(text))
        words = self._read(cast(int, answer["said"]), end) if answer["said"] else b""
        if words is None or answer.get("number", 0) != self.number:
            return None
        # The supervisor's own words, or the program's: it keeps none of those.
        return {**answer, "detail": str(answer.get("detail", "")) + words.decode("utf-8", "replace")}

    def _read(self, length: int, end: float) -> bytes | None:
        data = b""
        while len(data) < length:
            waiting = select.poll()
            waiting.register(self.output, select.POLLIN)
            if not waiting.poll(max(0.0, end - time.monotonic()) * 1000):
                return None
            chunk = os.read(self.output, length - len(data))
            if not chunk:
                return None
            data += chunk
        return data

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
idle: list[Supervisor] = []
_living: weakref.WeakSet[Supervisor] = weakref.WeakSet()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for supervisor in list(_living):
        supervisor.abandon()
    _living.clear()
    idle.clear()


def close() -> None:
    """End the idle supervisors. Called at exit; the next program starts new ones."""
    with _lock:
        ended = list(idle)
        idle.clear()
    for supervisor in ended:
        supervisor.kill()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close)


def borrow(kind: Kind) -> Supervisor:
    with _lock:
        for supervisor in reversed(idle):
            if supervisor.kind == kind:
                idle.remove(supervisor)
                return supervisor
    return Supervisor(kind)


def give_back(supervisors: Sequence[Supervisor]) -> None:
    for supervisor in supervisors:
        with _lock:
            room = len(idle) < _KEPT
            if room:
                idle.append(supervisor)
        if not room:
            supervisor.kill()
