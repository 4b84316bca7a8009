"""Faults: work is killed, runs out of disk or memory, meets a second process or a clock that jumps, and is then started again.

Five kinds of work of the embedded base, each a fork of a process that has everything imported, so that a kill meets the work and not the
imports: `train` (a short training run), `bench` (cells of four methods), `search` (cells of few-shot search), `export` (a library as LoRA
adapters, an expert mixed over an older one, and a merged model) and `push` (a library to a hub on this machine). Each is done once
undisturbed. Then, per fault, in a new folder: the fault, a look at what it left, the same call again without it, and:

- what was finished before the fault has the same bytes afterwards, and what is there in the end has the bytes of the undisturbed run
  (seconds and memory, which no two runs share, left out);
- no process is left after the fault; no lock and no unfinished or temporary file after the second call;
- where the work could say something, it was one `T2Error`, never another exception.

    python benchmarks/faults.py --kills 100 --json

The faults besides kills: SIGTERM at a random moment; a disk of some kilobytes that fills up, and a read-only one (a tmpfs in a mount
namespace of its own, where this process may make one); a read-only cache; out of memory in one cell; two processes in one folder; a clock
that jumps back and forth. The exit code is 1 where anything else than the above was seen.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2eval.bench.execute import run as run_bench
from t2eval.bench.rows import ROWS
from t2eval.bench.rows import read as read_rows
from t2eval.bench.shipped import plan_in
from t2eval.bench.worker import Worker
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.errors import T2Error
from t2eval.expert.expert import Expert
from t2eval.expert.export import export_merged
from t2eval.expert.library import save_mix
from t2eval.expert.lora import export_lora
from t2eval.paths import experts_dir
from t2eval.training.config import TrainConfig
from t2eval.training.train import train_expert
from t2eval.workers.executor import Outcome

TIMED = {"seconds", "first_pass_seconds", "second_pass_seconds", "peak_memory_bytes", "elapsed", "t2"}
LIBRARY = experts_dir() / "library" / "seed-0"


class Here:
    """An executor whose cells run in this very process, so that a kill meets the evaluation, too."""

    elsewhere, workers = False, 1

    def run(self, setup: Callable[[], Any], items: Sequence[Any], log: Path, group: Any = None) -> Generator[Outcome]:
        """Answer one after the other."""
        answer = setup()
        for item in items:
            yield Outcome(item, answer(item))


class Starved(Worker):
    """A worker that has no memory to spare for one cell."""

    def run(self, cell: Any) -> Any:
        """Evaluate a cell; `expert` with the address space that is in use now and a megabyte."""
        if cell.method != "expert":
            return super().run(cell)
        gc.collect()
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, before[1]))
        try:
            return super().run(cell)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


# ---------------------------------------------------------------------- the work
def train(folder: Path) -> None:
    """A training run of a few steps."""
    settings = {"steps": 6, "batch_size": 4, "train_limit": 8, "validation_limit": 8, "validate_every": 2, "test_limit": 8}
    train_expert(TrainConfig(task="embedded_math_seen", output=folder, resume=True, **settings), progress=False)


def bench(folder: Path, factory: type[Worker] = Worker) -> None:
    """Cells of four methods."""
    plan = plan_in(experts_dir(), methods=["base", "expert", "cls", "lora"], tasks=["embedded_math_unseen"], seeds=[0, 1], limit=8)
    run_bench(plan, folder, pool=Here(), factory=factory)


def starved(folder: Path) -> None:
    """The same, with too little memory for some of them."""
    bench(folder, Starved)
    failed = [row for row in read_rows(folder) if row.status == "failed"]
    if failed:
        raise T2Error(f"{len(failed)} cells failed, the first: {failed[0].error}")


def without_a_cache(work: Work) -> Callable[[Path], None]:
    """Do the work with a cache that cannot be written."""

    def disturbed(folder: Path) -> None:
        own_disk(folder.parent / "cache", 64, read_only=True)
        os.environ["T2EVAL_CACHE"] = str(folder.parent / "cache")
        work.do(folder)

    return disturbed


def search(folder: Path) -> None:
    """Cells of few-shot search."""
    settings = {"fewshot": {"shots": 4, "population": 4, "iterations": 3}}
    tasks = ["embedded_math_unseen", "embedded_code_unseen"]
    run_bench(plan_in(experts_dir(), methods=["fewshot"], tasks=tasks, seeds=[0, 1], limit=4, model_args=settings), folder, pool=Here())


def export(folder: Path) -> None:
    """What is not there yet: adapters, a merged model; and a mix over an older one."""
    if not (folder / "lora").exists():
        export_lora(LIBRARY, folder / "lora", rank=2)
    if not (folder / "merged").exists():
        export_merged(LIBRARY / "math", folder / "merged")
    for share in (0.25, 0.75):
        save_mix([LIBRARY / "math", LIBRARY / "code"], [share, 1 - share], folder / "mix", name="mix")


@dataclass(frozen=True)
class Work:
    """Something to do in a folder.

    Attributes:
        do: it; called again, it goes on.
        finished: what a folder holds of it that must never change again: name → digest.
    """

    name: str
    do: Callable[[Path], None]
    finished: Callable[[Path], dict[str, str]]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in TIMED}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _lines(file: Path, *keys: str) -> dict[str, str]:
    """The whole lines of a JSONL file, by some of their values, without what is timed; each once."""
    text = file.read_text().split("\n")[:-1] if file.is_file() else []
    values = [json.loads(line) for line in text]
    return {" ".join(str(value.get(key)) for key in keys): _digest(json.dumps(_timeless(value)).encode()) for value in values}


def of_bench(folder: Path) -> dict[str, str]:
    """Rows that are `ok`, and samples."""
    rows = {name: digest for name, digest in _lines(folder / ROWS, "status", "cell").items() if name.startswith("ok ")}
    kept = {name.removeprefix("ok ") for name in rows}
    samples = {file.name: _digest(file.read_bytes()) for file in (folder / "samples").glob("*.gz") if file.name.split(".jsonl")[0] in kept}
    return rows | samples


def of_training(folder: Path) -> dict[str, str]:
    """The expert's z, once its record says that the run is finished."""
    if not (folder / "training.json").is_file():
        return {}
    Expert.load(folder)
    return {name: _digest((folder / name).read_bytes()) for name in ("expert.safetensors", "test_outcomes.json")}


