"""Faults: work is killed, runs out of disk or memory, meets a second process, a closed pipe or a jumping clock, and is then started again.

Six kinds of work of the embedded base (`benchmarks/fault_work.py`), each a fork of a process that has everything imported, so that a
kill meets the work and not the imports: `train` (a short training run), `bench` (cells of four methods, in that process), `search` (cells
of few-shot search), `workers` (the cells of `bench` by two worker processes), `export` (a library as LoRA adapters, an expert mixed over
an older one, and a merged model) and `push` (a library to a hub on this machine). Each is done once undisturbed. Then, per fault, in a new
folder: the fault, a look at what it left, the same call again without it, and:

- what was finished before the fault has the same bytes afterwards, and what is there in the end has the bytes of the undisturbed run
  (seconds and memory, which no two runs share, left out);
- no process is left after the fault, whatever session it was in; no lock, no unfinished and no temporary file after the second call;
- where the work could say something, it was one `T2Error`, never another exception.

    python benchmarks/faults.py --kills 100 --json

`--kills` is the number of SIGKILLs that meet the work, before it has ended; they come at random moments, by the processor's time that it
has used, at most two to a folder before it is done to the end. The other faults: SIGTERM at a random moment; a disk that has none, a
quarter, half and three quarters of the room that the work needs, and a read-only one (a tmpfs in a mount namespace of its own, where this
process may make one); a read-only cache; out of memory in one cell; two processes in one folder; a pipe that is closed at once, or after
some bytes; a clock that jumps back and forth. The exit code is 1 where anything else than the above was seen.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from disturbances import (
    into_a_closed_pipe,
    kilobytes_of,
    left,
    on_a_small_disk,
    own_disk,
    starved,
    with_a_clock_that_jumps,
    without_a_cache,
)
from fault_work import BENCH, Work, cells, works

from t2eval.environment.quiet import quiet_lm_eval
from t2eval.errors import T2Error

KINDS = ("train", "bench", "search", "workers", "export", "push")
_CHILD_SUBREAPER = 36


@dataclass
class Fault:
    """What one kind of fault left behind, over all its cases."""

    cases: int = 0
    struck: int = 0  # before the work had ended
    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------- processes
def start(call: Callable[[], None], temporary: Path) -> tuple[int, int]:
    """Do something in a fork, in a session of its own; returns its id, and where it says how it went (`end`)."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    os.setsid()
    code = 0
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        call()
        said = "done"
    except T2Error as error:
        said = f"T2Error: {error}"
    except BaseException as error:  # noqa: BLE001  what it is, is the finding
        said = f"WRONG {type(error).__name__}: {error} {traceback.format_exc()[-600:]}"
    with contextlib.suppress(OSError):
        os.write(writing, said.encode()[:4000])
    os._exit(code)


def end(process: int, reading: int) -> str | None:
    """What a fork said, once it has ended; None where it was ended by a signal before it said anything."""
    os.waitpid(process, 0)
    os.set_blocking(reading, False)  # a process that is left may hold the other end
    try:
        said = os.read(reading, 1 << 16).decode()
    except BlockingIOError:
        said = ""
    finally:
        os.close(reading)
    return said or None


def below(process: int) -> list[int]:
    """The processes that a process started, and those that they did, zombies left out."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, thread.read_text().split()):
                with contextlib.suppress(OSError):
                    state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
                    found += [*([child] if state != "Z" else []), *below(child)]
    return found


def processor(process: int) -> float:
    """Seconds of processor time of a process and those below it, up to now."""
    total = 0.0
    for each in (process, *below(process)):
        with contextlib.suppress(OSError):
            times = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:15]
            total += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return total


def spend(process: int, seconds: float) -> float:
    """Wait until a process has ended, or has used so many seconds of the processor, however busy the machine is; how many it used."""
    used = 0.0
    while used < seconds and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        used = max(used, processor(process))
        time.sleep(0.004)
    return used


@contextlib.contextmanager
def adopting() -> Iterator[set[int]]:
    """While processes whose parent dies become children of this one, whatever session they are in. Gives those there were before."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield set(below(os.getpid()))
    finally:
        libc.prctl(_CHILD_SUBREAPER, 0, 0, 0, 0)


def gone(before: set[int], seconds: float = 10.0) -> bool:
    """Whether all processes below this one, but for those that there were before, end within some seconds."""
    until = time.monotonic() + seconds
    while set(below(os.getpid())) - before:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


