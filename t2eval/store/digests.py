"""Digests: sha256 of files, folders, values and tensors, in hexadecimal."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.errors import T2Error
from t2eval.store.regular import open_regular

if TYPE_CHECKING:
    from torch import Tensor


def file_digest(path: str | Path) -> str:
    """Of a file's bytes.

    Raises:
        T2Error: the file cannot be read, or is no regular one (a FIFO would hang, a device would never end).
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _of_stream(file.read)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise T2Error(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}. Check that it is a file of yours.") from error


def _of_stream(read: Callable[[int], bytes]) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    while block := read(2**20):
        digest.update(block)
    return digest.hexdigest()


def object_digest(value: Any) -> str:
    """Of a value's JSON with sorted keys. Functions count by name and source, other values that JSON has not by their text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_as_text).encode()).hexdigest()


def _as_text(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, bytes):
        return value.hex()
    if callable(value):  # its text holds an address, which is another one in every process
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
        try:
            return f"{name}\n{inspect.getsource(value)}"
        except (OSError, TypeError):
            return name
    return str(value)


def folder_digest(path: str | Path) -> str:
    """Of the names and contents of all files in a folder and below it, in order of their names.

    Raises:
        T2Error: no folder, or a file in it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise T2Error(f"{folder} is no folder. Check the path.")
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors' names, dtypes, shapes and bytes, in order of their names.

    Args:
        tensors: dense tensors of any dtype, on any device.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a dense tensor of any dtype, on the CPU."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
