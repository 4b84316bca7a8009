"""Learning curve: one picture of a run, drawn by the product itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(path: Path, *, title: str, metric: str, points: Sequence[dict[str, Any]], chosen: int, batches: Sequence[dict[str, Any]]) -> None:
    """Write a PNG: validation scores with standard errors, the base model's (dashed), the chosen checkpoint, and the batches' accuracy.

    Args:
        path: of the PNG.
        title: above the picture.
        metric: of the scores.
        points: validations, each with `step`, `score`, `stderr`, `n`; the one of step 0 is the base model.
        chosen: the step of the checkpoint that became the expert.
        batches: rows of the log with `step` and, for reinforce, `accuracy`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), dpi=120)
    accuracy = [(row["step"], row["accuracy"]) for row in batches if "accuracy" in row]
    if accuracy:
        axes.plot(*zip(*accuracy, strict=True), color="0.8", linewidth=1, label="rollouts, right answers", zorder=1)
    trained = [point for point in points if point["step"] > 0]
    for point in points:
        if point["step"] == 0:
            axes.axhline(point["score"], color="0.3", linestyle="--", linewidth=1, label=f"base model, {point['score']:.3f}")
    if trained:
        axes.errorbar(
            [point["step"] for point in trained],
            [point["score"] for point in trained],
            yerr=[point["stderr"] or 0.0 for point in trained],
            marker="o",
            markersize=3,
            capsize=2,
            linewidth=1.2,
            color="tab:blue",
            label="validation ± standard error",
        )
    best = next((point for point in points if point["step"] == chosen), None)
    if best is not None:
        label = f"chosen: step {chosen}, {best['score']:.3f}"
        axes.plot(chosen, best["score"], marker="*", markersize=14, color="tab:orange", linestyle="none", label=label)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"{metric}, validation (n = {points[0]['n'] if points else 0})")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
