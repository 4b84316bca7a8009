"""Execution: cells run by the processes of an executor, each finished one a row; run again, it goes on where it stopped.

Only the parent writes `rows.jsonl`; a worker that dies costs the cell it was on (a failed row), and workers end with their parent.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from t2eval.bench import commits, rows
from t2eval.bench.config import BenchConfig, parse_config
from t2eval.bench.inputs import files_of, pinned_config
from t2eval.bench.manifest import checked
from t2eval.bench.manifest import write as write_manifest
from t2eval.bench.neighbours import Neighbours
from t2eval.bench.plan import Cell, Plan, make_plan
from t2eval.bench.rows import Row
from t2eval.bench.shards import parse_shard, shard_of
from t2eval.bench.training import LOG as TRAINING_LOG
from t2eval.bench.training import Job, settle, train_missing
from t2eval.bench.travel import CellSetup, here
from t2eval.errors import T2Error, UsageError
from t2eval.store.files import is_disk_full, write_bytes
from t2eval.store.lock import locked
from t2eval.workers.executor import Executor, Outcome, Request
from t2eval.workers.registry import check_executor, open_executor

LOG = "workers.log"


@dataclass(frozen=True)
class Progress:
    """A finished cell, or how far a resumed run already is (`row` None), or what is being trained (`note`)."""

    done: int
    total: int
    row: Row | None
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return self.note
        if self.row is None:
            return f"[{self.done}/{self.total}] already done" if self.done else f"{self.total} cells to run"
        row = self.row
        where = f"[{self.done}/{self.total}] {row.method} on {row.task}, seed {row.seed}"
        if row.status == "failed" or row.score is None:
            return f"{where}: FAILED: {row.error}"
        error = f" ± {row.stderr:.3f}" if row.stderr is not None else " ± N/A" if 1 in (row.n, row.clusters) else ""
        return f"{where}: {row.score:.3f}{error} (n={row.n}, {row.seconds:.1f} s)"


@dataclass(frozen=True)
class RunResult:
    """What a run left behind: all rows of the plan's cells, how many of them it skipped as done, and what it trained."""

    rows: tuple[Row, ...]
    skipped: int
    trained: tuple[Job, ...] = ()

    @property
    def failed(self) -> tuple[Row, ...]:
        """Cells that did not work."""
        return tuple(row for row in self.rows if row.status == "failed")

    @property
    def exit_code(self) -> int:
        """0, or 1 where a cell failed."""
        return 1 if self.failed else 0


class CellWorker(Protocol):
    """What runs cells in a worker process (`t2eval.bench.worker.Worker`)."""

    def __init__(self, config: BenchConfig, output: Path) -> None:
        """Nothing is loaded yet."""

    @staticmethod
    def tasks(config: BenchConfig) -> dict[str, str]:
        """Digests of the plan's tasks as they are now, taken before any worker is started."""

    def open(self) -> None:
        """Load what all cells share."""

    def run(self, cell: Cell) -> Row:
        """Evaluate one cell."""


WorkerFactory = type[CellWorker]


def _row(outcome: Outcome, output: Path) -> Row:
    """The row of a cell that was answered, or whose worker died over it. Files that came with it are written first.

    Raises:
        T2Error: the disk is full, or the worker cannot go on.
    """
    if outcome.error is not None:
        raise _readable(outcome.error, output)
    if outcome.death is None:
        row: Row
        row, files = outcome.value
        for name, content in files.items():
            write_bytes(output / name, content, remedy=rows.REMEDY)
        return row
    cell: Cell = outcome.item
    died = f"The worker process died (exit code {outcome.exit_code}; -9 is most often too little memory)."
    reason = died if outcome.lost is None else f"The cell could not be finished: {outcome.lost}."
    return Row(cell=cell.key, model=cell.model, method=cell.method, task=cell.task, seed=cell.seed, status="failed", error=reason)


def _readable(error: Exception, output: Path) -> T2Error:
    if isinstance(error, OSError) and is_disk_full(error):
        return rows.disk_error(output, error)
    return error if isinstance(error, T2Error) else T2Error(f"A worker failed: {error}")


def _rows(pool: Executor, plan: Plan, output: Path, pending: Sequence[Cell], factory: WorkerFactory) -> Generator[Row]:
    """Rows as they are finished.

    Raises:
        T2Error: no worker can be made ready, or the disk is full.
    """
    setup = CellSetup(factory, here(plan.config) if pool.elsewhere else plan.config, output)
    with contextlib.closing(pool.run(setup, pending, output / LOG, lambda cell: (cell.method, cell.seed))) as outcomes:
        try:
            for outcome in outcomes:
                yield _row(outcome, output)
        except OSError as error:
            raise _readable(error, output) from error


def _refuse_other_task(row: Row, tasks: Mapping[str, str]) -> None:
    """Refuse a row of a task that is another one where the cell ran: then this machine's manifest would not say what it is of."""
    made = row.hashes.get("task")
    if row.status == "ok" and made is not None and tasks.get(row.task, made) != made:
        raise T2Error(
            f"{row.cell} was made with another version of the task {row.task} than this machine's (YAML, Python or local data). "
            "Install the same t2eval and tasks where cells run."
        )


