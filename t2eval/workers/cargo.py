"""Cargo: files that travel to processes on machines which share no disk with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from t2eval.store.digests import file_digest
from t2eval.store.files import read_bytes, write_bytes

_MOST = 16 << 30  # bytes of one file

Cargo = Mapping[str, tuple[str, Any]]
"""Absolute path → (digest, what stands for the bytes)."""


def pack(files: Iterable[Path], put: Callable[[bytes], Any]) -> Cargo:
    """Files as cargo.

    Args:
        files: of this machine.
        put: makes of bytes what can be sent.
    """
    return {str(path.absolute()): (file_digest(path), put(_content(path))) for path in dict.fromkeys(files)}


def unpack(cargo: Cargo, get: Callable[[Any], bytes], folder: Path) -> Path | None:
    """Put cargo into a folder of this machine, each file at its absolute path below it.

    Args:
        cargo: from `pack`.
        get: the bytes that something stands for.
        folder: that gets them.

    Returns:
        The folder; None where all files lie here already, under their own paths and with the same contents.

    Raises:
        DiskError: there is no room.
    """
    if all(Path(path).is_file() and file_digest(path) == digest for path, (digest, _) in cargo.items()):
        return None
    for path, (_, stands_for) in cargo.items():
        write_bytes(below(folder, path), get(stands_for), remedy="Make room for temporary files on that machine, or set TMPDIR there.")
    return folder


def below(root: Path | None, path: str | Path) -> str:
    """An absolute path as it is below a root; without a root, as it is."""
    return str(path) if root is None else str(root / Path(path).relative_to("/"))


def gathered(folder: Path, leave: Iterable[str] = ()) -> dict[str, bytes]:
    """The files of a folder: path inside it → contents.

    Args:
        folder: may be missing.
        leave: folders directly inside it that are left out.
    """
    left = set(leave)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] not in left]
    return {path.relative_to(folder).as_posix(): _content(path) for path in files}


def _content(path: Path) -> bytes:
    return read_bytes(path, what="file for a worker", remedy="Check that it is a file of yours.", limit=_MOST)