def of_exports(folder: Path) -> dict[str, str]:
    """All files of the exports that are there; of the mix, which is written over, whether it is one of the two whole ones."""
    found = {}
    for part in ("lora", "merged"):
        files = [file for file in (folder / part).rglob("*") if file.is_file()]
        found |= {file.relative_to(folder).as_posix(): _digest(file.read_bytes()) for file in files}
    if (folder / "mix").exists():
        Expert.load(folder / "mix")  # never half of one
        found["mix"] = "whole"
    return found


# ---------------------------------------------------------------------- processes
@dataclass
class Fault:
    """What one kind of fault left behind, over all its cases."""

    cases: int = 0
    struck: int = 0  # before the work had ended
    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def start(call: Callable[[], None], temporary: Path) -> tuple[int, int]:
    """Do something in a fork, in a session of its own; returns its id, and where it says how it went (`end`)."""
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


def living(session: int) -> list[int]:
    """The processes of a session, zombies left out."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            state, _, _, of = place.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(place.parent.name))
    return found


def gone(session: int, seconds: float = 10.0) -> bool:
    """Whether all processes of a session end within some seconds."""
    until = time.monotonic() + seconds
    while living(session):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def left(*folders: Path) -> list[str]:
    """Locks, unfinished and temporary files."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return [str(path) for path in found if path.name.endswith((".lock", ".unfinished", ".partial")) or ".unfinished" in path.name]