class Trials:
    """Faults to one kind of work, each in a folder of its own, compared with the undisturbed run."""

    def __init__(self, work: Work, home: Path, generator: random.Random) -> None:
        self.work, self.home, self.generator, self._number = work, home, generator, 0
        folder, temporary = self._places()
        end(*start(lambda: work.do(folder), temporary))  # what the first one finds cold is no part of its time
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder, temporary = self._places()
        process, reading = start(lambda: work.do(folder), temporary)
        self.seconds = spend(process, float("inf"))
        said = end(process, reading)
        if said != "done":
            raise SystemExit(f"{work.name}: the undisturbed run failed: {said}")
        self.expected, self.kilobytes = work.finished(folder), kilobytes_of(folder)
        assert self.expected, work.name

    def _places(self) -> tuple[Path, Path]:
        """A place for the work, and one for its temporary files."""
        self._number += 1
        temporary = self.home / f"{self.work.name}-{self._number}-tmp"
        temporary.mkdir()
        return self.home / f"{self.work.name}-{self._number}" / "out", temporary

    def struck_by(self, signals: Sequence[int], fault: Fault) -> None:
        """Signals at random moments, one a call, then the call without."""
        folder, temporary = self._places()
        before: dict[str, str] = {}
        for number in signals:
            with adopting() as others:
                process, reading = start(lambda: self.work.do(folder), temporary)
                spend(process, self.generator.uniform(0, self.seconds))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
                said = end(process, reading)
                fault.cases += 1
                fault.struck += said is None
                if not gone(others):
                    fault.wrong.append(f"{self.work.name}: a process is left after signal {number}")
            before = self._kept(folder, before, fault)
        self._again(folder, temporary, before, fault)

    def told(self, disturbed: Callable[[Path], None], fault: Fault, *, dies: bool = False) -> None:
        """Work that is disturbed and may say so (or dies of it), then the call without."""
        folder, temporary = self._places()
        with adopting() as others:
            said = end(*start(lambda: disturbed(folder), temporary))
            fault.cases += 1
            fault.struck += said != "done"
            fault.told[_short(said)] += 1
            if (said is None and not dies) or (said or "").startswith("WRONG"):
                fault.wrong.append(f"{self.work.name}: {said}")
            if not gone(others):
                fault.wrong.append(f"{self.work.name}: a process is left")
        self._again(folder, temporary, self._kept(folder, {}, fault), fault)

    def two_at_once(self, fault: Fault) -> None:
        """Two processes in one folder: the second is refused, or finds it done, and the first ends as if it had been alone."""
        folder, temporary = self._places()
        with adopting() as others:
            first = start(lambda: self.work.do(folder), temporary)
            while not left(folder.parent) and below(os.getpid()):
                time.sleep(0.002)
            said = end(*start(lambda: self.work.do(folder), temporary))
            fault.cases += 1
            fault.told[_short(said)] += 1
            fault.struck += said is not None and "Another" in said
            if said is None or not (said == "done" or said.startswith("T2Error")):
                fault.wrong.append(f"{self.work.name}: the second process: {said}")
            if (alone := end(*first)) != "done":
                fault.wrong.append(f"{self.work.name}: the first process: {alone}")
            if not gone(others):
                fault.wrong.append(f"{self.work.name}: a process is left")
        self._again(folder, temporary, self._kept(folder, {}, fault), fault)

    def _kept(self, folder: Path, before: dict[str, str], fault: Fault) -> dict[str, str]:
        """What is finished now; what was finished before must be among it."""
        try:
            now = self.work.finished(folder)
        except Exception as error:  # noqa: BLE001  half of something
            fault.wrong.append(f"{self.work.name}: what is finished cannot be read: {type(error).__name__}: {error}")
            return before
        fault.wrong.extend(f"{self.work.name}: {name} was finished, and changed" for name in before if now.get(name) != before[name])
        wrong = [name for name in now if self.expected.get(name) != now[name]]
        fault.wrong.extend(f"{self.work.name}: {name} is finished, and another than undisturbed" for name in wrong)
        return now

    def _again(self, folder: Path, temporary: Path, before: dict[str, str], fault: Fault) -> None:
        """The call without the fault: it ends well, with the bytes of the undisturbed run, and leaves nothing beside."""
        with adopting() as others:
            said = end(*start(lambda: self.work.do(folder), temporary))
            if said != "done":
                fault.wrong.append(f"{self.work.name}: going on failed: {said}")
            if not gone(others):
                fault.wrong.append(f"{self.work.name}: a process is left")
        if self._kept(folder, before, fault).keys() != self.expected.keys():
            fault.wrong.append(f"{self.work.name}: after going on something is missing")
        fault.wrong.extend(f"{self.work.name}: left behind: {path}" for path in left(folder.parent))
        fault.wrong.extend(f"{self.work.name}: a temporary file is left: {path}" for path in sorted(temporary.iterdir()))
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _short(said: str | None) -> str:
    """A message without its places and numbers, so that equal ones can be counted."""
    words = (said or "ended by a signal").split()
    return " ".join("…" if "/" in word or any(letter.isdigit() for letter in word) else word for word in words)[:140]