def _narrow(plan: Plan, limit: int | None, seeds: Sequence[int] | None) -> Plan:
    changes = {key: value for key, value in (("limit", limit), ("seeds", seeds)) if value is not None}
    if not changes:
        return plan
    narrowed = make_plan(parse_config({**plan.config.model_dump(), **changes}))
    return narrowed if plan.shard is None else shard_of(narrowed, parse_shard(plan.shard))


def run(
    plan: Plan,
    output: str | Path,
    executor: str = "local",
    workers: int | None = None,
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
    progress: Callable[[Progress], None] | None = None,
    factory: WorkerFactory | None = None,
    pool: Executor | None = None,
    request: Request | None = None,
) -> RunResult:
    """Train what a benchmark's `train:` section asks for and is missing, then run the cells that are not done yet.

    Args:
        plan: from `load_plan`.
        output: folder for `rows.jsonl`, `samples/` and `manifest.json`; one that a run of the same plan has begun is gone on with.
        executor: where cells run: `local` or `ray` (`workers.registry`).
        workers: processes, by default one, or as many as a cluster has room for; each loads the base model once, takes its share of the
            cores as threads (or what OMP_NUM_THREADS says), and has a GPU of its own where there are several and the device is `auto` or
            `cuda`.
        limit: test examples a task, instead of the file's.
        seeds: instead of the file's.
        progress: told each finished cell.
        factory: makes what runs cells, in the worker process (must be picklable); by default `t2eval.bench.worker.Worker`.
        pool: processes that go on living after the run, instead of `workers` new ones.
        request: what else the executor is asked for: a cluster's address, shares of its machines, retries.

    Returns:
        The rows of all of the plan's cells.

    Raises:
        UsageError: a wrong name or value, or a folder of another plan.
        T2Error: the base model cannot be loaded, the disk is full, or Ctrl-C; finished rows stay.
    """
    check_executor(executor)
    if workers is not None and workers < 1:
        raise UsageError(f"--workers must be at least 1, not {workers}.")
    plan, output = _narrow(plan, limit, seeds), Path(output)
    asked = replace(request or Request(), workers=workers, device=plan.config.device)
    started = time.perf_counter()
    try:
        with locked(output, "benchmark"):
            rows.repair(output)
            kept: AbstractContextManager[Executor] = contextlib.nullcontext(pool) if pool is not None else open_executor(executor, asked)
            with kept as processes:
                return _run_locked(plan, output, processes, progress, factory or _worker(), started)
    except OSError as error:
        raise rows.disk_error(output, error) from error


def _worker() -> WorkerFactory:
    """What evaluates. Imported where cells are run: it brings torch, which a plan and a reader of rows do without."""
    from t2eval.bench.worker import Worker

    return Worker


def _run_locked(
    plan: Plan, output: Path, pool: Executor, progress: Callable[[Progress], None] | None, factory: WorkerFactory, started: float
) -> RunResult:
    plan = replace(plan, config=pinned_config(plan.config))
    settled = settle(plan, output)
    tasks = factory.tasks(plan.config)
    before = rows.read(output)
    finished = {row.cell for row in before if row.status == "ok"}
    pending = [cell for cell in plan.cells if cell.key not in finished]
    done, total = len(plan.cells) - len(pending), len(plan.cells)
    skipped, grows = done, bool(pending and finished)
    report = progress or (lambda _: None)

    def say(line: str) -> None:
        report(Progress(done, total, None, time.perf_counter() - started, line))

    checked(output, plan, files_of(settled.config), tasks, grows=grows)  # before anything is trained in a folder of another plan
    neighbours = Neighbours(output, before)
    trained = train_missing(settled, pending, pool, say, output / TRAINING_LOG)
    manifest = checked(output, plan, files_of(settled.config), tasks, grows=grows)
    report(Progress(done, total, None, time.perf_counter() - started))
    written = not plan.cells  # a shard without cells says so by its manifest: else it would be missed
    if written:
        write_manifest(output, manifest)
    try:
        with contextlib.closing(_rows(pool, settled, output, pending, factory)) as found:
            for row in found:
                # Written with the first row: a plan with a wrong name in it leaves no trace that would be in the way of the right one.
                if not written:
                    write_manifest(output, manifest)
                    commits.note(output)
                    written = True
                _refuse_other_task(row, tasks)
                neighbours.admit(row)
                rows.append(output, row)
                done += 1
                report(Progress(done, total, row, time.perf_counter() - started))
    except KeyboardInterrupt:
        raise T2Error(f"Interrupted: {done} of {total} cells are done. Run the same command again: it continues.") from None
    cells = {cell.key for cell in plan.cells}
    return RunResult(tuple(row for row in rows.read(output) if row.cell in cells), skipped, trained)
