"""Regular: how any file that somebody else may have put there is opened, so that it neither hangs us nor never ends."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: str | Path) -> BufferedReader:
    """A regular file, or a link to one, open for reading bytes.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        ValueError: a NUL in the name.
    """
    # Looked at before it is opened: to open a device may do something. A FIFO that takes its place meanwhile does not hold us up.
    _refuse_other(os.stat(path))
    file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: SIM115  the caller's to close
    try:
        _refuse_other(os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def _refuse_other(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
