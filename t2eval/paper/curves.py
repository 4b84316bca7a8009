"""Curves: the validation scores of finished trainings, step by step, from the logs that they left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2eval.paper import style
from t2eval.paper.lab import Training
from t2eval.training.log import LOG, read_log


def validated(folder: Path) -> list[dict[str, Any]]:
    """The steps of a training's log that have a validation score, in order; `folder` is the training's."""
    return [row for row in read_log(folder / LOG) if "validation" in row]


def points(training: Training, **labels: Any) -> list[dict[str, Any]]:
    """The validations of a finished training; step 0 is the base model.

    Args:
        training: finished.
        labels: put into each row.

    Returns:
        Rows with `seed`, `step`, `score`, `stderr` (of a share of n right answers), `n`, `chosen` (the checkpoint that was kept).
    """
    record = training.record
    before = record["scores"]["before"]["validation"]
    n = int(before["n"])
    logged = [(int(row["step"]), float(row["validation"])) for row in validated(training.output)]
    common = {**labels, "seed": training.seed, "n": n}
    base = {**common, "step": 0, "score": before["score"], "stderr": before["stderr"], "chosen": record["chosen_step"] == 0}
    return [base] + [
        {**common, "step": step, "score": value, "stderr": _stderr(value, n), "chosen": step == record["chosen_step"]}
        for step, value in logged
    ]


def _stderr(share: float, n: int) -> float | None:
    return math.sqrt(max(0.0, share * (1 - share)) / (n - 1)) if n > 1 else None


def mean_curve(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float, float]]:
    """(step, mean over seeds, least, greatest), for the steps that every seed has."""
    seeds = {row["seed"] for row in rows}
    found = []
    for step in sorted({int(row["step"]) for row in rows}):
        scores = [float(row["score"]) for row in rows if row["step"] == step]
        if len(scores) == len(seeds):
            found.append((step, sum(scores) / len(scores), min(scores), max(scores)))
    return found


def draw_curve(axes: Any, rows: Sequence[Mapping[str, Any]], index: int, label: str) -> None:
    """One series: the mean over seeds as a line, the seeds' range as a band.

    Args:
        axes: matplotlib's.
        rows: from `points`, of all seeds of one series.
        index: which series, for `style.line`.
        label: for the legend.
    """
    curve = mean_curve(rows)
    steps = [step for step, *_ in curve]
    look = style.line(index)
    axes.plot(steps, [mean for _, mean, *_ in curve], label=label, **look)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len({row["seed"] for row in rows}) > 1:
        axes.fill_between(steps, [low for *_, low, _ in curve], [high for *_, high in curve], color=look["color"], alpha=0.15, linewidth=0)


def draw_chosen(axes: Any, rows: Sequence[Mapping[str, Any]], index: int) -> None:
    """Stars on the checkpoints that validation chose; `axes`, `rows` and `index` as for `draw_curve`."""
    stars = [row for row in rows if row["chosen"]]
    look = {"marker": "*", "markersize": 11, "markerfacecolor": "white", "markeredgecolor": style.line(index)["color"], "zorder": 4}
    axes.plot([row["step"] for row in stars], [row["score"] for row in stars], linestyle="none", label="chosen checkpoint", **look)


def draw_base(axes: Any, rows: Sequence[Mapping[str, Any]], label: str | None = "base") -> None:
    """The base model's validation score as a thin dashed line."""
    axes.axhline(next(float(row["score"]) for row in rows if row["step"] == 0), label=label, **style.BASE)
