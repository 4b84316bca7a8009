"""Item: one table or figure of the paper as something that can be run, and the registry of all items.

A module in `t2eval/paper/items/` has a tuple `ITEMS` of `Item`. Its functions:

    run(lab)       does the experiment and returns a `Result`: rows (JSON values), claims (tested), notes. Everything that takes time goes
                   through the lab, which keeps what is finished: `lab.cells(…)`, `lab.train(…)`, `lab.once(name, compute, key=…)`.
    ours(result)   our columns of the table: header → row label → text. The paper's columns stand beside them and are never merged
                   with ours: another model answered other questions.
    draw(result, figure)   draws on a matplotlib figure that `style` has prepared, where the item has a picture.

Items import torch, lm-eval and matplotlib inside these functions: `t2 paper --list` needs none of them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from t2eval.errors import UsageError, unknown

if TYPE_CHECKING:
    from t2eval.paper.claims import Claim
    from t2eval.paper.lab import Lab

Columns = Mapping[str, Mapping[str, str]]
"""Header → row label → the cell's text."""


class Unavailable(UsageError):
    """The preset lacks what an item is about. A report of all items says so, and is no less complete."""


@dataclass(frozen=True)
class Reported:
    """What the paper reports for an item.

    Attributes:
        model: whose figures `columns` are.
        columns: header → row label → text. A row label that our columns have too shares its row.
        others: further base models → their columns; each is a table of its own.
        text: what a figure without numbers shows, in words.
        slips: errors in the paper's own figures, one sentence each.
    """

    model: str
    columns: Columns = field(default_factory=dict)
    others: Mapping[str, Columns] = field(default_factory=dict)
    text: str = ""
    slips: tuple[str, ...] = ()

    def figure(self, head: str, label: str, model: str = "") -> float | None:
        """One of the paper's figures; None where it has none.

        Args:
            head, label: of `columns`.
            model: the name of the base model: of one of `others` the figure is taken from there.
        """
        columns = next((found for name, found in self.others.items() if model.endswith(name)), self.columns)
        text = columns.get(head, {}).get(label, "")
        found = re.match(r"\d+(\.\d+)?", text)
        return float(found.group()) if found else None


@dataclass(frozen=True)
class Result:
    """What an item's experiment gave.

    Attributes:
        rows: JSON values, one mapping a line of `rows.jsonl`.
        claims: what the paper says, held against our data.
        notes: n, seeds, what was trained for this item and what was shipped, one sentence each.
    """

    rows: tuple[Mapping[str, Any], ...]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One table or figure.

    Attributes:
        name: `table1`, `figure4`, …
        title: a line.
        measures: what is measured, in a sentence.
        reported: the paper's figures.
        run: the experiment.
        ours: our columns of the table.
        draw: the picture: (result, matplotlib figure); None where there is none.
        size: the picture's width and height in inches.
        presets: those that it is for; empty: all.
    """

    name: str
    title: str
    measures: str
    reported: Reported
    run: Callable[[Lab], Result]
    ours: Callable[[Result], Columns]
    draw: Callable[[Result, Any], None] | None = None
    size: tuple[float, float] = (6.4, 4.0)
    presets: tuple[str, ...] = ()


@functools.cache
def items() -> dict[str, Item]:
    """All items by name: tables before figures, each by number."""
    from t2eval.paper import items as folder

    modules = [importlib.import_module(f"{folder.__name__}.{module.name}") for module in pkgutil.iter_modules(folder.__path__)]
    found = [item for module in modules for item in module.ITEMS]
    return {item.name: item for item in sorted(found, key=lambda item: _order(item.name))}


def _order(name: str) -> tuple[bool, int]:
    number = re.search(r"\d+", name)
    return not name.startswith("table"), int(number.group()) if number else 0


def of_preset(name: str) -> list[Item]:
    """The items that are for a preset, whether it carries them or not."""
    return [entry for entry in items().values() if not entry.presets or name in entry.presets]


def item(name: str) -> Item:
    """One item.

    Raises:
        UsageError: no such item.
    """
    if name not in items():
        raise unknown("item", name, items())
    return items()[name]
