"""Workers that need no model: they answer from a formula, so that killed and undisturbed runs can be compared."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from t2eval.bench.config import BenchConfig
from t2eval.bench.plan import Cell
from t2eval.bench.rows import Row, Sample, write_samples
from t2eval.bench.training import Job
from t2eval.bench.travel import TrainSetup
from t2eval.errors import UsageError
from t2eval.stats.means import mean_stderr
from t2eval.workers.cargo import gathered

EXAMPLES = 40
SKILL = {"base": 40, "prompt": 60, "cls": 75, "fewshot": 90}


def number(*parts: object) -> int:
    return int(hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:8], 16)


def fake_row(output: Path, cell: Cell, limit: int | None = None) -> Row:
    """A row whose scores depend on the cell alone; a method solves the examples whose difficulty is below its skill."""
    n = limit or EXAMPLES
    skill = SKILL.get(cell.method, 50) + number(cell.key) % 5
    samples = [
        Sample(doc_id=i, doc_hash=f"{cell.task}-{i}", score=float(number(cell.task, i) % 100 < skill), response=f"answer {i}")
        for i in range(n)
    ]
    score, stderr = mean_stderr([sample.score or 0.0 for sample in samples])
    return Row(
        cell=cell.key, model=cell.model, method=cell.method, task=cell.task, seed=cell.seed, status="ok", metric="acc",
        score=score, stderr=stderr, n=n, seconds=time.perf_counter() % 1, trainable_parameters=7, peak_memory_bytes=1,
        samples=write_samples(output, cell.key, samples),
    )  # fmt: skip


class FakeWorker:
    """Solves cells at once; `model_args` of the base steer its misbehaviour."""

    def __init__(self, config: BenchConfig, output: Path) -> None:
        self.config, self.output = config, output
        self.steer = config.model_args.get("base", {})

    @staticmethod
    def tasks(config: BenchConfig) -> dict[str, str]:
        """Digests that a test gives."""
        file = config.model_args.get("base", {}).get("digests")
        return json.loads(Path(file).read_text()) if file else {}

    def open(self) -> None:
        if self.steer.get("refuse"):
            raise UsageError("Unknown task 'nonsense'.")
        if "meet" in self.steer:
            Path(self.steer["meet"], str(os.getpid())).touch()

    def run(self, cell: Cell) -> Row:
        while "meet" in self.steer and len(list(Path(self.steer["meet"]).iterdir())) < 2:
            time.sleep(0.02)  # no cell ends before two processes are ready
        time.sleep(self.steer.get("delay", 0))
        with (self.output / "calls.txt").open("a") as file:
            file.write(cell.key + "\n")
        trouble = Path(str(self.steer.get("trouble", "/nonexistent")))
        if trouble.exists() and cell.task == "t2" and cell.method == "cls":
            kind = trouble.read_text()
            if kind == "die":
                os._exit(9)
            if kind == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            identity = {"cell": cell.key, "model": cell.model, "method": cell.method, "task": cell.task, "seed": cell.seed}
            return Row(**identity, status="failed", error="KeyError: broken")
        row = fake_row(self.output, cell, self.config.limit)
        return row.model_copy(update={"hashes": {"prompts": cell.key}}) if self.steer.get("prompts") == "cell" else row


def write_record(job):
    score = {"score": 0.5, "stderr": 0.01, "n": 4}
    record = {"seconds": 1.0, "scores": {"before": {"validation": score}, "after": {"validation": score}}}
    job.output.mkdir(parents=True)
    (job.output / "training.json").write_text(json.dumps(record))


def quick():
    """Stands for `training._trainer`: makes a process ready for runs that take no time."""

    def trained(job):
        if job.name == "broken":
            raise UsageError("no such task")
        if job.name == "killed":
            os._exit(9)
        write_record(job)
        (job.output / "pid").write_text(str(os.getpid()))

    return trained


class QuickElsewhere(TrainSetup):
    """Stands for `travel.TrainSetup`: runs that take no time on another machine, but for one that takes its process along."""

    def __call__(self):
        def trained(job):
            if job.name == "killed":
                os._exit(9)
            there = Job(job.name, job.config.model_copy(update={"output": self.scratch / job.name}))
            write_record(there)
            return gathered(there.output)

        return trained


class Unreadable(Exception):
    """Cannot be read by another process."""

    def __init__(self, one, two):
        super().__init__(one)


class Steered:
    """Makes a pool's process ready to do what the items say; every setup counts its items from one."""

    def __init__(self, mode="fine"):
        self.mode = mode

    def __call__(self):
        if self.mode == "refuse":
            raise UsageError("No such base.")
        if self.mode == "die":
            os._exit(7)
        answered = []

        def answer(item):
            answered.append(item)
            print("printed", item, flush=True)
            match item:
                case "die":
                    os._exit(9)
                case "unreadable":
                    raise Unreadable("odd", 1)
                case "full":
                    raise OSError(errno.ENOSPC, "No space left on device")
                case "sleep":
                    time.sleep(60)
                case "wait":
                    time.sleep(0.2)
                case "environment":
                    time.sleep(0.2)
                    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"]
            return os.getpid(), len(answered)

        return answer


if __name__ == "__main__":
    from t2eval.bench.execute import run
    from t2eval.bench.plan import load_plan

    result = run(load_plan(sys.argv[1]), sys.argv[2], workers=int(sys.argv[3]), factory=FakeWorker, executor=[*sys.argv, "local"][4])
    sys.exit(result.exit_code)
