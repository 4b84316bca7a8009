"""Channel: how a test calls a program that runs in another process: plain values over two pipes, and nothing else.

Both ends are one class. The test's end (`trusted`) turns whatever comes into numbers, texts and containers of its own, or into a
`Foreign` for a thing that only the program has; it lets the other end call what the test handed over as an argument, and nothing else. So a
program can choose what its functions return, and cannot reach what they are compared with.

Values travel as JSON: None, truth values, texts, floats and small integers as themselves, others as a list that begins with a tag.
Runs inside the jail, without t2eval: it imports nothing but the standard library.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import json
import os
import struct
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from t2eval.sandbox.foreign import DEEDS, Foreign

LONGEST = 64 << 20  # bytes of one message
_SMALL = 1 << 60
_TYPES = ("bool", "int", "float", "complex", "str", "bytes", "bytearray", "list", "tuple", "set", "frozenset", "dict", "range", "object")
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
# What travels as the arguments of its constructor.
_BUILT: dict[str, tuple[type, Callable[[Any], tuple[Any, ...]]]] = {
    "bytes": (bytes, lambda value: (list(bytes(value)),)),
    "bytearray": (bytearray, lambda value: (list(bytes(value)),)),
    "complex": (complex, lambda value: (value.real, value.imag)),
    "range": (range, lambda value: (value.start, value.stop, value.step)),
    "decimal": (decimal.Decimal, lambda value: (str(value),)),
    "fraction": (fractions.Fraction, lambda value: (value.numerator, value.denominator)),
    "delta": (datetime.timedelta, lambda value: (value.days, value.seconds, value.microseconds)),
    "date": (datetime.date, lambda value: (value.year, value.month, value.day)),
    "slice": (slice, lambda value: (value.start, value.stop, value.step)),
}
_CHANGEABLE = (list, set, dict, bytearray, collections.deque)
_MAPPINGS: dict[str, Any] = {"dict": dict, "OrderedDict": collections.OrderedDict, "Counter": collections.Counter}
# The program's end is in the program's hands; what is bound here at least survives an honest program's own names.
_read, _write, _dumps = os.read, os.write, json.dumps


class Gone(BaseException):
    """The other end closed its pipe, or said something that is no message."""


class Unfit(BaseException):
    """The test hands the program something that does not travel."""


def _family(error: BaseException) -> list[str]:
    """The names of an exception's classes, its own first."""
    return [kind.__name__ for kind in type(error).__mro__]


def _rebuilt(family: list[Any], said: str) -> BaseException:
    """An exception of the nearest of these classes that every Python has."""
    for name in family:
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(said)
            except TypeError:  # it wants more than a text
                continue
    return RuntimeError(said)


