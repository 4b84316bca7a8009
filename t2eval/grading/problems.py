"""Problems: rows of a code data set, checked before any of them is asked, so that a bad row is an error and never a silent zero."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2eval.errors import T2Error
from t2eval.sandbox.run import LONGEST_SOURCE


@dataclass(frozen=True)
class Problem:
    """One row, with where it is from, so that errors can say so.

    Attributes:
        dataset: the data set's name.
        index: the row's place in it, from 0.
        row: the row.
    """

    dataset: str
    index: int
    row: Mapping[str, Any]

    def wrong(self, what: str) -> T2Error:
        """An error that names data set and row."""
        given = self.row.get("task_id")
        named = f" (task_id {str(given)[:60]!r})" if given is not None else ""
        return T2Error(f"Row {self.index}{named} of {self.dataset} cannot be graded: {what} Leave the row out or repair it.")

    def field(self, name: str) -> Any:
        """A field's value.

        Raises:
            T2Error: the row does not have it, or it is null.
        """
        if self.row.get(name) is None:
            raise self.wrong(f"it has no {name!r}; it has: {', '.join(key for key, value in self.row.items() if value is not None)}.")
        return self.row[name]

    def text(self, name: str) -> str:
        """A field's text, with newlines alone as line ends. See `checked`."""
        return self.checked(name, self.field(name))

    def texts(self, name: str, *, needed: bool) -> list[str]:
        """A field's texts; where none is needed, those that are not empty. Raises as `checked` does, and for what is no list."""
        values = self.field(name)
        if not isinstance(values, (list, tuple)) or (needed and not values):
            raise self.wrong(f"{name!r} is {values!r:.60}, not a list of texts.")
        return [self.checked(f"{name}[{index}]", value) for index, value in enumerate(values) if needed or value != ""]

    def checked(self, name: str, value: Any) -> str:
        """A value of the row as text that a program may hold.

        Raises:
            T2Error: it is no text, empty, longer than a program may be, or holds NUL bytes or lone surrogates.
        """
        if not isinstance(value, str):
            raise self.wrong(f"{name!r} is a {type(value).__name__}, not a text.")
        if not value.strip():
            raise self.wrong(f"{name!r} is empty.")
        if len(value) > LONGEST_SOURCE:
            raise self.wrong(f"{name!r} has {len(value)} characters, more than {LONGEST_SOURCE}.")
        if "\0" in value:
            raise self.wrong(f"{name!r} holds NUL bytes.")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.wrong(f"{name!r} is not text: it holds lone surrogates.") from None
        return value.replace("\r\n", "\n").replace("\r", "\n")

    def python(self, name: str, source: str) -> ast.Module:
        """The syntax tree of a text of the row.

        Raises:
            T2Error: it is not Python (another language, or cut off).
        """
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.wrong(f"{name!r} is not Python: {error}.") from None


def defined_names(tree: ast.Module) -> list[str]:
    """The functions and classes at the top level of a module, in order, and the names that it assigns there."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def called_names(tree: ast.Module) -> list[str]:
    """The plain names that a module calls, in the order of the text."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    return [call.func.id for call in calls if isinstance(call.func, ast.Name)]
