"""GGUF files: what their header says is held against the file, before a library walks it.

The libraries that read such a file believe the counts and lengths in it: a flipped bit makes them loop over numbers that are not there, or
ask for the memory of them. No value is kept here, but for those that say how large the model is.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from t2eval.errors import T2Error
from t2eval.store.regular import open_regular

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_WHOLE = (0, 1, 2, 3, 4, 5, 10, 11)
_NESTED, _DIMENSIONS, _NAME = 4, 4, 2**16
_SIZES = ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "vocab_size")
# Type → numbers of a block, and its bytes; of a type that is not here only the place is looked at.
_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84), 11: (256, 110)},
    **{12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50)},
    **{20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8)},
    **{29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17)},
}


def check_gguf_file(path: Path) -> None:
    """See that a GGUF file is whole: its fields and tensors lie within it, and the model that it describes is one of its tensors.

    Raises:
        T2Error: it is no regular file, no GGUF of version 2 or 3, or damaged; with the place.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Walk(content).run()
    except (OSError, ValueError, _Damage) as error:  # a ValueError: it is empty
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise T2Error(f"The GGUF file {path} cannot be read: {reason}. Copy it again.") from error


class _Damage(Exception):
    """Something that no whole GGUF file has."""


class _Walk:
    """One pass through a header, from its begin to the place where the tensors lie."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._place = content, 0
        self._sizes: dict[str, int] = {}
        self._alignment = 32

    def run(self) -> None:
        """All of it."""
        if self._content[:4] != b"GGUF":
            raise _Damage("it does not begin as a GGUF file does")
        self._place = 4
        if (version := self._number("I")) not in (2, 3):
            raise _Damage(f"it is of version {version}, and 2 and 3 can be read")
        tensors, fields = self._number("Q"), self._number("Q")
        self._fits(tensors, 24, "tensors")
        self._fits(fields, 12, "fields")
        for _ in range(fields):
            name = self._text("the name of a field")
            self._value(name, self._number("I"), 0)
        described = [self._tensor() for _ in range(tensors)]
        begin = -(-self._place // self._alignment) * self._alignment
        for name, offset, size in described:
            if begin + offset + size > len(self._content):
                raise _Damage(f"the tensor {name!r} ends behind the end of the file, which is cut off or says wrong sizes")
        self._sensible(tensors, max((size for _, _, size in described), default=0))

    def _sensible(self, tensors: int, largest: int) -> None:
        """No size of the model may be beyond what its tensors are: it would be made before a tensor is missed."""
        for name, value in self._sizes.items():
            bound = tensors if name.endswith("block_count") else 2**24 if name.endswith("context_length") else 8 * largest
            if not 0 < value <= bound:
                raise _Damage(f"it says {name} = {value}, which its {tensors} tensors do not bear out")

    def _fits(self, count: int, least: int, what: str) -> None:
        """Whether so many things of so many bytes at least can follow."""
        if count * least > len(self._content) - self._place:
            raise _Damage(f"it says that it has {count} {what} at byte {self._place}, more than it has room for")

    def _take(self, size: int, what: str) -> bytes:
        self._fits(size, 1, f"bytes of {what}")
        self._place += size
        return self._content[self._place - size : self._place]

    def _number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}"), "a number"))[0])

    def _text(self, what: str) -> str:
        size = self._number("Q")
        if size > _NAME:
            raise _Damage(f"{what} at byte {self._place} has {size} bytes")
        return self._take(size, what).decode(errors="replace")

    def _value(self, name: str, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._take(self._number("Q"), f"the text {name!r}")
        elif kind == _ARRAY:
            of, count = self._number("I"), self._number("Q")
            if depth == _NESTED:
                raise _Damage(f"{name!r} has arrays in arrays, deeper than {_NESTED}")
            if of in _NUMBERS:
                self._take(count * struct.calcsize(_NUMBERS[of]), f"the array {name!r}")
                return
            self._fits(count, 8, f"values of the array {name!r}")
            for _ in range(count):
                self._value(name, of, depth + 1)
        elif kind in _NUMBERS:
            place = self._take(struct.calcsize(_NUMBERS[kind]), name)
            if kind in _WHOLE and name.endswith((*_SIZES, "alignment")):
                self._sized(name, int(struct.unpack(f"<{_NUMBERS[kind]}", place)[0]))
        else:
            raise _Damage(f"{name!r} is of type {kind}, which there is not")

    def _sized(self, name: str, value: int) -> None:
        if name != "general.alignment":
            self._sizes[name] = value
        elif not 0 < value <= 2**16:
            raise _Damage(f"it says general.alignment = {value}")
        else:
            self._alignment = value

    def _tensor(self) -> tuple[str, int, int]:
        """Name, offset behind the header, and bytes."""
        name = self._text("the name of a tensor")
        if (dimensions := self._number("I")) > _DIMENSIONS:
            raise _Damage(f"the tensor {name!r} has {dimensions} dimensions")
        count = math.prod(self._number("Q") for _ in range(dimensions))
        kind, offset = self._number("I"), self._number("Q")
        numbers, size = _BLOCKS.get(kind, (1, 0))
        if count % numbers:
            raise _Damage(f"the tensor {name!r} has {count} numbers, no multiple of the {numbers} of its blocks")
        return name, offset, count // numbers * size
