"""Folders that are whole or not there: filled beside the place where they belong, and put there in one step."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t2eval.store.files import UNFINISHED, disk_error, unfinished
from t2eval.store.lock import give, take

_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
_SAID = re.compile(r"\(os error (\d+)\)")


@contextmanager
def system_errors() -> Iterator[None]:
    """Errors of the system, also where a library that is written in Rust (safetensors, tokenizers) says them by an exception of its own.

    Raises:
        OSError: with the system's number.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if (said := _SAID.search(str(error))) is None:
            raise
        number = int(said[1])
        raise OSError(number, os.strerror(number)) from error


@contextmanager
def staged_folder(target: str | Path, *, keep: bool = False, remedy: str = "Free some space, or choose another folder.") -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well, and goes when it does not.

    On Linux the two change places in one step, so that a killed process leaves the old folder or the new one. What one left beside it
    goes with the next that writes there. Only one process at a time writes to a target.

    Args:
        target: the folder to make or replace.
        keep: begin with what the old folder holds, as links to the same files: replace a file there (`store.files.write_bytes` does),
            never write into one.
        remedy: what to do where it cannot be written.

    Yields:
        The folder to fill.

    Raises:
        T2Error: another process is writing to `target`.
        DiskError: the folder, or a file that the block wrote, could not be written; an older `target` is as it was.
    """
    target = Path(os.path.realpath(target))
    lock = target.with_name(f".{target.name[:80]}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = take(lock, f"Another process is writing to {target}. Wait for it, or choose another folder.")
        try:
            for left in target.parent.glob(f".{glob.escape(target.name[:80])}.*{UNFINISHED}"):
                _remove(left)
            staging = unfinished(target)
            try:
                if keep and target.is_dir():
                    _link_all(target, staging)
                else:
                    staging.mkdir()
                with system_errors():
                    yield staging
                _put(staging, target)
            finally:
                _remove(staging)
        finally:
            give(lock, descriptor)
    except OSError as error:
        raise disk_error(target, error, remedy) from error


def _put(staging: Path, target: Path) -> None:
    """Put a folder in the place of another, whose files are then in `staging`, or gone."""
    if not target.exists():
        os.rename(staging, target)
        return
    if _exchange(staging, target):
        return
    old = unfinished(target)  # where the system cannot do it in one step
    os.rename(target, old)
    try:
        os.rename(staging, target)
    except OSError:
        os.rename(old, target)
        raise
    _remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _link_all(source: Path, target: Path) -> None:
    """A folder with the same files, as hard links; as copies where the file system has no links."""
    shutil.copytree(source, target, symlinks=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
