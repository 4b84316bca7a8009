"""A long run: does anything grow? A benchmark is run over and over by the same processes, and they are measured after each round.

A round is `t2eval.bench.execute.run` of every method of the embedded base on its math and code tasks, in a new folder, by a pool that lives
for the whole time: each round loads the base anew, so what the last one held must have been freed. After each round the parent and its
children are measured while they are idle: resident memory, open descriptors, threads, how many processes there are, and the files and bytes
in a temporary folder of their own. Each figure gets a least-squares slope over time, with its 95% interval, from the rounds after a warm-up
(the first fifth). The processor seconds of a round show whether anything slows down (those
of the clock tell of the machine's other work, too).

    python benchmarks/long_run.py --minutes 60 --json

The exit code is 1 where something grows: memory by more than `--memory` percent an hour (the lower end of the interval), or a count that
stays above what it was after the warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2eval.bench.execute import run
from t2eval.bench.shipped import plan_in
from t2eval.paths import experts_dir
from t2eval.store.versions import versions
from t2eval.workers.pool import Pool

METHODS = ("base", "expert", "prompt", "cls", "fewshot", "lora", "ia3", "dora")
TASKS = ("embedded_math_unseen", "embedded_code_unseen")
SEARCH = {"shots": 4, "population": 4, "iterations": 2}  # a short one, so that a round is short
COUNTS = ("descriptors", "threads", "processes", "temporary_files")


@dataclass(frozen=True)
class Measured:
    """Everything after one round: bytes, and counts over this process and all below it."""

    hours: float
    round_seconds: float
    processor_seconds: float
    parent_bytes: int
    children_bytes: int
    descriptors: int
    threads: int
    processes: int
    temporary_files: int
    temporary_bytes: int


def descendants(process: int) -> list[int]:
    """The ids of a process's children, and theirs, as /proc has them now."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, thread.read_text().split()):
                found += [child, *descendants(child)]
    return found


def measure(began: float, seconds: float, before: float, temporary: Path) -> Measured:
    """Look at this process, those below it, and its temporary files.

    Args:
        began: of the first round. seconds: of this one.
        before: `processor()` before it.
        temporary: the folder of temporary files.
    """
    children = descendants(os.getpid())
    files = [file for file in temporary.rglob("*") if file.is_file()]
    everyone = [os.getpid(), *children]
    return Measured(
        hours=(time.perf_counter() - began) / 3600,
        round_seconds=seconds,
        processor_seconds=processor() - before,
        parent_bytes=_resident(os.getpid()),
        children_bytes=sum(map(_resident, children)),
        descriptors=sum(len(os.listdir(f"/proc/{process}/fd")) for process in everyone),
        threads=sum(len(os.listdir(f"/proc/{process}/task")) for process in everyone),
        processes=len(everyone),
        temporary_files=len(files),
        temporary_bytes=sum(file.stat().st_size for file in files),
    )


def processor() -> float:
    """Seconds of processor time of this process and those below it, up to now; of those that have ended, too."""
    total = 0.0
    for process in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):
            times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
            total += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return total


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Slope:
    """A least-squares line through a figure: its mean, its rise an hour, and half of the 95% interval of that."""

    mean: float
    an_hour: float
    half: float

    @property
    def lower(self) -> float:
        """The lower end of the interval."""
        return self.an_hour - self.half


def slope(hours: Sequence[float], values: Sequence[float]) -> Slope:
    """The line through (hours, values); three points or more."""
    from scipy import stats

    if len(set(values)) == 1:
        return Slope(values[0], 0.0, 0.0)
    line = stats.linregress(hours, values)
    return Slope(math.fsum(values) / len(values), float(line.slope), float(line.stderr * stats.t.ppf(0.975, len(values) - 2)))


def judged(samples: Sequence[Measured], percent: float) -> tuple[dict[str, Slope], list[str]]:
    """The slopes after the warm-up, and what grows.

    Args:
        samples: in order, 10 at least.
        percent: of the mean an hour, by which memory may grow.
    """
    rest = samples[len(samples) // 5 :]
    hours = [sample.hours for sample in rest]
    names = [name for name in asdict(rest[0]) if name != "hours"]
    found = {name: slope(hours, [float(getattr(sample, name)) for sample in rest]) for name in names}
    grows = [name for name in ("parent_bytes", "children_bytes") if found[name].lower > found[name].mean * percent / 100]
    half = rest[len(rest) // 2 :]
    grows += [name for name in COUNTS if min(getattr(sample, name) for sample in half) > getattr(rest[0], name)]
    return found, grows


def rounds(minutes: float, limit: int, home: Path, temporary: Path) -> list[Measured]:
    """Run rounds until the time is over, and measure after each."""
    began, samples = time.perf_counter(), list[Measured]()
    plan = plan_in(experts_dir(), methods=list(METHODS), tasks=list(TASKS), seeds=[0], limit=limit, model_args={"fewshot": SEARCH})
    with Pool(1) as pool:
        while (since := time.perf_counter()) - began < minutes * 60 or len(samples) < 10:
            before = processor()
            result = run(plan, home / "round", pool=pool)
            if result.failed:
                raise SystemExit(f"A cell failed: {result.failed[0].error}")
            shutil.rmtree(home / "round")
            samples.append(measure(began, time.perf_counter() - since, before, temporary))
            print(json.dumps(asdict(samples[-1])), flush=True)
    return samples


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--limit", type=int, default=8, help="test examples a cell")
    parser.add_argument("--memory", type=float, default=2.0, help="percent an hour by which memory may grow")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="t2eval-long-run-") as folder:
        home, temporary = Path(folder), Path(folder) / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        samples = rounds(options.minutes, options.limit, home, temporary)
    found, grows = judged(samples, options.memory)
    cells = len(METHODS) * len(TASKS)
    print(f"{len(samples)} rounds of {cells} cells in {samples[-1].hours * 60:.0f} minutes, the first {len(samples) // 5} as a warm-up")
    for name, line in found.items():
        scale, unit = (2**20, " MiB") if name.endswith("bytes") else (1, "")
        print(f"{name:>16}: {line.mean / scale:.1f}{unit}, {line.an_hour / scale:+.2f} ± {line.half / scale:.2f}{unit} an hour")
    print(f"grows: {', '.join(grows) or 'nothing'}")
    if options.json:
        record: dict[str, Any] = {
            "minutes": round(samples[-1].hours * 60, 1),
            "rounds": len(samples),
            "cells": len(samples) * cells,
            "slopes": {name: asdict(line) for name, line in found.items()},
            "grows": grows,
            "machine": platform.processor() or platform.machine(),
            "versions": versions(("t2eval", "torch", "transformers", "lm_eval", "peft")),
        }
        print(json.dumps(record))
    sys.exit(1 if grows else 0)


if __name__ == "__main__":
    main()