def may_mount(home: Path) -> bool:
    """Whether this process may make a file system of its own."""
    return end(*start(lambda: own_disk(home / "probe", 64), home)) == "done"


# ---------------------------------------------------------------------- all of it
def _killed(trials: Trials, kills: int) -> Fault:
    """So many kills that meet the work. One in three or four comes when a call that goes on has ended."""
    fault = Fault()
    while fault.struck < kills and fault.cases < 5 * kills:
        trials.struck_by([signal.SIGKILL] * min(2, kills - fault.struck), fault)
    if fault.struck < kills:
        fault.wrong.append(f"{trials.work.name}: only {fault.struck} of {fault.cases} signals met the work")
    return fault


def faults_of(trials: Trials, kills: int, mounts: bool) -> Iterator[tuple[str, Fault]]:
    """Every fault to one kind of work: name and what was seen, each as it is done."""
    work = trials.work
    yield "killed", _killed(trials, kills)
    trials.struck_by([signal.SIGTERM] * 2, terminated := Fault())
    yield "terminated", terminated
    if work.name == "workers":
        return
    trials.told(with_a_clock_that_jumps(work, 0), clock := Fault())
    yield "clock", clock
    trials.two_at_once(two := Fault())
    yield "two processes", two
    closed = Fault()
    for after in (0, 1, 300):
        trials.told(into_a_closed_pipe(work, after), closed)
    yield "closed pipe", closed
    if mounts:
        if work.name != "push":
            full = Fault()
            for share in (0.0, 0.25, 0.5, 0.75):
                trials.told(on_a_small_disk(work, max(4, round(trials.kilobytes * share / 4) * 4), False), full)
            yield "disk full", full
            trials.told(on_a_small_disk(work, 64, True), read_only := Fault())
            yield "read-only", read_only
        trials.told(without_a_cache(work), cache := Fault())
        yield "read-only cache", cache
    if work.name == "bench":
        trials.told(starved, memory := Fault())
        yield "out of memory", memory


def all_faults(kills: int, home: Path, seed: int, chosen: Sequence[str], say: Callable[[str], None]) -> dict[str, Fault]:
    """Every fault to every kind of work that is chosen."""
    found = dict[str, Fault]()
    mounts = may_mount(home)
    with contextlib.ExitStack() as stack:
        for work in works(chosen, stack):
            trials = Trials(work, home, random.Random(f"{seed} {work.name}"))
            say(f"{work.name}: {trials.seconds:.1f} s of the processor undisturbed, {trials.kilobytes} KiB")
            for name, fault in faults_of(trials, -(-kills // len(chosen)), mounts):
                found[f"{work.name}, {name}"] = fault
                messages = "; ".join(f"{text} ({count})" for text, count in fault.told.items())
                say(f"  {name}: {fault.cases} cases, {fault.struck} struck, {len(fault.wrong)} wrong {fault.wrong[:3]} {messages}")
    return found


def main() -> None:
    """Do all of it and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="that meet the work, in all, shared among the kinds of work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default=",".join(KINDS), help="kinds of work, joined by commas")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args()
    chosen = options.work.split(",")
    if unknown := set(chosen) - set(KINDS):
        parser.error(f"no such work: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not survive a fork
    quiet_lm_eval()
    with tempfile.TemporaryDirectory(prefix="t2eval-faults-") as folder:
        home = Path(folder)
        warm = home / "warm"
        end(*start(lambda: None, home))
        cells(BENCH)(warm / "out")  # what is imported late is imported before the forks
        found = all_faults(options.kills, home, options.seed, chosen, lambda line: print(line, flush=True))
    wrong = [line for fault in found.values() for line in fault.wrong]
    struck = {name: sum(fault.struck for key, fault in found.items() if key.endswith(f", {name}")) for name in ("killed", "terminated")}
    print(f"{struck['killed']} kills and {struck['terminated']} SIGTERM before the work had ended; {len(wrong)} wrong")
    if options.json:
        table = {
            name: {"cases": fault.cases, "struck": fault.struck, "wrong": fault.wrong, "told": dict(fault.told)}
            for name, fault in found.items()
        }
        print(json.dumps({"seed": options.seed, "faults": table, "wrong": len(wrong)}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
