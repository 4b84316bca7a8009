"""Execution: cells run by local worker processes, each finished one a row; run again, it goes on where it stopped.

Only the parent writes `rows.jsonl`; a worker that dies costs the cell it was on (a failed row), and workers end with their parent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from t2eval.bench import rows
from t2eval.bench.plan import BASELINES, EXPERT_METHODS, Cell, Plan, make_plan, parse_config
from t2eval.bench.processes import end_with_parent, speak_into, worker_environment
from t2eval.bench.rows import Row
from t2eval.bench.training import LOG as TRAINING_LOG
from t2eval.bench.training import Job, settle, train_missing
from t2eval.bench.worker import Worker, file_hash, versions
from t2eval.errors import T2Error, UsageError, unknown

MANIFEST = "manifest.json"
LOG = "workers.log"
EXECUTORS = ("local",)
_GROWS = ("name", "methods", "tasks", "seeds", "assume")


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
        error = "" if row.stderr is None else f" ± {row.stderr:.3f}"
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

    def open(self) -> None:
        """Load what all cells share."""

    def run(self, cell: Cell) -> Row:
        """Evaluate one cell."""


WorkerFactory = Callable[[Any, Path], CellWorker]


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep a second run out of the same folder; the lock ends with the process."""
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise T2Error(f"Another benchmark is running in {output}. Wait for it, or choose another --output.") from error
        yield


def _input_hashes(plan: Plan) -> dict[str, str]:
    """Hashes of the expert and adapter files that lie where the plan will look."""
    config = plan.config
    found: dict[str, str] = {}
    for seed in config.seeds:
        files: list[Path] = []
        if EXPERT_METHODS & set(config.methods):
            files += [file for folder in config.expert_folders(seed) if (file := folder / "expert.safetensors").is_file()]
        for method in set(BASELINES) & set(config.methods):
            adapters = (folder / "adapter_model.safetensors" for folder in config.adapters(method, seed))
            files += [file for file in adapters if file.is_file()]
        found |= {str(file): file_hash(file) for file in sorted(files)}
    return found


def _check_manifest(output: Path, plan: Plan, inputs: dict[str, str]) -> dict[str, Any]:
    """The manifest that this run will write, after a check that the folder's own is of the same plan.

    Methods, tasks and seeds may be added to; what changes the score of a cell may not.

    Raises:
        UsageError: the folder holds another plan, or experts have changed under it.
    """
    settings = plan.config.model_dump(mode="json")
    cells = [cell.key for cell in plan.cells]
    path = output / MANIFEST
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            before, old_inputs, old_cells = old["config"], old["inputs"], old["cells"]
        except (ValueError, KeyError, TypeError) as error:
            raise T2Error(f"{path} is damaged ({error}). Choose another --output.") from error
        changed = [key for key in settings if key not in _GROWS and before.get(key) != settings[key]]
        if changed:
            details = "; ".join(f"{key}: {before.get(key)!r} there, {settings[key]!r} now" for key in changed)
            raise UsageError(f"{output} holds another plan ({details}). Choose another --output, or give the same settings.")
        moved = [file for file, value in inputs.items() if old_inputs.get(file, value) != value]
        if moved:
            raise UsageError(f"{moved[0]} has changed since {output} was begun: its rows would mix two experts. Choose another --output.")
        cells = list(dict.fromkeys([*old_cells, *cells]))
        inputs = {**old_inputs, **inputs}
    return {"format_version": 1, "name": plan.config.name, "config": settings, "cells": cells, "inputs": inputs, "versions": versions()}


