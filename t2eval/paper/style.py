"""Style: how every picture of the paper's items looks, in colour, in grey and to the colour-blind.

Series differ by colour (Okabe and Ito's, which the colour-blind tell apart), by line style, by marker and by hatch, so that no
difference rests on colour alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo")
BASE: dict[str, Any] = {"color": "0.25", "linestyle": (0, (4, 2)), "linewidth": 1.1, "zorder": 1}
"""How the base model's score is drawn: a thin dashed line."""
ERRORS: dict[str, Any] = {"ecolor": "black", "elinewidth": 1.0, "capsize": 2.5, "capthick": 1.0}
"""How a bar's standard error is drawn (`error_kw`)."""

_RC = {
    "figure.dpi": 130,
    "savefig.dpi": 130,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
}


def line(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the index-th series of lines."""
    return {"color": COLOURS[index % 7], "linestyle": LINES[index % 7], "marker": MARKERS[index % 7]}


def bar(index: int) -> dict[str, Any]:
    """Colour and hatch of the index-th series of bars."""
    return {"color": COLOURS[index % 7], "hatch": HATCHES[index % 7], "edgecolor": "white", "linewidth": 0.5}


def picture(path: Path, draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 4.0)) -> None:
    """Write a PNG, whole or not at all.

    Args:
        path: of the PNG.
        draw: draws on the matplotlib figure that it is given.
        size: width and height in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    staging = path.with_name(f".unfinished-{path.name}")
    with pyplot.rc_context(_RC):
        figure = pyplot.figure(figsize=size, layout="constrained")
        try:
            draw(figure)
            figure.savefig(staging, format="png", metadata={"Software": None})
            os.replace(staging, path)
        finally:
            pyplot.close(figure)
            staging.unlink(missing_ok=True)
