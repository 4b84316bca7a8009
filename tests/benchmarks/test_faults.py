"""A sample of the faults, on a benchmark that is answered by a formula; and the proof that what goes wrong is seen."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path

import disturbances
import faults
import pytest
from fault_work import Here, Work, of_bench
from faults import Fault, Trials

from t2eval.bench.config import BenchConfig
from t2eval.bench.execute import run
from t2eval.bench.plan import make_plan
from tests.bench.fakes import FakeWorker


def _bench(folder: Path) -> None:
    config = BenchConfig(model="fake", methods=("base", "prompt", "cls"), tasks=("t1", "t2"), seeds=(0, 1), experts="/nowhere/{seed}")
    run(make_plan(config), folder, pool=Here(), factory=FakeWorker)


def _trials(work: Work, home: Path) -> Trials:
    return Trials(work, home, random.Random(0))


def test_a_benchmark_that_is_killed_or_meets_a_jumping_clock_goes_on(tmp_path: Path) -> None:
    work = Work("bench", _bench, of_bench)
    trials, fault = _trials(work, tmp_path), Fault()
    for number in (1, 2, 3, 8):
        trials.told(disturbances.killed_at(work, number), fault, dies=True)
    assert fault.struck == 4
    for number in (signal.SIGKILL, signal.SIGTERM):
        trials.struck_by([number] * 2, fault)
    trials.told(disturbances.with_a_clock_that_jumps(work, 1), fault)
    assert fault.wrong == [] and fault.cases == 9
    assert len(trials.expected) == 20  # ten cells, each with its samples


def test_a_full_or_read_only_disk_is_one_message(tmp_path: Path) -> None:
    if not faults.may_mount(tmp_path):  # then the tests of `store` and `bench` stand alone: they refuse single writes
        return
    work = Work("bench", _bench, of_bench)
    trials, fault = _trials(work, tmp_path), Fault()
    trials.told(disturbances.on_a_small_disk(work, 16, False), fault)
    trials.told(disturbances.on_a_small_disk(work, 64, True), fault)
    assert fault.wrong == [] and fault.struck == 2
    assert all("Could not write" in text for text in fault.told) and len(fault.told) == 2


def test_a_pipe_that_nobody_reads_ends_a_command_and_loses_nothing(tmp_path: Path) -> None:
    def commands(folder: Path) -> list[list[str]]:
        return [["tasks", "list"], ["bench", str(tmp_path / "none.yaml"), "--output", str(folder)]]

    trials, fault = _trials(Work("bench", _bench, of_bench, commands), tmp_path), Fault()
    for after in (0, 1):
        trials.told(disturbances.into_a_closed_pipe(trials.work, after), fault)
    assert fault.wrong == [] and fault.struck == 2


def _careless(folder: Path) -> None:
    """Writes half of a file, waits, and writes the other half; leaves a process and an unfinished file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".a.unfinished").touch()
    tempfile.mkstemp()
    if os.fork() == 0:
        os.setsid()
        time.sleep(20)
        os._exit(0)
    with (folder / "a").open("w") as file:
        for half in ("one", "two"):
            file.write(half)
            file.flush()
            time.sleep(0.7)


def test_what_goes_wrong_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(before: set[int]) -> bool:
        left = set(faults.below(os.getpid())) - before
        for process in left:
            os.kill(process, signal.SIGKILL)
        return not left

    monkeypatch.setattr(faults, "gone", gone)

    def finished(folder: Path) -> dict[str, str]:
        return {"a": (folder / "a").read_text()} if (folder / "a").exists() else {}

    trials, fault = _trials(Work("careless", _careless, finished), tmp_path), Fault()

    def half_done(low: float, high: float) -> float:
        while not (tmp_path / "careless-3" / "out" / "a").exists():
            time.sleep(0.01)
        return 0.0

    monkeypatch.setattr(trials.generator, "uniform", half_done)
    trials.struck_by([signal.SIGKILL], fault)
    said = " ".join(fault.wrong)
    assert (
        "a process is left" in said and "another than undisturbed" in said and "left behind" in said and "a temporary file is left" in said
    )

    def breaks(folder: Path) -> None:
        raise KeyError("x")

    broken = Fault()
    trials.told(breaks, broken)
    assert broken.wrong[0].startswith("careless: WRONG KeyError")
