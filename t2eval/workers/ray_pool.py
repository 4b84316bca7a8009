"""Ray: processes on the machines of a Ray cluster, each an actor with its share of CPUs and GPUs.

Ray places the actors and says when one is lost; its item is given to another one then, up to a number of times, and a new actor takes the
lost one's place where the cluster has room. Results come back through Ray's object store, and files that a process needs go the same way:
no disk need be shared. The dashboard and the usage report are off: neither is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from t2eval.basemodel.devices import AUTO, SPREAD, available_cores
from t2eval.errors import T2Error, UsageError
from t2eval.store.versions import versions
from t2eval.workers.cargo import Cargo, pack, unpack
from t2eval.workers.executor import Answer, Outcome, Portable, Request, portable_error
from t2eval.workers.processes import gpus_of

RETRIES = 2
_INSTALL = "Each machine needs the same t2eval, with all that it needs."
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "LOGLEVEL": "ERROR", "LMEVAL_LOG_LEVEL": "ERROR"}
_PATIENCE = 60.0  # seconds without any news after which a line says what is waited for
_log = logging.getLogger(__name__)


class _Server:
    """An actor: one process with one setup, which answers items."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)  # before torch is imported, which the setup does
        self._scratch = Path(tempfile.mkdtemp(prefix="t2eval-"))
        self._answer: Answer | None = None

    def ready(self, setup: Any, cargo: Cargo, expected: dict[str, str]) -> tuple[str, Any]:
        """Make ready. Gives (`ready`, host and process), or (`error`, an exception)."""
        host = socket.gethostname()
        try:
            for package, version in versions().items():
                if expected.get(package, version) != version:
                    raise T2Error(f"The worker on {host} has {package} {version}, and this machine {expected[package]}. Install the same.")
            root = unpack(cargo, ray.get, self._scratch / "files")
            self._answer = (setup.moved(self._scratch / "work", root) if isinstance(setup, Portable) else setup)()
        except Exception as error:  # noqa: BLE001 - the driver deals with it
            return "error", portable_error(error)
        return "ready", f"process {os.getpid()} on {host} ({ray.get_runtime_context().get_node_id()[:8]})"

    def answer(self, item: Any) -> tuple[str, Any]:
        """Answer an item: (`answered`, value), or (`error`, an exception)."""
        assert self._answer is not None
        try:
            return "answered", self._answer(item)
        except Exception as error:  # noqa: BLE001 - as above
            return "error", portable_error(error)

    def tidy(self) -> None:
        """Remove what it wrote on its machine."""
        shutil.rmtree(self._scratch, ignore_errors=True)


@dataclass(frozen=True)
class Room:
    """What a cluster has, and what a process asks of it.

    Attributes:
        nodes: CPUs and GPUs of each machine.
        num_cpus, num_gpus: of each process.
    """

    nodes: tuple[tuple[float, float], ...]
    num_cpus: float
    num_gpus: float

    @property
    def workers(self) -> int:
        """How many processes there is room for at a time."""
        return sum(self._on(*node) for node in self.nodes)

    def _on(self, cpus: float, gpus: float) -> int:
        fits = [int(have / asks + 1e-9) for have, asks in ((cpus, self.num_cpus), (gpus, self.num_gpus)) if asks]
        whole_gpus = self.num_gpus <= 1 or self.num_gpus == int(self.num_gpus)
        return min(fits) if whole_gpus else 0

    def __str__(self) -> str:
        machines = "1 machine" if len(self.nodes) == 1 else f"{len(self.nodes)} machines"
        cpus, gpus = (sum(column) for column in zip(*self.nodes, strict=True)) if self.nodes else (0, 0)
        return f"{machines} with {cpus:g} CPUs and {gpus:g} GPUs"


def _room(nodes: Sequence[tuple[float, float]], request: Request) -> Room:
    """Room for processes as they are asked for: by default one CPU each, and one GPU where the device leaves it to us and there are any."""
    cpus = 1.0 if request.num_cpus is None else request.num_cpus
    some = any(gpus for _, gpus in nodes)
    gpus = request.num_gpus
    if gpus is None:
        if request.device == SPREAD:
            raise UsageError(f"device: {SPREAD} takes all GPUs that a process sees. Say how many that are: --num-gpus 8.")
        gpus = 1.0 if some and request.device in (AUTO, "cuda") or request.device.startswith("cuda") else 0.0
    if cpus <= 0 and gpus <= 0:
        raise UsageError("--num-cpus and --num-gpus are both 0: a process takes some of one of them.")
    return Room(tuple(nodes), cpus, gpus)


