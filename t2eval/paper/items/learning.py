"""Figure 4: SVF's learning curves.

1. The paper draws test scores. Ours are validation scores, so that the picture is not a look at the test items; the chosen checkpoint's
   test score is in the table.
2. Where the preset's seen tasks are scored by their choices, the generated form that the paper trains on may stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from t2eval.paper.claims import Side, better, judge
from t2eval.paper.curves import draw_base, draw_chosen, draw_curve, points
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.lab import Cells, Lab, Training
from t2eval.paper.markdown import score, short
from t2eval.training.log import LOG, read_log


@dataclass(frozen=True)
class _Curve:
    """A task, the trainings on it, and the cells that have the base's and the experts' test scores.

    Attributes:
        head: the task's name in the table and over its panel.
    """

    head: str
    skill: str
    task: str
    trainings: tuple[Training, ...]
    base: Cells
    trained: Cells


def _seen(lab: Lab) -> list[_Curve]:
    """The seen tasks, by the preset's own recipes."""
    preset = lab.preset
    tasks = tuple(preset.seen.values())
    trainings = {skill: tuple(lab.training("svf", skill, seed) for seed in preset.seeds) for skill in preset.seen}
    lab.train([training for group in trainings.values() for training in group])
    base = lab.cells(["base"], tasks)
    # Where nothing is shipped these are the experts of the shared study.
    own: dict[str, Any] = {"study": "svf", "experts": str(lab.folder("svf"))} if preset.shipped else {}
    trained = lab.cells(["expert"], tasks, **own)
    return [_Curve(short(task), skill, task, trainings[skill], base, trained) for skill, task in preset.seen.items()]


def _generated(lab: Lab) -> list[_Curve]:
    """The generated form of seen tasks, where the preset's own have another and a benchmark file trains on it."""
    bench = lab.preset.generated
    if bench is None:
        return []
    name = "generated"
    trainings = {task: tuple(lab.training_by(bench, name, bench.labels[task], seed) for seed in bench.seeds) for task in bench.tasks}
    lab.train([training for group in trainings.values() for training in group])
    own = bench.model_dump(include={"labels", "limit", "batch_size", "apply_chat_template"})
    cells = lab.cells(bench.methods, bench.tasks, study=name, seeds=bench.seeds, experts=str(lab.folder(name)), **own)
    return [_Curve(f"{short(task)}, generated", bench.labels[task], task, trainings[task], cells, cells) for task in bench.tasks]


def _sampled(training: Training, head: str) -> str:
    """What the first and the last step of a training sampled."""
    steps = read_log(training.output / LOG)
    first, last = (
        f"{row['accuracy']:.1%} right, {row['truncated']:.1%} cut off, {row['tokens']:.0f} tokens long" for row in (steps[0], steps[-1])
    )
    return f"{head}, seed {training.seed}: of the answers that a step sampled {first} in step 1; {last} in step {steps[-1]['step']}."


def run(lab: Lab) -> Result:
    """Train SVF experts for the seen tasks and score the checkpoints that validation chose."""
    rows: list[dict[str, Any]] = []
    claims = []
    generated = _generated(lab)
    for curve in [*_seen(lab), *generated]:
        what = {"head": curve.head, "skill": curve.skill, "task": curve.task}
        rows += [{"kind": "validation", **row} for training in curve.trainings for row in points(training, **what)]
        scored = ((curve.base, "base"), (curve.trained, "expert"))
        rows += [{"kind": "test", **what, **cells.summary(method, curve.task)} for cells, method in scored]
        svf, plain = (cells.examples(method, curve.task) for cells, method in reversed(scored))
        claims.append(better(Side("SVF's chosen checkpoint", svf), Side("the base", plain), f"on {curve.head}"))
    steps = max(row["step"] for row in rows if row["kind"] == "validation")
    text = f"All experts of this figure were trained here, up to {steps} steps of policy gradient each; tests are on test items."
    notes = (_sampled(training, curve.head) for curve in generated for training in curve.trainings)
    return Result(tuple(rows), judge(claims), (text, *notes))


def ours(result: Result) -> Columns:
    """Validation and test score of the base and of the chosen checkpoints."""
    found: dict[str, dict[str, str]] = {}
    for row in result.rows:
        label = row["head"]
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
    heads = list(dict.fromkeys(row["head"] for row in rows))
    axes = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    for place, (panel, head) in enumerate(zip(axes, heads, strict=True)):
        own = [row for row in rows if row["head"] == head]
        seeds = len({row["seed"] for row in own})
        draw_base(panel, own)
        draw_curve(panel, own, 0, "SVF" if seeds == 1 else f"SVF, mean and range of {seeds} seeds")
        draw_chosen(panel, own, 0)
        panel.set_title(f"{head} (n={own[0]['n']}{', one seed' if seeds == 1 else ''})")
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
