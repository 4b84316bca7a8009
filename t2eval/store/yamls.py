"""YAML of bounded depth and size: plain values only, no key twice, no aliases that multiply.

A few lines of nested aliases stand for more nodes than memory holds, and hang whatever prints or copies the value. So the events are gone
through first, and each alias counts as what it stands for.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

DEPTH = 64
NODES = 100_000
"""Most nodes of a file, each alias counted as what it stands for."""
_CONSTRUCTION = (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that stands twice in one mapping instead of dropping the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in keys:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
                keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] not in ("set", "omap", "pairs", "binary")
}  # fmt: skip
"""Nothing of ours is any of those four."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of plain types (null, booleans, numbers, strings, dates, lists, mappings).

    Raises:
        ValueError: no YAML (with line and column), a tag that is not plain, a key twice, or nested or aliased beyond the bounds.
    """
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        raise ValueError(_place(error.problem_mark) + " ".join(part for part in (error.context, error.problem) if part)) from error
    except _CONSTRUCTION as error:
        # PyYAML lets the errors of Python's own constructors through: `!!int x`, 2020-13-45, `!!bool maybe`.
        raise ValueError(" ".join(f"a value is not what its form or tag says: {error}".split())) from error


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _check_size(text: str) -> None:
    """Refuse what is too deep, or too large once its aliases are followed."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []  # of each open list or mapping: its anchor, and the nodes before it
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise ValueError(f"{_place(event.start_mark)}the alias *{event.anchor} stands inside what it names")
            total += sizes.get(event.anchor or "", 1)  # an unknown one is refused by the loader, with its place
        elif isinstance(event, yaml.ScalarEvent):
            if "\0" in event.value:  # no path and no name has one, and the system's calls would raise for it
                raise ValueError(f"{_place(event.start_mark)}a text has a NUL in it")
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_.append((event.anchor, total))
            total += 1
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before
        if len(open_) > DEPTH:
            raise ValueError(f"{_place(event.start_mark)}it nests deeper than {DEPTH} levels")
        if total > NODES:
            raise ValueError(f"it stands for more than {NODES:,} values, aliases counted as what they stand for")
