"""Fuzz every reader: `python -m tests.store.fuzz_readers --cases 20000`, or `make fuzz`.

Each case damages the files of one reader (bytes flipped, cut, repeated, put in, values of another kind, devices, FIFOs, links) and reads
them. It may give a value or a `T2Error`. Anything else, more than `SECONDS` of the processor or `WALL` of the clock, more than `MEMORY`
bytes beside what was there, a file written or a process started counts as a failure. The last line is a JSON object of counts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import cProfile
import functools
import gzip
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error
from tests.store.fuzz_seeds import seeds

SECONDS, WALL, MEMORY = 5, 120, 2**30
PIECES = [b"{", b"[", b"]", b"}", b"&a ", b"*a ", b"!!int ", b"\x00", b"\xff\xfe", b"1e999", b"NaN", b"null", b"-1", b"\\ud800", b": ",
          b"- ", b'"', b"9" * 50, b"../", b"[" * 3000, b"\xe2\x80\xa8"]  # fmt: skip
VALUES: list[Any] = [None, [], {}, -1, 0, 10**30, 1.5, True, "", "../../x", "a\nb", "\x00", [[]], {"a": {"b": []}}, "x" * 4000]


class Hang(BaseException):
    """A case that does not end."""


@functools.cache
def _outside() -> Path:
    """A file of our own that lies outside every folder that is damaged."""
    path = Path(tempfile.mkdtemp()) / "outside"
    path.write_text("root:x:0:0\n")
    return path


def damage(folder: Path, generator: random.Random) -> None:
    """One file of a folder made wrong, or replaced by something that is no file."""
    # A link that an earlier damage left is never written through: what it leads to is not ours.
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink() and file.name != "README.md")
    if not files:
        return
    file = generator.choice(files)
    content, kind = file.read_bytes(), generator.randrange(14)
    packed = file.suffix == ".gz"
    if kind == 0:
        file.unlink()
        generator.choice([lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), lambda: file.symlink_to(_outside()),
                          file.mkdir, lambda: file.symlink_to(file), lambda: None])()  # fmt: skip
        return
    if kind <= 4 and file.suffix in (".json", ".jsonl"):
        with contextlib.suppress(ValueError, RecursionError):  # damaged before: then its bytes are damaged further
            lines = content.decode().splitlines() if file.suffix == ".jsonl" else [content.decode()]
            place = generator.randrange(len(lines))
            lines[place] = json.dumps(_other(json.loads(lines[place]), generator))
            file.write_text("\n".join(lines) + "\n")
            return
    if packed and kind <= 8:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            content = gzip.decompress(content)
    for _ in range(generator.randint(1, 4)):
        place, way = generator.randint(0, len(content)), generator.randrange(4)
        if way == 0:
            content = content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
        elif way == 1:
            content = content[:place]
        elif way == 2:
            content = content[:place] + generator.choice(PIECES) * generator.choice((1, 1, 40)) + content[place:]
        else:
            content = content.replace(generator.choice((b"a", b"1", b":", b",", b"[")), generator.choice(PIECES), 2)
    file.write_bytes(gzip.compress(content) if packed and kind <= 8 else content)


def _other(value: Any, generator: random.Random) -> Any:
    """A JSON value with one place in it made of another kind, doubled or left out."""
    if not isinstance(value, (dict, list)) or not value or generator.random() < 0.1:
        return generator.choice(VALUES)
    key = generator.choice(list(value)) if isinstance(value, dict) else generator.randrange(len(value))
    if generator.random() < 0.15:
        value.pop(key)
    elif isinstance(value, dict) and generator.random() < 0.1:
        value[generator.choice(["x", "", "../x", "a\nb"])] = value.pop(key)
    else:
        value[key] = _other(value[key], generator)
    return value


def _limit(processor: float, clock: float) -> None:
    """Interrupt what takes longer: a loop by the processor's time, whatever else the machine does; what waits, by the clock's."""
    signal.setitimer(signal.ITIMER_PROF, processor)
    signal.setitimer(signal.ITIMER_REAL, clock)


def run(cases: int, seed: int = 0, only: str = "", profile: cProfile.Profile | None = None) -> dict[str, Any]:
    """Run cases, the readers in turn.

    Args:
        cases: how many.
        seed: of the damage.
        only: readers that have this in their names; empty: all.
        profile: sees the undamaged files being read.

    Returns:
        Counts: `cases`, `refused`, `read`, by-kind `failures`, with `examples` of them.
    """
    warnings.simplefilter("ignore")
    table, place = seeds(), Path(tempfile.mkdtemp())
    written: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(f"open {arguments[0]}")
        elif event in ("subprocess.Popen", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "socket.connect", "pickle.find_class"):
            written.append(f"{event} {arguments[:1]}")

    def late(*_: Any) -> None:
        raise Hang

    sys.addaudithook(watch)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, late)
    table = {name: fill for name, fill in table.items() if only in name}
    for fill in table.values():  # the undamaged files must be read; and what is imported late comes before the limit
        folder = place / "whole"
        folder.mkdir()
        read = fill(folder)
        with profile or contextlib.nullcontext():
            read()
        shutil.rmtree(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    counts: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    names, began, slowest = list(table), time.perf_counter(), 0.0
    try:
        for case in range(cases):
            name, generator = names[case % len(names)], random.Random(f"{seed} {case}")
            folder = place / "case"
            folder.mkdir()
            read = table[name](folder)
            for _ in range(generator.randint(1, 2)):
                damage(folder, generator) if any(file.is_file() for file in folder.rglob("*")) else None
            since, outcome = time.process_time(), "read"
            _limit(SECONDS, WALL)
            watching = True
            try:
                read()
            except T2Error:
                outcome = "refused"
            except Hang:
                outcome = f"{name}: hangs"
            except MemoryError:
                outcome = f"{name}: memory"
            except BaseException as error:  # noqa: BLE001  what it is, is the finding
                outcome = f"{name}: {type(error).__name__}"
                examples.setdefault(outcome, f"case {case}: {str(error)[:200]}")
            finally:
                watching = False
                _limit(0, 0)
            slowest = max(slowest, time.process_time() - since)
            if written:
                outcome = f"{name}: wrote or started {written[0]}"
                written.clear()
            counts[outcome] += 1
            shutil.rmtree(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        shutil.rmtree(place)
    failures = {key: value for key, value in counts.items() if key not in ("read", "refused")}
    return {"cases": cases, "read": counts["read"], "refused": counts["refused"], "failures": failures, "examples": examples,
            "slowest_seconds": round(slowest, 2), "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers that have this in their names")
    given = parser.parse_args()
    found = run(given.cases, given.seed, given.only)
    print(json.dumps(found))
    sys.exit(1 if found["failures"] else 0)
