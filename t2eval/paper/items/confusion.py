"""Figure 6: how dispatch sorts the questions of the unseen tasks, by prompt and by the classification expert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from t2eval.paper.claims import Claim, judge, tested
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.items.scores import mixed_notes
from t2eval.paper.lab import Cells, Lab
from t2eval.paper.markdown import short
from t2eval.paper.presets import SKILLS
from t2eval.stats.means import average_seeds
from t2eval.stats.paired import paired

METHODS = ("prompt", "cls")
OTHERS = "others"


def confusion(truth: Sequence[str], chosen: Sequence[str]) -> dict[str, dict[str, float]]:
    """Shares of the chosen labels for each true one; each true label's shares sum to 1.

    Args:
        truth: the skill of each question.
        chosen: the label that dispatch gave it, in the same order.
    """
    counts = Counter(zip(truth, chosen, strict=True))
    totals = Counter(truth)
    labels = [*SKILLS, OTHERS]
    return {true: {label: counts[true, label] / totals[true] for label in labels} for true in dict.fromkeys(truth)}


def _named(label: str | None) -> str:
    return label if label in SKILLS else OTHERS


def _right(cells: Cells, method: str, task: str, skill: str) -> dict[str, float]:
    """Example → whether dispatch chose the task's skill, averaged over the seeds."""
    runs = [{sample.doc_hash: float(sample.dispatch == skill) for sample in samples} for samples in cells.samples(method, task)]
    return average_seeds(runs)


def run(lab: Lab) -> Result:
    """The labels that both strategies gave to the questions of the unseen tasks."""
    tasks = lab.preset.unseen
    cells = lab.strategies(METHODS, tuple(tasks.values()))
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        for skill, task in tasks.items():
            given = [_named(sample.dispatch) for samples in cells.samples(method, task) for sample in samples]
            shares = confusion([skill] * len(given), given)[skill]
            rows.append(
                {"method": method, "skill": skill, "task": task, "n": cells.of(method, task)[0].n, "decisions": len(given), **shares}
            )
    claims = [
        tested(
            f"cls chooses the right skill more often than prompt on {short(task)}",
            paired(_right(cells, "cls", task, skill), _right(cells, "prompt", task, skill)),
        )
        for skill, task in tasks.items()
    ]
    pooled = "The decisions of all seeds are pooled (the library's classification expert differs between them); "
    note = f"{pooled if len(lab.preset.mixed_seeds) > 1 else ''}`others` is the base weights."
    return Result(tuple(rows), (*judge(claims), *(_diagonal(row) for row in rows)), (note, *mixed_notes(lab)))


def _diagonal(row: Mapping[str, Any]) -> Claim:
    best = max((*SKILLS, OTHERS), key=lambda label: float(row[label]))
    text = f"{row['method']} chooses {row['skill']} most often for {short(row['task'])}"
    return Claim(text=text, holds=best == row["skill"], seen=f"{best}, {row[best]:.1%}")


def ours(result: Result) -> Columns:
    """One column a chosen label."""
    return {
        f"chosen: {label}": {f"{row['method']}, {short(row['task'])} (n={row['n']})": f"{row[label]:.1%}" for row in result.rows}
        for label in (*SKILLS, OTHERS)
    }


def draw(result: Result, figure: Any) -> None:
    """One matrix a strategy, each cell with its number."""
    panels = figure.subplots(1, len(METHODS), sharey=True)
    labels = (*SKILLS, OTHERS)
    for panel, method in zip(panels, METHODS, strict=True):
        own = [row for row in result.rows if row["method"] == method]
        values = [[float(row[label]) for label in labels] for row in own]
        shown = panel.imshow(values, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        for line, row in enumerate(values):
            for place, value in enumerate(row):
                panel.text(place, line, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.55 else "black")
        panel.set_xticks(range(len(labels)), labels)
        panel.set_yticks(range(len(own)), [f"{short(row['task'])}\n(n={row['n']})" for row in own])
        panel.set_title(method)
        panel.set_xlabel("chosen label")
        panel.grid(False)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    figure.colorbar(shown, ax=panels, shrink=0.9, label="share of questions")


ITEMS = (
    Item(
        name="figure6",
        title="How dispatch sorts questions",
        measures="For each unseen task (a row), the share of its questions that dispatch gave to each label, by prompt and by the "
        "classification expert.",
        reported=Reported(
            model="Llama-3-8B-Instruct",
            text="The diagonals hold the highest shares, for the classification expert more than for the prompt, on both 7B to 8B "
            "models; some "
            "questions go to `others`.",
        ),
        run=run,
        ours=ours,
        draw=draw,
        size=(8.0, 2.8),
    ),
)
