"""Foreign: a thing that only a program has, as a test in another process sees it, and what may be done with one.

Runs inside the jail, without t2eval: it imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Foreign:
    """A thing that only the program has, seen from the test.

    Its parts can be read, and it can be called, counted and gone through. It is equal to nothing but what the program itself calls equal
    among its own things: what the test compares it with is never shown to the program.
    """

    __slots__ = ("_ask", "_number")

    def __init__(self, ask: Callable[..., Any], number: int) -> None:
        self._ask, self._number = ask, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", self._number, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("attribute", self._number, name)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", self._number, key)

    def __iter__(self) -> Iterator[Any]:
        step = self._ask("iterate", self._number)
        while True:
            try:
                value = step()
            except StopIteration:
                return
            yield value

    def __next__(self) -> Any:
        return self._ask("next", self._number)

    def __len__(self) -> int:
        return int(self._ask("length", self._number))

    def __bool__(self) -> bool:
        return bool(self._ask("truth", self._number))

    def __str__(self) -> str:
        return str(self._ask("text", self._number))

    def __repr__(self) -> str:
        return str(self._ask("spelling", self._number))

    def __hash__(self) -> int:
        return hash(self._number)

    def __eq__(self, other: object) -> Any:
        return bool(self._ask("equal", self._number, other)) if isinstance(other, Foreign) else NotImplemented

    def __add__(self, other: Any) -> Any:
        return self._ask("add", self._number, other) if isinstance(other, Foreign) else NotImplemented

    def __sub__(self, other: Any) -> Any:
        return self._ask("subtract", self._number, other) if isinstance(other, Foreign) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        return self._ask("multiply", self._number, other) if isinstance(other, Foreign) else NotImplemented

    def __lt__(self, other: Any) -> Any:
        return self._ask("less", self._number, other) if isinstance(other, Foreign) else NotImplemented


DEEDS: dict[str, Callable[..., Any]] = {
    "attribute": lambda thing, name: getattr(thing, name),
    "item": lambda thing, key: thing[key],
    "iterate": lambda thing: iter(thing).__next__,
    "next": lambda thing: next(thing),
    "length": lambda thing: len(thing),
    "truth": lambda thing: bool(thing),
    "text": lambda thing: str(thing),
    "spelling": lambda thing: repr(thing),
    "equal": lambda thing, other: bool(thing == other),
    "add": lambda thing, other: thing + other,
    "subtract": lambda thing, other: thing - other,
    "multiply": lambda thing, other: thing * other,
    "less": lambda thing, other: thing < other,
}
