"""The lock of a folder: one process at a time, and what killed ones left in it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2eval.errors import T2Error
from t2eval.store.files import UNFINISHED, disk_error

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
        descriptor = take(folder / LOCK, f"Another {what} is at work in {folder}. Wait for it, or choose another folder.")
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        remove_unfinished(folder)
        yield
    finally:
        give(folder / LOCK, descriptor)


def take(path: Path, message: str) -> int:
    """The descriptor that holds a lock's file, which is made where it is missing. A process that ends gives it back, however it ends.

    Raises:
        T2Error: another process has it: `message`.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the file between our opening and locking it: then another would lock a new one.
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise T2Error(message) from error
        except FileNotFoundError:
            pass  # removed between the two looks at it: the loop opens it anew
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def give(path: Path, descriptor: int) -> None:
    """Remove a lock's file and let it go, in this order: whoever waits with the old file open sees that it is gone."""
    path.unlink(missing_ok=True)
    os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder and below it. Call it only with the folder's lock; folders below it that another process
    has locked are left alone."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if here != folder and _is_held(here / LOCK):
            folders.clear()
            continue
        for name in [name for name in files if _is_left(name)]:
            (here / name).unlink(missing_ok=True)
        for name in [name for name in folders if _is_left(name)]:
            folders.remove(name)
            link = here / name
            link.unlink(missing_ok=True) if link.is_symlink() else shutil.rmtree(link, ignore_errors=True)


def _is_left(name: str) -> bool:
    return name.startswith(".") and (name.endswith(UNFINISHED) or name.startswith(f"{UNFINISHED}-"))


def _is_held(path: Path) -> bool:
    """Whether a process has a lock's file, which is not made here."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
