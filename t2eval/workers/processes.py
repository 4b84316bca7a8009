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


@contextlib.contextmanager
def worker_environment(threads: int) -> Iterator[None]:
    """What workers inherit: few threads, no progress bars of others, and no interest in Ctrl-C, which is their parent's to handle."""
    wanted = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
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
