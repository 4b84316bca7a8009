"""What `benchmarks/faults.py` does to work besides killing it: small and read-only disks, closed pipes, no memory, a clock that jumps.

Each function gives a call that does the work in a folder, disturbed.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_work import BENCH, Work, cells

from t2eval.bench.rows import read as read_rows
from t2eval.bench.worker import Worker
from t2eval.errors import T2Error

_NAMESPACE, _PRIVATE, _READ_ONLY, _REMOUNT = 0x00020000, 1 << 18 | 1 << 14, 1, 32
PAGE = 4096


def left(*folders: Path) -> list[str]:
    """Locks, unfinished and temporary files."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return [str(path) for path in found if path.name.endswith((".lock", ".unfinished", ".partial")) or ".unfinished" in path.name]


# ---------------------------------------------------------------------- disks
def _mount(source: bytes, target: Path, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, os.fsencode(target), kind, flags, data) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def own_disk(place: Path, kilobytes: int, *, read_only: bool = False) -> None:
    """A small file system of this process's own at a place; it is gone with the process.

    Raises:
        OSError: this process may not make one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NAMESPACE) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(b"none", Path("/"), None, _PRIVATE)
    place.mkdir(parents=True, exist_ok=True)
    _mount(b"tmpfs", place, b"tmpfs", 0, f"size={kilobytes}k".encode())
    if read_only:
        _mount(b"none", place, None, _REMOUNT | _READ_ONLY)


def kilobytes_of(folder: Path) -> int:
    """What a folder's files take on a tmpfs: whole pages."""
    return sum(-(-file.stat().st_size // PAGE) for file in folder.rglob("*") if file.is_file()) * PAGE // 1024


def on_a_small_disk(work: Work, kilobytes: int, read_only: bool) -> Callable[[Path], None]:
    """Do the work on a small or read-only disk; what it left there is copied to the folder, for the look and the second call."""

    def disturbed(folder: Path) -> None:
        own_disk(folder.parent / "disk", kilobytes, read_only=read_only)
        there = folder.parent / "disk" / "out"
        try:
            work.do(there)
        finally:
            if unfinished := [path for path in left(there.parent) if not path.endswith(".lock")]:
                raise RuntimeError(f"left on the disk: {unfinished}")
            if there.is_dir():
                shutil.copytree(there, folder)

    return disturbed


def without_a_cache(work: Work) -> Callable[[Path], None]:
    """Do the work with caches that cannot be written: t2eval's own, and that of the hub's client."""

    def disturbed(folder: Path) -> None:
        place = folder.parent / "cache"
        own_disk(place, 64, read_only=True)
        os.environ["T2EVAL_CACHE"] = str(place)
        from huggingface_hub import constants

        constants.HF_HUB_CACHE = str(place)
        work.do(folder)

    return disturbed


# ---------------------------------------------------------------------- pipes, memory, time
def into_a_closed_pipe(work: Work, after: int) -> Callable[[Path], None]:
    """Do the work by its commands, whose output and errors go into a pipe that nobody reads, as after `t2 … 2>&1 | head -c AFTER`."""

    def disturbed(folder: Path) -> None:
        from t2eval.cli import main

        reading, writing = os.pipe()

        def read() -> None:
            if after:
                os.read(reading, after)
            os.close(reading)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        if not after:
            reader.join()
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(writing, stream)
            setattr(sys, name, open(stream, "w", encoding="utf-8", buffering=1, closefd=False))  # noqa: SIM115  of a process that ends
        os.close(writing)
        assert work.commands is not None
        for command in work.commands(folder):
            try:
                main(command)
            except SystemExit as ended:
                if ended.code:
                    raise T2Error(f"It ends with exit code {ended.code}.") from ended

    return disturbed


class Starved(Worker):
    """A worker that has no memory to spare for one cell."""

    def run(self, cell: Any) -> Any:
        """Evaluate a cell; `expert` with the address space that is in use now, and what is free in it taken up to pieces of 64 KiB."""
        if cell.method != "expert":
            return super().run(cell)
        gc.collect()
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, before[1]))
        taken: list[bytearray] = []
        for size in (1 << 24, 1 << 20, 1 << 16):
            while True:
                try:
                    taken.append(bytearray(size))
                except MemoryError:
                    break
        try:
            return super().run(cell)
        finally:
            taken.clear()
            resource.setrlimit(resource.RLIMIT_AS, before)


def starved(folder: Path) -> None:
    """The work `bench`, with too little memory for some of its cells."""
    cells(BENCH, factory=Starved)(folder)
    failed = [row for row in read_rows(folder) if row.status == "failed"]
    if failed:
        raise T2Error(f"{len(failed)} cells failed, the first: {failed[0].error}")


def killed_at(work: Work, number: int) -> Callable[[Path], None]:
    """Do the work up to the moment when something is written to the disk for the n-th time."""

    def disturbed(folder: Path) -> None:
        real, calls = os.fsync, iter(range(1, number))

        def fsync(descriptor: int) -> None:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        os.fsync = fsync
        work.do(folder)

    return disturbed


def with_a_clock_that_jumps(work: Work, seed: int) -> Callable[[Path], None]:
    """Do the work while `time.time` goes back and forth by up to a day."""

    def disturbed(folder: Path) -> None:
        real, generator = time.time, random.Random(seed)
        time.time = lambda: real() + generator.uniform(-86400, 86400)
        work.do(folder)

    return disturbed
