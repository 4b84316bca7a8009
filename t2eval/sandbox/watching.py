"""Watching: what the processes of one program use, until they have said their word or used up their time.

Runs inside the jail, without t2eval: it imports nothing but the standard library.
"""

from __future__ import annotations

import mmap
import os
import select
import time

from t2eval.sandbox.counting import Counter

_PATIENCE = 10  # times its seconds that a program may take in all, on a machine that gives it no core
_IDLE = 0.02  # share of a core below which a stretch of time counts as doing nothing: a starved program gets more


def _processor_time(process: int) -> float:
    """Seconds of processor time that a process has used, threads included."""
    try:
        return time.clock_gettime(~process << 3 | 2)  # the kernel's CPUCLOCK_SCHED of a process
    except OSError:  # it ended just now
        return 0.0


def watch(verdict: int, children: list[int], seconds: float, said: mmap.mmap, counter: Counter | None = None) -> tuple[int, str]:
    """Read what is written to a verdict's descriptor until it is closed, or these processes have used up their time.

    Returns:
        How many bytes it wrote, and how that ended: "" (it closed the descriptor, or wrote too much), `time` (it used its seconds of
        processor time, or did nothing for as long), `starved` (neither, in ten times its seconds).
    """
    room, length = memoryview(said), 0
    begin = checked = time.monotonic()
    used = idle = 0.0
    stretch = max(seconds / 8, 0.1)
    watched = select.poll()
    watched.register(verdict, select.POLLIN)
    watched.register(0, 0)  # the harness went away (POLLHUP)
    if counter is not None and counter.listener >= 0:
        watched.register(counter.listener, select.POLLIN)
    while length < len(said):
        events = watched.poll(max(0.0, checked + stretch - time.monotonic()) * 1000)
        for descriptor, event in events:
            if descriptor == 0:
                os._exit(1)  # the children die with this one (PDEATHSIG)
            if counter is not None and descriptor == counter.listener:
                counter.answer() if event & select.POLLIN else watched.unregister(descriptor)
                continue
            got = os.readv(verdict, [room[length:]])
            if not got:
                return length, ""
            length += got
        now = time.monotonic()
        if now - checked >= stretch:
            before, used = used, sum(map(_processor_time, children))
            idle += now - checked if used - before < _IDLE * (now - checked) else 0.0
            checked = now
            if used >= seconds or idle >= seconds:
                return length, "time"
            if now - begin >= _PATIENCE * seconds:
                return length, "starved"
    return length, ""
