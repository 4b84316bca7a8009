"""What a benchmark of many cells, and a library of many experts, take of this machine. No model answers anything: cells are drawn.

    python benchmarks/at_scale.py cells [--tasks 100] [--seeds 11] [--examples 20]     # 10 methods: about 10,000 cells
    python benchmarks/at_scale.py experts [--count 1000]

`cells` runs a benchmark with the scheduler, rows and samples of any other, then the commands that read them, each in a process of its
own; `experts` makes experts of the embedded base with drawn z. Seconds are a CPU's, of one run; memory is a process's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from t2eval.bench.config import BenchConfig, parse_config
from t2eval.bench.execute import run
from t2eval.bench.plan import Cell, make_plan
from t2eval.bench.rows import Row, Sample, write_samples
from t2eval.stats.means import mean_stderr

METHODS = ("base", "expert", "prompt", "cls", "fewshot", "lora", "ia3", "dora", "vera", "tinylora")
MIB = 1 << 20


class Drawn:
    """Answers a cell by drawing right and wrong; the better, the later its method stands in the list."""

    def __init__(self, config: BenchConfig, output: Path) -> None:
        self.examples, self.output = config.limit or 1, output

    @staticmethod
    def tasks(config: BenchConfig) -> dict[str, str]:
        """A digest a task."""
        return {task: task for task in config.tasks}

    def open(self) -> None:
        """Nothing to load."""

    def run(self, cell: Cell) -> Row:
        """One cell's row, its examples written."""
        chance = 0.4 + 0.03 * METHODS.index(cell.method)
        drawn = np.random.default_rng(abs(hash((cell.task, cell.seed, cell.method)))).random(self.examples) < chance
        samples = [
            Sample(doc_id=i, doc_hash=f"{cell.task}-{i}", score=float(right), response=f"the answer is {i}")
            for i, right in enumerate(drawn)
        ]
        score, stderr = mean_stderr([float(right) for right in drawn])
        return Row(
            cell=cell.key,
            model=cell.model,
            method=cell.method,
            task=cell.task,
            seed=cell.seed,
            status="ok",
            metric="acc",
            score=score,
            stderr=stderr,
            n=self.examples,
            seconds=1.0,
            samples=write_samples(self.output, cell.key, samples),
            versions={"t2eval": "0"},
            hashes={"task": cell.task, "prompts": cell.task},
        )


def command(*words: str) -> dict[str, Any]:
    """Seconds and peak memory of a `t2` command in a process of its own."""
    root = Path(__file__).resolve().parents[1]
    null = os.open(os.devnull, os.O_WRONLY)
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, str(root / "cli.py"), *words],
        {**os.environ, "PYTHONPATH": str(root)},
        file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)],
    )
    _, status, used = os.wait4(child, 0)
    os.close(null)
    assert os.waitstatus_to_exitcode(status) == 0, words
    return {"seconds": round(used.ru_utime + used.ru_stime, 1), "MiB": round(used.ru_maxrss * 1024 / MIB)}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the CPU's seconds that it took, those of its child processes too."""
    began = os.times()
    result = work()
    return result, round(sum(os.times()[:4]) - sum(began[:4]), 2)


def cells(tasks: int, seeds: int, examples: int) -> dict[str, Any]:
    """A benchmark of so many cells, and what reads its rows."""
    names = [f"task_{number}" for number in range(tasks)]
    config = parse_config({"methods": list(METHODS), "tasks": names, "seeds": list(range(seeds)), "limit": examples})
    with tempfile.TemporaryDirectory(prefix="t2eval-scale-") as scratch:
        output = Path(scratch, "runs")
        plan, planned = timed(lambda: make_plan(config))
        _, ran = timed(lambda: run(plan, output, workers=1, factory=Drawn))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
        _, again = timed(lambda: run(plan, output, workers=1, factory=Drawn))
        page = Path(scratch, "page.html")
        return {
            "cells": len(plan.cells),
            "examples": len(plan.cells) * examples,
            "plan, seconds": planned,
            "run, seconds": ran,
            "run, MiB": round(own),
            "run again with nothing to do, seconds": again,
            "rows, MiB": round((output / "rows.jsonl").stat().st_size / MIB, 1),
            "manifest, MiB": round((output / "manifest.json").stat().st_size / MIB, 2),
            "t2 leaderboard": command("leaderboard", str(output)),
            "t2 leaderboard --html": command("leaderboard", str(output), "--html", str(page)),
            "page, MiB": round(page.stat().st_size / MIB, 1),
        }


def experts(count: int) -> dict[str, Any]:
    """A library of so many experts of the embedded base."""
    import torch

    from t2eval import attach, load_base
    from t2eval.expert.expert import Expert, mix
    from t2eval.expert.library import load_library

    model, _ = load_base()
    adapted = attach(model)
    draw = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="t2eval-scale-") as scratch:
        library = Path(scratch, "library")

        def write() -> None:
            for number in range(count):
                z = {path: 1 + 0.1 * torch.randn(p.shape, generator=draw) for path, p in adapted.trainable().items()}
                name, said = f"skill-{number}", f"Questions of kind {number}."
                expert = Expert.from_adapted(adapted, z, name=name, label=name, description=said, base_id="embedded")
                expert.save(library / f"skill-{number:04}")

        _, written = timed(write)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found, loaded = timed(lambda: load_library(library))
        held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MIB
        mixed, mixing = timed(lambda: mix(found, [1 / count] * count))
        _, merging = timed(lambda: adapted.merge(mixed))
        adapted.unmerge()
        size = sum(file.stat().st_size for file in library.rglob("*") if file.is_file())
        return {
            "experts": len(found),
            "on disk, MiB": round(size / MIB, 1),
            "write, seconds": written,
            "load, seconds": loaded,
            "held, MiB": round(held, 1),
            "mix all, seconds": mixing,
            "merge, seconds": merging,
            "t2 expert list": command("expert", "list", str(library)),
        }


def main() -> None:
    """The commands above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    many = what.add_parser("cells")
    many.add_argument("--tasks", type=int, default=100)
    many.add_argument("--seeds", type=int, default=11)
    many.add_argument("--examples", type=int, default=20)
    what.add_parser("experts").add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    found = experts(arguments.count) if arguments.what == "experts" else cells(arguments.tasks, arguments.seeds, arguments.examples)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