def _address(request: Request) -> str | None:
    """The cluster that is meant; None: one of our own on this machine."""
    address = request.address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: Ray Client is not supported, as results would come through a proxy. Run `t2 bench` on a machine of the "
            "cluster, with --address auto (`ray job submit -- t2 bench …` does so)."
        )
    return address


def _connect(address: str | None) -> bool:
    """Connect, or start a cluster on this machine. Whether it is ours to leave again."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = available_cores()
        ray.init(address="local", num_cpus=cores, num_gpus=len(gpus_of(None)), include_dashboard=False, **quiet)
        return True
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        said = str(error).strip().split("\n")[0]
        raise T2Error(f"There is no Ray cluster at {address}: {said} Start one (`ray start --head`), or mend --address.") from error
    return True


def _nodes() -> list[tuple[float, float]]:
    nodes: Any = ray.nodes  # it has no annotations
    resources = [node["Resources"] for node in nodes() if node["Alive"]]
    return [(float(each.get("CPU", 0)), float(each.get("GPU", 0))) for each in resources]


class RayPool:
    """Processes of a Ray cluster. Opened with `RayPool.opened`, and left by `with` or `close`.

    Args:
        room: what there is and what a process takes.
        workers: processes; more than there is room for wait until there is.
        retries: how often an item is tried again whose process was lost.
        ours: whether to leave the cluster at the end.
    """

    elsewhere = True

    def __init__(self, room: Room, workers: int, retries: int = RETRIES, ours: bool = False) -> None:
        self.room, self.workers, self.retries, self._ours = room, workers, retries, ours

    @classmethod
    def opened(cls, request: Request) -> RayPool:
        """Connect to a cluster, or start one on this machine.

        Raises:
            UsageError: a wrong address or share.
            T2Error: it cannot be reached, or no machine of it has room for one process.
        """
        ours = _connect(_address(request))
        try:
            room = _room(_nodes(), request)
            if not room.workers:
                raise T2Error(f"{_no_room(room)} Ask for less, or add such a machine.")
            return cls(room, request.workers or room.workers, RETRIES if request.retries is None else request.retries, ours)
        except BaseException:
            if ours:
                ray.shutdown()
            raise

    @classmethod
    def describe(cls, request: Request) -> dict[str, Any]:
        """What it would use: of a cluster with an address what is there now; else of this machine, where nothing is started."""
        address = _address(request)
        if address is None and not ray.is_initialized():
            nodes, where = [(float(available_cores()), float(len(gpus_of(None))))], "a Ray of its own on this machine"
        else:
            ours = _connect(address)
            try:
                nodes, where = _nodes(), f"the Ray cluster at {address or 'this process'}"
            finally:
                if ours:
                    ray.shutdown()
        room = _room(nodes, request)
        workers = request.workers or room.workers
        share = f"{room.num_cpus:g} CPUs and {room.num_gpus:g} GPUs each"
        fits = f"{min(workers, room.workers)} of {workers} at a time" if workers > room.workers else f"{workers} at a time"
        text = f"{where}: {room}; processes of {share}, {fits}" if room.workers else f"{where}: {room}. {_no_room(room)}"
        return {
            "address": address, "machines": len(nodes), "cpus": sum(cpus for cpus, _ in nodes), "gpus": sum(gpus for _, gpus in nodes),
            "workers": workers, "at_a_time": min(workers, room.workers), "num_cpus": room.num_cpus, "num_gpus": room.num_gpus, "text": text,
        }  # fmt: skip

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._ours:
            self._ours = False
            ray.shutdown()

    def run(
        self, setup: Callable[[], Answer], items: Sequence[Any], log: Path, group: Callable[[Any], Any] = lambda item: None
    ) -> Generator[Outcome]:
        """As `Executor.run`. `log` gets where each process is; what it prints is in Ray's own logs on its machine."""
        return _Run(self, setup, items, log, group).outcomes()


def _no_room(room: Room) -> str:
    return f"No machine of the Ray cluster has {room.num_cpus:g} CPUs and {room.num_gpus:g} GPUs for a process ({room})."


@dataclass(eq=False)
class _Worker:
    """An actor, where it is once it is ready, and the group of its last item."""

    actor: Any
    place: str = ""
    group: Any = None