class Trials:
    """Faults to one kind of work, each in a folder of its own, compared with the undisturbed run."""

    def __init__(self, work: Work, home: Path, generator: random.Random) -> None:
        self.work, self.home, self.generator, self._number = work, home, generator, 0
        folder, temporary = self._places()
        began = time.perf_counter()
        said = end(*start(lambda: work.do(folder), temporary))
        self.seconds = time.perf_counter() - began
        if said != "done":
            raise SystemExit(f"{work.name}: the undisturbed run failed: {said}")
        self.expected = work.finished(folder)
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
            process, reading = start(lambda: self.work.do(folder), temporary)
            time.sleep(self.generator.uniform(0, self.seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
            said = end(process, reading)
            fault.cases += 1
            fault.struck += said is None
            if not gone(process):
                fault.wrong.append(f"{self.work.name}: a process is left after signal {number}")
            before = self._kept(folder, before, fault)
        self._again(folder, temporary, before, fault)

    def told(self, disturbed: Callable[[Path], None], fault: Fault, *, dies: bool = False) -> None:
        """Work that is disturbed and may say so (or dies of it), then the call without."""
        folder, temporary = self._places()
        process, reading = start(lambda: disturbed(folder), temporary)
        said = end(process, reading)
        fault.cases += 1
        fault.struck += said != "done"
        fault.told[_short(said)] += 1
        if (said is None and not dies) or (said or "").startswith("WRONG"):
            fault.wrong.append(f"{self.work.name}: {said}")
        if not gone(process):
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
        process, reading = start(lambda: self.work.do(folder), temporary)
        said = end(process, reading)
        if said != "done":
            fault.wrong.append(f"{self.work.name}: going on failed: {said}")
        if not gone(process):
            fault.wrong.append(f"{self.work.name}: a process is left")
        if self._kept(folder, before, fault).keys() != self.expected.keys():
            fault.wrong.append(f"{self.work.name}: after going on something is missing")
        fault.wrong.extend(f"{self.work.name}: left behind: {path}" for path in left(folder.parent))
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _short(said: str | None) -> str:
    """A message without its places and numbers, so that equal ones can be counted."""
    words = (said or "ended by a signal").split()
    return " ".join("…" if "/" in word or any(letter.isdigit() for letter in word) else word for word in words)[:140]


# ---------------------------------------------------------------------- disturbances
_NAMESPACE, _PRIVATE, _READ_ONLY, _REMOUNT = 0x00020000, 1 << 18 | 1 << 14, 1, 32


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


def may_mount(home: Path) -> bool:
    """Whether this process may make a file system of its own."""
    return end(*start(lambda: own_disk(home / "probe", 64), home)) == "done"


# ---------------------------------------------------------------------- all of it
def second_process(trials: Trials, fault: Fault) -> None:
    """Two processes in one folder: the second is refused, and the first ends as if it had been alone."""
    folder, temporary = trials._places()
    first = start(lambda: trials.work.do(folder), temporary)
    while not (folder / ".lock").exists() and living(first[0]):
        time.sleep(0.002)
    said = end(*start(lambda: trials.work.do(folder), temporary))
    fault.cases += 1
    fault.told[_short(said)] += 1
    fault.struck += said is not None and "Another" in said
    if said is None or not (said == "done" or ("T2Error" in said and "Another" in said)):
        fault.wrong.append(f"{trials.work.name}: the second process: {said}")
    if (alone := end(*first)) != "done":
        fault.wrong.append(f"{trials.work.name}: the first process: {alone}")
    trials._again(folder, temporary, trials._kept(folder, {}, fault), fault)


def all_faults(kills: int, home: Path, seed: int, chosen: Sequence[str], say: Callable[[str], None]) -> dict[str, Fault]:
    """Every fault to every kind of work."""
    generator, found = random.Random(seed), dict[str, Fault]()
    mounts = may_mount(home)
    with contextlib.ExitStack() as stack:
        works = [
            Work("train", train, of_training),
            Work("bench", bench, of_bench),
            Work("search", search, of_bench),
            Work("export", export, of_exports),
        ]
        if "push" in chosen:
            works.append(pushing(stack))
        for work in (work for work in works if work.name in chosen):
            trials = Trials(work, home, generator)
            say(f"{work.name}: {trials.seconds:.1f} s undisturbed")
            mine: dict[str, Fault] = {name: Fault() for name in ("killed", "terminated", "clock")}
            share = kills // len(chosen)
            while mine["killed"].cases < share:
                trials.struck_by([signal.SIGKILL] * min(4, share - mine["killed"].cases), mine["killed"])
            trials.struck_by([signal.SIGTERM] * 2, mine["terminated"])
            trials.told(with_a_clock_that_jumps(work, seed), mine["clock"])
            if work.name != "push":
                if mounts:
                    mine |= {"disk full": Fault(), "read-only": Fault(), "read-only cache": Fault()}
                    for _ in range(3):
                        trials.told(on_a_small_disk(work, generator.choice((4, 16, 64, 256)), False), mine["disk full"])
                    trials.told(on_a_small_disk(work, 64, True), mine["read-only"])
                    trials.told(without_a_cache(work), mine["read-only cache"])
                if work.name in ("train", "bench"):
                    mine["two processes"] = Fault()
                    second_process(trials, mine["two processes"])
            if work.name == "bench":
                mine["out of memory"] = Fault()
                trials.told(starved, mine["out of memory"])
            for name, fault in mine.items():
                found[f"{work.name}, {name}"] = fault
                messages = "; ".join(f"{text} ({count})" for text, count in fault.told.items())
                say(f"  {name}: {fault.cases} cases, {fault.struck} struck, {len(fault.wrong)} wrong {fault.wrong[:3]} {messages}")
    return found


def pushing(stack: contextlib.ExitStack) -> Work:
    """A push to a hub in this process: all of it is there, or nothing."""
    from huggingface_hub import constants

    from t2eval.expert.upload import pack, push
    from tests.fakes.hub import TOKEN, FakeHub

    hub = FakeHub()
    stack.callback(hub.close)
    os.environ["HF_TOKEN"] = TOKEN
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = hub.endpoint, False
    constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"

    def do(folder: Path) -> None:
        name = f"someone/{folder.parent.name}"
        push(pack(LIBRARY, name), name)

    def finished(folder: Path) -> dict[str, str]:
        name = f"models/someone/{folder.parent.name}"
        tree = hub.tree(name.removeprefix("models/")) if "main" in getattr(hub.repositories.get(name), "branches", {}) else {}
        own = folder.parent.name.encode()  # model cards name the repository
        return {path: _digest(content.replace(own, b"NAME")) for path, content in tree.items() if not path.startswith(".git")}

    return Work("push", do, finished)


def main() -> None:
    """Do all of it and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, shared among the kinds of work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="train,bench,search,export,push", help="kinds of work, joined by commas")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not survive a fork
    quiet_lm_eval()
    with tempfile.TemporaryDirectory(prefix="t2eval-faults-") as folder:
        home = Path(folder)
        warm = home / "warm"
        end(*start(lambda: None, home))
        bench(warm)  # what is imported late is imported before the forks
        found = all_faults(options.kills, home, options.seed, options.work.split(","), lambda line: print(line, flush=True))
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
