"""The lock of a folder: one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2eval.errors import T2Error
from t2eval.store.files import disk_error, remove_unfinished

LOCK = ".lock"


@contextmanager
def locked(folder: str | Path, what: str) -> Iterator[None]:
    """Keep every other process out of a folder (made if missing) for the time of the block.

    The system gives the lock back when the process ends, however it ends. What killed writers left unfinished in the folder is removed.

    Args:
        folder: where the work is written.
        what: what is at work, for the other one's message: `benchmark`, `training`.

    Raises:
        T2Error: another process has it (at once, without waiting).
        DiskError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(folder, what)
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        remove_unfinished(folder)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before it is let go: whoever waits with the old file open sees that it is gone
        os.close(descriptor)


def _take(folder: Path, what: str) -> int:
    """The descriptor that holds the lock."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the file between our opening and locking it: then another would lock a new one.
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise T2Error(f"Another {what} is at work in {folder}. Wait for it, or choose another folder.") from error
        except FileNotFoundError:
            pass  # removed between the two looks at it: the loop opens it anew
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