@dataclass
class _Run:
    """One call of `RayPool.run`: its actors, the items that they are on, and those that wait."""

    pool: RayPool
    setup: Callable[[], Answer]
    items: Sequence[Any]
    log: Path
    group: Callable[[Any], Any]
    _calls: dict[Any, tuple[_Worker, int | None]] = field(default_factory=dict)
    """Ray's reference → who was asked, and the number of the item; None: to make ready."""
    _waiting: list[int] = field(default_factory=list)
    _lost: dict[int | None, int] = field(default_factory=dict)
    _cargo: Cargo = field(default_factory=dict)

    def outcomes(self) -> Generator[Outcome]:
        self._waiting = list(range(len(self.items)))
        self._cargo = pack(self.setup.files(), ray.put) if isinstance(self.setup, Portable) else {}
        left = len(self.items)
        try:
            for _ in range(min(self.pool.workers, left)):
                self._start()
            heard = time.monotonic()
            while left:
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=5.0)
                if not done and time.monotonic() - heard > _PATIENCE:
                    self._say(f"waiting for {len(self._calls)} processes; the cluster has {self.pool.room}")
                    heard = time.monotonic()
                for call in done:
                    heard = time.monotonic()
                    outcome = self._received(call)
                    if outcome is not None:
                        left -= 1
                        yield outcome
        finally:
            for worker in {worker for worker, _ in self._calls.values()}:
                _end(worker)

    def _start(self) -> None:
        """One more actor, which Ray places where there is room; those of a cluster's machines in turn."""
        room = self.pool.room
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, int(room.num_cpus)))
        remote = ray.remote(_Server).options(num_cpus=room.num_cpus, num_gpus=room.num_gpus, max_restarts=0, scheduling_strategy="SPREAD")
        worker = _Worker(remote.remote({**_QUIET, "OMP_NUM_THREADS": threads}))
        self._calls[worker.actor.ready.remote(self.setup, self._cargo, versions())] = worker, None

    def _received(self, call: Any) -> Outcome | None:
        worker, number = self._calls.pop(call)
        try:
            kind, value = ray.get(call)
        except RayTaskError as error:  # what was sent could not be read there
            raise T2Error(f"A worker cannot be made ready: {_last_line(error)}. {_INSTALL}") from error
        except RayError as error:
            return self._gone(worker, number, error)
        if number is None:
            if kind == "error":
                raise value
            worker.place = value
            self._say(f"ready: {value}")
            self._assign(worker)
            return None
        self._assign(worker)
        item = self.items[number]
        return Outcome(item, error=value) if kind == "error" else Outcome(item, value)

    def _assign(self, worker: _Worker) -> None:
        """The next item, of the worker's group if there is one; where none waits, its share of the cluster is given back."""
        if not self._waiting:
            _end(worker)
            return
        number = next((n for n in self._waiting if self.group(self.items[n]) == worker.group), self._waiting[0])
        self._waiting.remove(number)
        worker.group = self.group(self.items[number])
        self._calls[worker.actor.answer.remote(self.items[number])] = worker, number

    def _gone(self, worker: _Worker, number: int | None, error: RayError) -> Outcome | None:
        """Account for an actor that is lost: its item waits again, unless it has been tried often enough."""
        reason = _last_line(error)
        if isinstance(error, RayActorError) and "ModuleNotFoundError" in str(error):
            raise T2Error(f"A worker cannot be made ready: {reason}. {_INSTALL}") from error
        self._say(f"lost: {worker.place or 'a process that was getting ready'}: {reason}")
        tries = self._lost[number] = self._lost.get(number, 0) + 1
        outcome = None
        if number is None:
            if tries > self.pool.retries + self.pool.workers:
                raise T2Error(f"{tries} workers were lost while they were getting ready, the last one so: {reason}. {self.log} lists them.")
        elif tries > self.pool.retries:
            times = "once" if tries == 1 else f"{tries} times"
            outcome = Outcome(self.items[number], lost=f"its worker was lost {times}, the last time on {worker.place}: {reason}")
        else:
            self._waiting.insert(0, number)
        if self._waiting:
            self._start()
        return outcome

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        _log.info(line)


def _end(worker: _Worker) -> None:
    """End an actor, busy or not. An idle one removes its files first."""
    with contextlib.suppress(RayError, ValueError):
        if worker.place:
            with contextlib.suppress(Exception):
                ray.get(worker.actor.tidy.remote(), timeout=1.0)
        ray.kill(worker.actor)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