def _serve(factory: WorkerFactory, config: Any, output: Path, threads: int, pipe: Connection) -> None:
    """A worker process: open, then one row per cell until told to stop."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        speak_into(output / LOG)
        worker = factory(config, output)
        worker.open()
        if isinstance(worker, Worker):
            import torch

            torch.set_num_threads(threads)
        pipe.send(("ready", None))
        while (cell := pipe.recv()) is not None:
            pipe.send(("row", worker.run(cell)))
    except EOFError:
        return
    except T2Error as error:
        pipe.send(("fatal", error))
    except OSError as error:
        pipe.send(("disk" if rows.is_disk_full(error) else "fatal", error))
    except Exception as error:  # noqa: BLE001 - the parent prints it; a worker has no terminal of its own
        pipe.send(("fatal", T2Error(f"A worker could not start: {type(error).__name__}: {error}")))


class _Pool:
    """Worker processes, the cells they are on, and the cells that wait."""

    def __init__(self, plan: Plan, output: Path, pending: Sequence[Cell], workers: int, factory: WorkerFactory) -> None:
        self._arguments = (factory, plan.config, output)
        self._pending = list(pending)
        self._threads = max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1
        self._size = min(workers, len(self._pending))
        self._processes: dict[Connection, Any] = {}
        self._busy: dict[Connection, Cell] = {}
        self._ready: set[Connection] = set()
        self._groups: dict[Connection, tuple[str, int]] = {}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(*self._arguments, self._threads, theirs), daemon=True)
        with worker_environment(self._threads):
            process.start()
        theirs.close()
        self._processes[ours] = process

    def _assign(self, pipe: Connection) -> None:
        """The next cell, of the method and seed that the worker has set up if there is one."""
        if not self._pending:
            with contextlib.suppress(OSError):
                pipe.send(None)
            return
        group = self._groups.get(pipe)
        cell = next((cell for cell in self._pending if (cell.method, cell.seed) == group), self._pending[0])
        self._pending.remove(cell)
        self._busy[pipe], self._groups[pipe] = cell, (cell.method, cell.seed)
        # A worker that has died meanwhile is noticed on the next receive.
        with contextlib.suppress(OSError):
            pipe.send(cell)

    def _died(self, pipe: Connection, output: Path) -> Row | None:
        """Account for a worker that is gone: its cell's failed row, and another worker if cells wait."""
        process = self._processes.pop(pipe)
        process.join()
        cell = self._busy.pop(pipe, None)
        if pipe not in self._ready:
            raise T2Error(f"A worker ended while it was loading the model (exit code {process.exitcode}). {output / LOG} may say why.")
        if cell is None:
            return None
        if self._pending:
            self._start()
        reason = f"The worker process died (exit code {process.exitcode}; -9 is most often too little memory)."
        return Row(cell=cell.key, model=cell.model, method=cell.method, task=cell.task, seed=cell.seed, status="failed", error=reason)

    def _received(self, pipe: Connection, output: Path) -> Row | None:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            return self._died(pipe, output)
        if kind == "disk":
            raise rows.disk_error(output, value)
        if kind == "fatal":
            raise value if isinstance(value, T2Error) else T2Error(f"A worker failed: {value}")
        if kind == "ready":
            self._ready.add(pipe)
        row = value if kind == "row" else None
        self._busy.pop(pipe, None)
        return row

    def __iter__(self) -> Iterator[Row]:
        """Rows as they are finished.

        Raises:
            T2Error: no worker can start, or the disk is full.
        """
        for _ in range(self._size):
            self._start()
        output = self._arguments[2]
        while self._processes:
            for pipe in wait(list(self._processes)):
                assert isinstance(pipe, Connection)
                row = self._received(pipe, output)
                if row is not None:
                    yield row
                if pipe in self._processes and pipe not in self._busy:
                    self._assign(pipe)

    def close(self) -> None:
        """Stop all workers."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _narrow(plan: Plan, limit: int | None, seeds: Sequence[int] | None) -> Plan:
    changes = {key: value for key, value in (("limit", limit), ("seeds", seeds)) if value is not None}
    if not changes:
        return plan
    return make_plan(parse_config({**plan.config.model_dump(), **changes}))


def run(
    plan: Plan,
    output: str | Path,
    executor: str = "local",
    workers: int = 1,
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
    progress: Callable[[Progress], None] | None = None,
    factory: WorkerFactory = Worker,
) -> RunResult:
    """Train what a benchmark's `train:` section asks for and is missing, then run the cells that are not done yet.

    Args:
        plan: from `load_plan`.
        output: folder for `rows.jsonl`, `samples/` and `manifest.json`; one that a run of the same plan has begun is gone on with.
        executor: `local`.
        workers: processes; each loads the base model once and takes cores/workers threads.
        limit: test examples a task, instead of the file's.
        seeds: instead of the file's.
        progress: told each finished cell.
        factory: makes what runs cells, in the worker process (must be picklable).

    Returns:
        The rows of all of the plan's cells.

    Raises:
        UsageError: a wrong name or value, or a folder of another plan.
        T2Error: the base model cannot be loaded, the disk is full, or Ctrl-C; finished rows stay.
    """
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, not {workers}.")
    plan, output = _narrow(plan, limit, seeds), Path(output)
    started = time.perf_counter()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _locked(output):
            rows.repair(output)
            return _run_locked(plan, output, workers, progress, factory, started)
    except OSError as error:
        raise rows.disk_error(output, error) from error


def _run_locked(
    plan: Plan, output: Path, workers: int, progress: Callable[[Progress], None] | None, factory: WorkerFactory, started: float
) -> RunResult:
    here = settle(plan, output)
    _check_manifest(output, plan, _input_hashes(here))  # before anything is trained in a folder of another plan
    finished = {row.cell for row in rows.read(output) if row.status == "ok"}
    pending = [cell for cell in plan.cells if cell.key not in finished]
    done, total = len(plan.cells) - len(pending), len(plan.cells)
    skipped = done
    report = progress or (lambda _: None)

    def say(line: str) -> None:
        report(Progress(done, total, None, time.perf_counter() - started, line))

    trained = train_missing(here, pending, workers, say, output / TRAINING_LOG)
    manifest = _check_manifest(output, plan, _input_hashes(here))
    report(Progress(done, total, None, time.perf_counter() - started))
    pool = _Pool(here, output, pending, workers, factory)
    written = False
    try:
        for row in pool:
            # Written with the first row: a plan with a wrong name in it leaves no trace that would be in the way of the right one.
            if not written:
                rows.write_atomically(output / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
                written = True
            rows.append(output, row)
            done += 1
            report(Progress(done, total, row, time.perf_counter() - started))
    except KeyboardInterrupt:
        raise T2Error(f"Interrupted: {done} of {total} cells are done. Run the same command again: it continues.") from None
    finally:
        pool.close()
    cells = {cell.key for cell in plan.cells}
    return RunResult(tuple(row for row in rows.read(output) if row.cell in cells), skipped, trained)
