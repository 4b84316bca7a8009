"""Figure 4: SVF's learning curves.

1. The paper draws test scores. Ours are validation scores, so that the picture is not a look at the test items; the chosen checkpoint's
   test score is in the table.
"""

from __future__ import annotations

from typing import Any

from t2eval.paper.claims import Side, better, judge
from t2eval.paper.curves import draw_base, draw_chosen, draw_curve, points
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.lab import Lab
from t2eval.paper.markdown import score, short


def run(lab: Lab) -> Result:
    """Train SVF experts for the seen tasks and score the checkpoints that validation chose."""
    preset = lab.preset
    trainings = {skill: [lab.training("svf", skill, seed) for seed in preset.seeds] for skill in preset.seen}
    lab.train([training for group in trainings.values() for training in group])
    rows: list[dict[str, Any]] = []
    claims = []
    base = lab.cells(["base"], tuple(preset.seen.values()))
    # Where nothing is shipped these are the experts of the shared study.
    own: dict[str, Any] = {"study": "svf", "experts": str(lab.folder("svf"))} if preset.shipped else {}
    trained = lab.cells(["expert"], tuple(preset.seen.values()), **own)
    for skill, task in preset.seen.items():
        rows += [{"kind": "validation", **row} for training in trainings[skill] for row in points(training, skill=skill, task=task)]
        rows += [{"kind": "test", "skill": skill, **cells.summary(method, task)} for cells, method in ((base, "base"), (trained, "expert"))]
        svf, plain = Side("SVF's chosen checkpoint", trained.examples("expert", task)), Side("the base", base.examples("base", task))
        claims.append(better(svf, plain, f"on {short(task)}"))
    steps = max(row["step"] for row in rows if row["kind"] == "validation")
    text = f"All experts of this figure were trained here, up to {steps} steps of policy gradient each; tests are on test items."
    return Result(tuple(rows), judge(claims), (text,))


def ours(result: Result) -> Columns:
    """Validation and test score of the base and of the chosen checkpoints."""
    found: dict[str, dict[str, str]] = {}
    for row in result.rows:
        label = short(row["task"])
        if row["kind"] == "test":
            head = "base, test" if row["method"] == "base" else "SVF, test"
            found.setdefault(f"{head} (n={row['n']})", {})[label] = score(row)
        elif row["chosen"]:
            cells = found.setdefault("chosen steps", {})
            cells[label] = ", ".join(filter(None, [cells.get(label), str(row["step"])]))
    return found


def draw(result: Result, figure: Any) -> None:
    """One panel a task."""
    rows = [row for row in result.rows if row["kind"] == "validation"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for place, (panel, task) in enumerate(zip(axes, tasks, strict=True)):
        own = [row for row in rows if row["task"] == task]
        seeds = len({row["seed"] for row in own})
        draw_base(panel, own)
        draw_curve(panel, own, 0, "SVF" if seeds == 1 else f"SVF, mean and range of {seeds} seeds")
        draw_chosen(panel, own, 0)
        panel.set_title(f"{short(task)} (n={own[0]['n']})")
        panel.set_xlabel("optimiser step")
        if place == 0:
            panel.set_ylabel("validation accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


ITEMS = (
    Item(
        name="figure4",
        title="SVF's learning curves",
        measures="Validation accuracy of SVF by policy gradient on the seen tasks, the base model's as a dashed line, and the "
        "checkpoint that "
        "validation chose.",
        reported=Reported(
            model="Llama-3-8B-Instruct",
            text="On each training task the test score rises above the base's dashed line; the best validation score chooses the "
            "checkpoint; the "
            "coding and reasoning runs stop early.",
        ),
        run=run,
        ours=ours,
        draw=draw,
        size=(8.4, 3.2),
    ),
)
