"""Pool: worker processes that answer the items of one run after the other, and live until the pool is closed.

A process takes seconds to start (torch, lm-eval, the index of tasks), longer than many a study. Only what is imported survives a run: each
run makes the processes ready anew, so nothing of one is left for the next.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error, UsageError
from t2eval.workers.executor import Answer, Outcome, Request, portable_error
from t2eval.workers.processes import end_with_parent, gpus_of, speak_into, threads_each, worker_environment

_PATIENCE = 5.0  # seconds until a process that should end is ended by force


def _serve(pipe: Connection) -> None:
    """A worker process: make ready and answer as it is told, until the pipe is closed."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    answer: Answer | None = None
    while True:
        try:
            order, content = pipe.recv()
            if order == "ready":
                answer = None  # what the last run held is given back before the next one loads its own
                setup, log = content
                speak_into(log)
                answer = setup()
                pipe.send(("ready", None))
            else:
                assert answer is not None
                pipe.send(("answered", answer(content)))
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - the parent deals with it; a worker has no terminal of its own
            pipe.send(("error", portable_error(error)))


class Pool:
    """Worker processes, started when they are first needed.

    Args:
        workers: how many, at most.
        gpus: as CUDA_VISIBLE_DEVICES names them. Each process sees one of them alone; where there are more processes than GPUs, several
            share one. Empty: every process sees what this one sees.

    Examples:
        >>> with Pool(2) as pool:
        ...     first = run(plan, "runs/first", pool=pool)
        ...     second = run(other, "runs/second", pool=pool)
    """

    elsewhere = False

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self.workers, self.threads, self.gpus = workers, threads_each(workers), tuple(gpus)
        self._processes: dict[Connection, Any] = {}
        self._gpu_of: dict[Connection, str] = {}

    @classmethod
    def opened(cls, request: Request) -> Pool:
        """One process unless more are asked for.

        Raises:
            UsageError: something that only a cluster takes.
        """
        workers = _asked(request)
        return cls(workers, gpus_of(request.device) if workers > 1 else ())

    @classmethod
    def describe(cls, request: Request) -> dict[str, Any]:
        """What it would use. Raises as `opened`."""
        workers = _asked(request)
        threads = threads_each(workers)
        text = f"this machine: {workers} {'process' if workers == 1 else 'processes'} of {threads} threads"
        return {"workers": workers, "threads": threads, "text": text}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The ids of the processes that live."""
        return tuple(process.pid for process in self._processes.values() if process.is_alive())

    def run(
        self, setup: Callable[[], Answer], items: Sequence[Any], log: Path, group: Callable[[Any], Any] = lambda item: None
    ) -> Generator[Outcome]:
        """Have items answered.

        A process that dies costs the item that it was on, and is replaced. Processes that are busy when the caller stops asking
        (`contextlib.closing`) are ended.

        Args:
            setup: makes a process ready, and gives what answers items there; picklable.
            items: picklable.
            log: gets what the processes print.
            group: items of one group go to the same process where that costs no waiting.

        Yields:
            Outcomes, as they come.

        Raises:
            T2Error, OSError: `setup` failed.
        """
        return _Run(self, setup, items, log, group).outcomes()

    def take(self, number: int) -> list[Connection]:
        """The pipes of so many living processes; those that are missing are started."""
        for pipe in [pipe for pipe, process in self._processes.items() if not process.is_alive()]:
            self.remove(pipe)
        while len(self._processes) < number:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            gpu = self._free_gpu()
            with worker_environment(self.threads, gpu):
                process.start()
            theirs.close()
            self._processes[ours] = process
            if gpu is not None:
                self._gpu_of[ours] = gpu
        return list(self._processes)[:number]

    def _free_gpu(self) -> str | None:
        """The GPU that the fewest living processes use: that of a process which died, for the one that takes its place."""
        used = list(self._gpu_of.values())
        return min(self.gpus, key=used.count, default=None)

    def remove(self, pipe: Connection) -> int | None:
        """End one process, and give its exit code."""
        process = self._processes.pop(pipe)
        self._gpu_of.pop(pipe, None)
        _end([process])
        pipe.close()
        code: int | None = process.exitcode
        return code

    def close(self) -> None:
        """End all processes. The next run would start others."""
        processes = list(self._processes.values())
        for pipe in self._processes:
            pipe.close()  # at which an idle process ends by itself
        self._processes.clear()
        self._gpu_of.clear()
        for process in processes:
            process.join(_PATIENCE)
        _end(processes)


def _asked(request: Request) -> int:
    """The number of processes."""
    given = {"--address": request.address, "--num-cpus": request.num_cpus, "--num-gpus": request.num_gpus, "--retries": request.retries}
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} is for a cluster (--executor ray); here --workers says how many processes share this machine.")
    return 1 if request.workers is None else request.workers


def _end(processes: Sequence[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


class _Run:
    """One call of `Pool.run`: the processes that it uses, the items that they are on, and those that wait."""

    def __init__(self, pool: Pool, setup: Callable[[], Answer], items: Sequence[Any], log: Path, group: Callable[[Any], Any]) -> None:
        self._pool, self._order, self._log, self._group = pool, ("ready", (setup, log)), log, group
        self._waiting = list(items)
        self._used: list[Connection] = []
        self._ready: set[Connection] = set()
        self._busy: dict[Connection, Any] = {}
        self._groups: dict[Connection, Any] = {}

    def outcomes(self) -> Generator[Outcome]:
        try:
            self._make_ready(min(self._pool.workers, len(self._waiting)))
            while self._used:
                for pipe in wait(self._used):
                    assert isinstance(pipe, Connection)
                    outcome = self._received(pipe)
                    if outcome is not None:
                        yield outcome
                    if pipe in self._used:
                        self._assign(pipe)
        finally:
            for pipe in self._used:
                self._pool.remove(pipe)

    def _make_ready(self, number: int) -> None:
        """Use so many processes, those that are in use already among them."""
        for pipe in self._pool.take(number):
            if pipe not in self._used:
                self._used.append(pipe)
                _send(pipe, self._order)

    def _assign(self, pipe: Connection) -> None:
        """The next item, of the process's group if there is one; or nothing more for it to do."""
        if not self._waiting:
            self._used.remove(pipe)
            return
        group = self._groups.get(pipe)
        item = next((item for item in self._waiting if self._group(item) == group), self._waiting[0])
        self._waiting.remove(item)
        self._busy[pipe], self._groups[pipe] = item, self._group(item)
        _send(pipe, ("item", item))

    def _received(self, pipe: Connection) -> Outcome | None:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            return self._died(pipe)
        if pipe not in self._ready:
            if kind == "error":
                raise value
            self._ready.add(pipe)
            return None
        item = self._busy.pop(pipe)
        return Outcome(item, error=value) if kind == "error" else Outcome(item, value)

    def _died(self, pipe: Connection) -> Outcome:
        """Account for a process that is gone: its item, and another process if items wait."""
        self._used.remove(pipe)
        code = self._pool.remove(pipe)
        if pipe not in self._ready:
            raise T2Error(f"A worker ended while it was getting ready (exit code {code}). {self._log} may say why.")
        if self._waiting:
            self._make_ready(len(self._used) + 1)
        return Outcome(self._busy.pop(pipe), exit_code=code)


def _send(pipe: Connection, order: Any) -> None:
    """A process that has died meanwhile is noticed on the next receive."""
    with contextlib.suppress(OSError):
        pipe.send(order)
