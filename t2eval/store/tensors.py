"""Tensors as files: safetensors, and the tensors alone of a file that `torch.save` wrote. Nothing is ever unpickled.

A safetensors header is JSON that anybody may have written. It is held against the file before a tensor is made of it: names, known
dtypes, shapes whose numbers fill exactly the bytes that they claim.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from t2eval.errors import T2Error, shown
from t2eval.store.files import parse_json, read_bytes
from t2eval.store.regular import open_regular

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 2**30
"""Most bytes of a file of tensors that is read whole, unless told otherwise: far beyond any expert."""
HEADER_LIMIT = 2**27
"""Most bytes of a header: it has some 100 a tensor."""
_WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
"""Bytes of one number, by the format's names of dtypes."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        shapes: tensor name → shape.
        metadata: free text by name.
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def numbers(self) -> int:
        """How many numbers all tensors hold."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_tensors(path: str | Path, *, what: str, remedy: str, limit: int = LIMIT) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        path: the file.
        what: what the file should be, for errors.
        remedy: what to do when it cannot be read.
        limit: most bytes that are taken.

    Raises:
        T2Error: as `store.files.read_bytes`; no safetensors, cut off, or not of the size that its header says.
    """
    return parse_tensors(read_bytes(path, what=what, remedy=remedy, limit=limit), path, what=what, remedy=remedy)


def parse_tensors(content: bytes, path: str | Path, *, what: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that was read; errors as `read_tensors`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    _header(content[: 8 + HEADER_LIMIT], len(content), path, what, remedy)
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # a dtype that this torch has not
        _refuse(what, path, f"it is damaged or cut off ({error})", remedy, error)


def map_tensors(path: str | Path, *, what: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of any size, on the CPU, read as they are used; errors as `read_tensors`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path, what=what, remedy=remedy)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        _refuse(what, path, f"it is damaged or cut off ({error})", remedy, error)


def read_header(path: str | Path, *, what: str, remedy: str) -> Header:
    """What a safetensors file of any size says of itself: only its header is read.

    Raises:
        T2Error: as `read_tensors`.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            begin = file.read(8)
            length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
            begin += file.read(min(length, size, HEADER_LIMIT))
    except (OSError, ValueError) as error:
        _refuse(what, path, getattr(error, "strerror", None) or str(error), remedy, error)
    return _header(begin, size, path, what, remedy)


def _header(begin: bytes, size: int, path: str | Path, what: str, remedy: str) -> Header:
    """The header of a file of `size` bytes that begins so, checked."""
    (length,) = struct.unpack("<Q", begin[:8]) if len(begin) >= 8 else (0,)
    if not 2 <= length <= min(HEADER_LIMIT, size - 8) or len(begin) < 8 + length:
        _refuse(what, path, "it is damaged or cut off (no safetensors header)", remedy)
    try:
        content = parse_json(begin[8 : 8 + length].decode("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("its header is no mapping")
        metadata = content.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are no texts")
        shapes = {name: _shape(name, entry, size - 8 - length) for name, entry in content.items()}
    except ValueError as error:
        _refuse(what, path, f"it is damaged or cut off ({error})", remedy, error)
    return Header(shapes, metadata)


def _shape(name: str, entry: Any, room: int) -> tuple[int, ...]:
    """The shape that a header's entry states, which fills the bytes that it claims."""
    stated: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = stated.get("dtype"), _whole(stated.get("shape")), _whole(stated.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or not isinstance(dtype, str):
        raise ValueError(f"{shown(name)} has no dtype, shape or place")
    (first, last), known = offsets, _WIDTHS.get(dtype)
    if not first <= last <= room or (known is not None and math.prod(shape) * known != last - first):
        raise ValueError(f"{shown(name)} is said to be {dtype} {shown(shape)}, which does not fit its {last - first:,} bytes")
    return tuple(shape)


def _whole(value: Any) -> list[int] | None:
    """A list of whole numbers of nought or more, or None where it is something else."""
    is_one = isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
    return value if is_one else None


def read_torch_file(path: str | Path, *, what: str, remedy: str, limit: int = LIMIT) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote of a dictionary of tensors, on the CPU, in whatever form they are stored.

    Read with `weights_only`: nothing else in the file is made or run.

    Raises:
        T2Error: as `store.files.read_bytes`; it holds anything but a dictionary of tensors by name, or stands for more than `limit` bytes.
    """
    import torch
    from torch import Tensor

    content = read_bytes(path, what=what, remedy=remedy, limit=limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors in odd forms, which the caller refuses
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251  nothing but tensors
    except Exception as error:  # torch.load raises what the damaged or refused pickle happens to raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise T2Error(f"{path} cannot be read as tensors only ({reason}). Nothing else in it is ever unpickled. {remedy}") from error
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        _refuse(what, path, "it is not a dictionary of tensors", remedy)
    return {str(name): value for name, value in loaded.items()}


def _refuse(what: str, path: str | Path, problem: str, remedy: str, error: Exception | None = None) -> NoReturn:
    raise T2Error(f"The {what} {str(path)!r} cannot be read: {problem}. {remedy}") from error