class Channel:
    """One end of a conversation between a test and a program.

    Args:
        reads, writes: descriptors of two pipes.
        trusted: this is the test's end.
        explain: how an exception is told, for the verdict's detail.
    """

    def __init__(self, reads: int, writes: int, *, trusted: bool, explain: Callable[[BaseException], bytes]) -> None:
        self.reads, self.writes, self.trusted, self.explain = reads, writes, trusted, explain
        self.gone = False
        self.unfit = ""
        self.names: dict[str, Any] = {}  # of the program, once it is loaded; at the test's end, of the test
        self._shown: dict[str, Any] = {}  # the program's values that the test has, as they were packed
        self.load: Callable[[], None] = lambda: None
        self._own: list[Any] = []  # what the other end may name by its place

    # ------------------------------------------------------------------ messages
    def send(self, *message: Any) -> None:
        data = _dumps(message, separators=(",", ":")).encode("ascii")
        data = struct.pack("<I", len(data)) + data
        try:
            while data:
                data = data[_write(self.writes, data) :]
        except OSError:
            self._end()

    def _take(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            part = _read(self.reads, min(length, 1 << 20))
            if not part:
                self._end()
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def receive(self) -> list[Any]:
        try:
            length = struct.unpack("<I", self._take(4))[0]
            message = json.loads(self._take(length)) if length <= LONGEST else None
        except (ValueError, RecursionError, OSError):
            message = None
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            self._end()
        return message

    def _end(self) -> NoReturn:
        self.gone = True
        raise Gone

    # ------------------------------------------------------------------ conversation
    def ask(self, deed: str, *arguments: Any, **named: Any) -> Any:
        """Have the other end do something, and do what it asks for meanwhile.

        Raises:
            Gone: it went away. Otherwise whatever was raised there, as the nearest class that every Python has.
        """
        if self.gone:
            raise Gone
        packed = [self.pack(value) for value in arguments]
        self.send("do", deed, packed, {name: self.pack(value) for name, value in named.items()})
        while True:
            kind, *rest = self.receive()
            try:
                if kind == "do":
                    self.answer(*rest)
                elif kind == "done":
                    self._write_back(arguments, packed, rest[1])
                    for name in rest[2] if self.trusted else ():
                        self.names[name] = self.unpack(rest[2][name])
                    return self.unpack(rest[0])
                elif kind == "raised":
                    error, told = _rebuilt(list(rest[0]), str(rest[1])), str(rest[2])
                    error.__dict__["told"] = told.encode("utf-8", "backslashreplace")[:600]
                else:
                    self._end()
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as wrong:
                if not self.trusted:
                    raise
                self.gone = True
                raise Gone from wrong
            if kind == "raised":
                raise error

    def answer(self, deed: str, packed: list[Any], named: dict[str, Any]) -> None:
        """Do what the other end asks for, and say how it went."""
        try:
            values = [self.unpack(value) for value in packed]
            if deed == "call":
                thing = self._own[values[0]]
                result = thing(*values[1:], **{name: self.unpack(value) for name, value in named.items()})
            elif self.trusted:
                raise PermissionError("a test may only be called back")
            elif deed == "begin":
                result = self.load()
            elif deed == "name":
                result = self.names[values[0]]
            elif deed == "kind":
                found = self.names.get(values[0], self)
                result = "missing" if found is self else "module" if isinstance(found, types.ModuleType) else "thing"
            else:
                result = DEEDS[deed](self._own[values[0]], *values[1:])
            reply = ("done", self.pack(result), self._changed(values, packed), self._renewed())
            if deed == "name" and not _is_thing(reply[1]):
                self._shown[values[0]] = reply[1]
        except (Gone, Unfit):
            raise
        except BaseException as error:  # noqa: BLE001 (whatever it is, it belongs to who asked)
            self.send("raised", _family(error), _said(error), self.explain(error).decode("utf-8", "replace"))
        else:
            self.send(*reply)

    def serve(self) -> None:
        """The program's end: answer until the test has ended."""
        while True:
            kind, *rest = self.receive()
            if kind == "do":
                self.answer(*rest)

    def _changed(self, values: list[Any], packed: list[Any]) -> dict[str, Any]:
        """Those lists, sets and mappings among the arguments that the call has changed."""
        changed = {}
        for place, (value, before) in enumerate(zip(values, packed, strict=True)):
            if isinstance(value, _CHANGEABLE) and (after := self.pack(value)) != before:
                changed[str(place)] = after
        return changed

    def _renewed(self) -> dict[str, Any]:
        """Those of the program's values that the test has and that are others now."""
        found = {name: self.pack(self.names.get(name)) for name in self._shown}
        renewed = {name: after for name, after in found.items() if after != self._shown[name] and not _is_thing(after)}
        self._shown |= renewed
        return renewed

    def _write_back(self, values: tuple[Any, ...], packed: list[Any], changed: dict[str, Any]) -> None:
        for place, after in changed.items():
            value, new = values[int(place)], self.unpack(after)
            if type(value) is not type(new) or packed[int(place)] == after:
                continue
            if isinstance(value, (list, bytearray)):
                value[:] = new
            elif isinstance(value, collections.deque):
                value.clear()
                value.extend(new)
            elif isinstance(value, (set, dict)):
                value.clear()
                value.update(new)

    # ------------------------------------------------------------------ values
    def pack(self, value: Any) -> Any:
        """A value as JSON can hold it; a thing that does not travel as its place among this end's own.

        Raises:
            Unfit: at the test's end, for a thing that is neither a value nor can be called.
        """
        if value is None or isinstance(value, (bool, str)):
            return str.__str__(value) if isinstance(value, str) else value
        if isinstance(value, int):
            value = int.__add__(value, 0)
            return value if -_SMALL < value < _SMALL else ["int", hex(value)]
        if isinstance(value, float):
            return float.__pos__(value)
        for name, sequence in _SEQUENCES.items():
            if isinstance(value, sequence):
                return [name, [self.pack(item) for item in sequence.__iter__(value)]]
        for name, mapping in reversed(_MAPPINGS.items()):
            if isinstance(value, mapping):
                return [name, [[self.pack(part) for part in pair] for pair in mapping.items(value)]]
        if isinstance(value, (type({}.keys()), type({}.items()))):
            return ["keys" if isinstance(value, type({}.keys())) else "items", list(map(self.pack, value))]
        if isinstance(value, collections.deque):
            return ["deque", list(map(self.pack, value)), value.maxlen]
        if type(value) in (datetime.datetime, datetime.time) and value.tzinfo is None:
            return [type(value).__name__, value.isoformat()]
        for name, (kind, parts) in _BUILT.items():
            if type(value) is kind:
                return [name, [self.pack(item) for item in parts(value)]]
        return self._pack_thing(value)

    def _pack_thing(self, value: Any) -> Any:
        if type(value) is Foreign:
            return ["yours", value._number]
        for name in _TYPES:
            if value is getattr(builtins, name):
                return ["type", name]
        if self.trusted and isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools"):
            value = value.__next__
            self._own.append(value)
            return ["iterator", len(self._own) - 1]
        if self.trusted and not callable(value):
            self.unfit = type(value).__name__
            raise Unfit
        self._own.append(value)
        return ["mine", len(self._own) - 1]

    def unpack(self, data: Any) -> Any:
        """The value that `pack` made this of.

        Raises:
            ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError: nothing that `pack` makes.
        """
        if not isinstance(data, list):
            if isinstance(data, dict):
                raise TypeError("no value")
            return data
        name, content, *rest = data
        if name in _SEQUENCES:
            return _SEQUENCES[name]([self.unpack(item) for item in content])
        if name in _MAPPINGS:
            pairs = [(self.unpack(key), self.unpack(item)) for key, item in content]
            return _MAPPINGS[name](dict(pairs) if name == "Counter" else pairs)
        if name in ("keys", "items"):
            items = [self.unpack(item) for item in content]
            return dict.fromkeys(items).keys() if name == "keys" else dict(items).items()
        if name in _BUILT:
            return _BUILT[name][0](*(self.unpack(item) for item in content))
        if name in ("mine", "iterator"):
            thing = Foreign(self.ask, int(content))
            return thing if self.trusted else _local(thing, name)
        return self._unpack_rest(name, content, rest)

    def _unpack_rest(self, name: str, content: Any, rest: list[Any]) -> Any:
        if name == "int":
            return int(content, 16)
        if name == "yours":
            return self._own[content]
        if name == "type" and content in _TYPES:
            return getattr(builtins, content)
        if name == "deque":
            return collections.deque((self.unpack(item) for item in content), *rest)
        if name in ("datetime", "time"):
            return getattr(datetime, name).fromisoformat(content)
        raise ValueError("no value")


def _is_thing(packed: Any) -> bool:
    return isinstance(packed, list) and packed[0] in ("mine", "yours", "iterator")


def _local(thing: Foreign, kind: str) -> Any:
    """A function or iterator of the test's, as the program sees it: one of the kinds that it would have got."""
    if kind == "mine":
        return lambda *arguments, **named: thing(*arguments, **named)

    def steps() -> Iterator[Any]:
        while True:
            try:
                value = thing()
            except StopIteration:
                return
            yield value

    return steps()


def _said(error: BaseException) -> str:
    try:
        return str(error)[:10_000]
    except BaseException:  # noqa: BLE001 (the text of a program's exception is the program's too)
        return ""
