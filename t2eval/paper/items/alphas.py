"""Alphas: figure 7, what few-shot search gives each expert on each unseen task, with the even mix as a control.

Deviations from the paper:
1. The paper shows one α a task and model; here there is one for each training seed and draw of examples, and the spread is shown.
2. The paper reports the even mix on one task; here it is scored on all.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.paper.claims import Claim, Side, better, judge
from t2eval.paper.item import Columns, Item, Reported, Result, item
from t2eval.paper.items.scores import mixed_notes
from t2eval.paper.markdown import score, short
from t2eval.paper.presets import PAPER_UNSEEN

if TYPE_CHECKING:
    from t2eval.paper.lab import Lab

EVEN = "even mix"


def _even(lab: Lab) -> str:
    """Libraries of even mixes."""
    from t2eval.paper.derived import Deriving, skills, write_library

    template = lab.mixed_library()
    folder = (lab.output / "derived" / "even").resolve()
    libraries = {seed: skills(Path(template.replace("{seed}", str(seed)))) for seed in lab.preset.mixed_seeds}
    deriving = Deriving(lab.preset.model, next(iter(libraries.values())))
    for seed, experts in libraries.items():
        write_library(folder / f"seed-{seed}", functools.partial(deriving.even, experts))
    return str(folder / "seed-{seed}")


def _normalised(alphas: list[Any]) -> list[float]:
    """α of each expert, averaged over layers where there is one a layer, divided by their sum (0 where all are 0)."""
    rows = alphas if isinstance(alphas[0], list) else [alphas]
    means = [sum(float(row[expert]) for row in rows) / len(rows) for expert in range(len(rows[0]))]
    total = sum(means)
    return [value / total if total > 0 else 0.0 for value in means]


def _run(lab: Lab) -> Result:
    reported = item("figure7").reported
    tasks = {task: skill for skill, task in lab.preset.unseen.items()}
    base_cells, main = lab.cells(["base"], list(tasks)), lab.strategies(["fewshot"], list(tasks))
    even = lab.strategies(["expert"], list(tasks), study="even-mix", experts=_even(lab))
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    for task, skill in tasks.items():
        names: list[str] = []
        for run in main.of("fewshot", task):
            t2 = run.t2 or {}
            names = [str(name) for name in t2["alpha_order"]]
            found = dict(zip(names, t2["alphas"][task], strict=False)) if not isinstance(t2["alphas"][task][0], list) else {}
            shares = dict(zip(names, _normalised(t2["alphas"][task]), strict=True))
            rows.append({"kind": "alphas", "task": task, "skill": skill, "seed": run.seed, "alphas": found, "normalised": shares})
        for way, cells, method in (("base", base_cells, "base"), ("few-shot", main, "fewshot"), (EVEN, even, "expert")):
            rows.append({"kind": "score", "way": way, **cells.summary(method, task)})
        few = Side("few-shot", main.examples("fewshot", task), reported.figure("few-shot", PAPER_UNSEEN[skill]))
        mix = Side(f"the {EVEN}", even.examples("expert", task), reported.figure(EVEN, PAPER_UNSEEN[skill]))
        base = Side("the base", base_cells.examples("base", task))
        claims += [better(few, mix, f"on {short(task)}"), better(mix, base, f"on {short(task)}")]
    claims = list(judge(claims))
    claims += [_largest(rows, task, skill) for task, skill in tasks.items()]
    already = "" if lab.preset.searches_as_paper else " (which t2eval's default search divides already)"
    notes = (
        f"α is divided by its sum for the picture, as in the paper; the rows have it as found{already}.",
        "The paper has no figure for the even mix on the other two tasks.",
        *mixed_notes(lab),
    )
    return Result(rows=tuple(rows), claims=tuple(claims), notes=notes)


def _largest(rows: list[dict[str, Any]], task: str, skill: str) -> Claim:
    """Whether the expert of the task's own skill has the largest mean α; on the unseen math task the least, as the paper has it."""
    shares = [row["normalised"] for row in rows if row["kind"] == "alphas" and row["task"] == task]
    means = {name: sum(share[name] for share in shares) / len(shares) for name in shares[0]}
    seen = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
    extreme, how = (min, "least") if skill == "math" else (max, "most")
    return Claim(
        text=f"the expert of the task's own theme contributes {how} on {short(task)}",
        holds=skill in extreme(means, key=means.__getitem__),
        seen=f"mean of {len(shares)}: {seen}",
    )


def _ours(result: Result) -> Columns:
    columns: dict[str, dict[str, str]] = {}
    for row in result.rows:
        if row["kind"] == "score":
            columns.setdefault(str(row["way"]), {})[short(str(row["task"]))] = score(row)
    for task in dict.fromkeys(str(row["task"]) for row in result.rows):
        shares = [row["normalised"] for row in result.rows if row["kind"] == "alphas" and row["task"] == task]
        for name in shares[0]:
            values = [share[name] for share in shares]
            spread = f" ({min(values):.2f} – {max(values):.2f})" if len(values) > 1 else ""
            columns.setdefault(f"α of {name}", {})[short(task)] = f"{sum(values) / len(values):.2f}{spread}"
    return columns


def _draw(result: Result, figure: Any) -> None:
    from t2eval.paper.style import BASE, bar

    found = [row for row in result.rows if row["kind"] == "alphas"]
    tasks = list(dict.fromkeys(row["task"] for row in found))
    names = list(found[0]["normalised"])
    axes = figure.subplots()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        for place, task in enumerate(tasks):
            values = [row["normalised"][name] for row in found if row["task"] == task]
            x = place + (index - (len(names) - 1) / 2) * width
            label = f"{name} expert" if place == 0 else None
            axes.bar(x, sum(values) / len(values), width * 0.92, label=label, **bar(index))
            axes.plot([x] * len(values), values, linestyle="none", marker="o", markersize=3, color="black", markerfacecolor="white")
    axes.axhline(1 / len(names), label=EVEN, **BASE)
    runs = len(found) // len(tasks)
    axes.set(
        ylabel=f"α / Σα (bars: mean, dots: each run, n = {runs})",
        ylim=(0, 1.02),
        xticks=range(len(tasks)),
        xticklabels=[short(task) for task in tasks],
    )
    axes.legend(ncols=len(names) + 1, loc="lower center", bbox_to_anchor=(0.5, 1.0))


ITEMS = (
    Item(
        name="figure7",
        title="Learned α on each unseen task",
        measures="The share of each expert in z' that few-shot search finds, and the even mix of all experts as a control.",
        reported=Reported(
            model="Llama-3-8B-Instruct",
            columns={"few-shot": {"MATH": "25.47"}, EVEN: {"MATH": "24.47"}, "base": {"MATH": "24.54"}},
            text=(
                "experts of a similar theme contribute most, except that the GSM8K expert has the least α on MATH; "
                "Llama's α are more even than Mistral's."
            ),
        ),
        run=_run,
        ours=_ours,
        draw=_draw,
    ),
)
