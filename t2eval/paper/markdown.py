"""Markdown: tables in which our figures and the paper's stand beside each other, each in columns of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from t2eval.paper.item import Columns

NONE = "–"


def score(row: Mapping[str, Any]) -> str:
    """A score with its standard error, as a table shows it."""
    value, error = row.get("score"), row.get("stderr")
    if value is None:
        return NONE
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def short(task: str) -> str:
    """A task's name without its prefix, for headers."""
    return task.removeprefix("embedded_").removeprefix("t2_")


def spread(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the scores of a table are, and how far the seeds' lie apart (`seed_std` of the rows)."""
    known = [float(row["seed_std"]) for row in rows if row.get("seed_std") is not None]
    what = "Scores are means over the training seeds; ± is the standard error over test examples"
    return f"{what}; the standard deviation between seeds is at most {max(known):.3f}." if known else f"{what} (one seed)."


def table(columns: Columns) -> str:
    """A Markdown table.

    Args:
        columns: header → row label → text. Rows come in the order in which the columns first name them.
    """
    labels = list(dict.fromkeys(label for cells in columns.values() for label in cells))
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[label, *(cells.get(label, NONE) for cells in columns.values())] for label in labels]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def beside(ours: Columns, reported: Columns, model: str) -> dict[str, Mapping[str, str]]:
    """Our columns and the paper's, each header saying whose it is."""
    return {f"ours: {head}": cells for head, cells in ours.items()} | {f"paper, {model}: {head}": cells for head, cells in reported.items()}
