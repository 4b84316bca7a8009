"""Processes: what the children of a benchmark have in common, whether they train or evaluate."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

from t2eval.basemodel.devices import AUTO, available_cores, usable_cores


def end_with_parent() -> None:
    """End this process when its parent is gone, whatever killed it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)


def speak_into(log: Path) -> None:
    """Send this process's output to a file: the progress bars of lm-eval in several processes would fill the terminal."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # what was printed before belongs to the last file
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def threads_each(workers: int) -> int:
    """Threads of each of so many processes: what the user set by OMP_NUM_THREADS, else its share of the cores that may be used here."""
    if os.environ.get("OMP_NUM_THREADS"):
        return usable_cores()
    return max(1, available_cores() // workers)


def gpus_of(device: str | None) -> tuple[str, ...]:
    """The GPUs among which workers are divided, as CUDA_VISIBLE_DEVICES names them; none where the device is one by name, or no GPU.

    Args:
        device: a device setting: `auto` and `cuda` leave the choice to us, `cuda:1`, `cpu` and `balanced` do not.
    """
    if device not in (None, AUTO, "cuda"):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() and not part.strip().startswith("-"))
    import torch  # only it knows which of the driver's GPUs it can use

    return tuple(str(index) for index in range(torch.cuda.device_count()))


@contextlib.contextmanager
def worker_environment(threads: int, gpu: str | None = None) -> Iterator[None]:
    """What a worker inherits: few threads, a GPU of its own, no progress bars of others, and no interest in Ctrl-C, its parent's to handle.

    Args:
        threads: of torch. The variable is read when torch is imported, so nothing sets it again afterwards.
        gpu: the only one that the process sees; None: those that this process sees.
    """
    wanted = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    wanted |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    wanted |= {"LOGLEVEL": os.environ.get("LOGLEVEL", "ERROR"), "LMEVAL_LOG_LEVEL": os.environ.get("LMEVAL_LOG_LEVEL", "ERROR")}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
