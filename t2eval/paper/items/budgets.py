"""Budgets: table 10, what a search costs and what it brings, from the paper's full budget to a light one.

Deviations from the paper:
1. A search that has converged stops before its last iteration, so the number of candidates is measured, not computed. Where that makes two
   budgets the same search, one of them is compared with the others, and a lighter one is added.
2. t2eval's own default is added as a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2eval.paper.claims import Claim, Side, better, judge
from t2eval.paper.item import Columns, Item, Reported, Result, item
from t2eval.paper.markdown import score, short

if TYPE_CHECKING:
    from t2eval.paper.lab import Cells, Lab

BASE = "base"
PAPER_TASK = "ARC-Challenge"


@dataclass(frozen=True)
class Budget:
    """One size of a search. Without iterations it is t2eval's default."""

    label: str
    shots: int
    iterations: int | None = None

    @property
    def study(self) -> str:
        return f"budget-{self.shots}-shots-{self.iterations or 'default'}"

    @property
    def model_args(self) -> dict[str, Any]:
        search = {} if self.iterations is None else {"preset": "paper", "iterations": self.iterations}
        return {"fewshot": {"shots": self.shots, **search}}


_FULL = (
    Budget("CEM, 10 shots", 10, 100),
    Budget("CEM, 3 shots", 3, 100),
    Budget("CEM light, 3 shots, 10 iterations", 3, 10),
    Budget("CEM lighter, 3 shots, 3 iterations", 3, 3),
    Budget("t2eval's default, 10 shots", 10),
)
_QUICK = (
    Budget("CEM, 10 shots, 4 iterations", 10, 4),
    Budget("CEM, 3 shots, 4 iterations", 3, 4),
    Budget("CEM light, 3 shots, 2 iterations", 3, 2),
)
_SHORT = (
    Budget("CEM, 10 shots, 2 iterations", 10, 2),
    Budget("CEM, 3 shots, 2 iterations", 3, 2),
    Budget("CEM light, 3 shots, 1 iteration", 3, 1),
    _FULL[-1],
)
"""A CPU's size with a real model."""


def _budgets(lab: Lab) -> tuple[Budget, ...]:
    return _QUICK if lab.preset.quick else _SHORT if lab.preset.cpu_sized else _FULL


def _cells(lab: Lab, budget: Budget, tasks: Sequence[str]) -> Cells:
    from t2eval.strategies.fewshot import FewshotConfig

    seeds = lab.preset.costly_seeds
    if lab.preset.choosing is not None and budget.model_args["fewshot"] == {"shots": FewshotConfig().shots} and not lab.preset.search:
        return lab.strategies(["fewshot"], tasks, seeds=seeds)  # the very search of table 2
    return lab.strategies(["fewshot"], tasks, study=budget.study, seeds=seeds, model_args=budget.model_args)


def paper_search(lab: Lab, tasks: Sequence[str]) -> Cells:
    """Few-shot with the paper's full search (`quick`: with the largest budget there), on tasks of the preset."""
    return _cells(lab, _budgets(lab)[0], tasks)


def _row(budget: Budget, cells: Cells, task: str) -> dict[str, Any]:
    runs = cells.of("fewshot", task)
    spent = [(run.t2 or {})["adaptation"][task] for run in runs]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "budget": budget.label,
        **cells.summary("fewshot", task),
        "search": spent[0]["search"],
        "shots": budget.shots,
        "iterations": mean([each["iterations"] for each in spent]),
        "evaluations": mean([each["evaluations"] for each in spent]),
        "answers": mean([each["evaluations"] * each["examples"] for each in spent]),
        "first_pass_seconds": mean([float(run.first_pass_seconds or 0) for run in runs]),
    }


def _run(lab: Lab) -> Result:
    task = lab.preset.unseen["reasoning"]
    base = lab.cells(["base"], [task])
    found = {budget: _cells(lab, budget, [task]) for budget in _budgets(lab)}
    rows = [{"budget": BASE, **base.summary("base", task), "evaluations": 0, "answers": 0, "first_pass_seconds": 0.0}]
    rows += [_row(budget, cells, task) for budget, cells in found.items()]
    same = _same(rows)
    scores = {budget: cells.examples("fewshot", task) for budget, cells in found.items()}
    claims = _claims(lab, task, base.examples("base", task), {budget: own for budget, own in scores.items() if budget.label not in same})
    full = next(iter(found))
    notes = (
        f"Task {task}; draws of examples and training seeds {', '.join(str(row.seed) for row in found[full].of('fewshot', task))}.",
        *(("The paper's searches have 100 iterations, its light one 10; these are a CPU's size.",) if lab.preset.cpu_sized else ()),
        *("t2eval's default is not in the paper, nor are the claims about it." for budget in found if budget.iterations is None),
        *(
            f"{other!r} is the same search as {label!r} here: each of its runs converges before. It is tested once."
            for other, label in same.items()
        ),
        "Seconds are of this machine and its load; candidates are evaluated together as rows of a batch where that is faster.",
    )
    return Result(rows=tuple(rows), claims=judge(claims), notes=notes)


def _same(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Budget → an earlier one whose searches were the same: as many shots, and as many candidates, since all runs had converged."""
    first: dict[tuple[Any, ...], str] = {}
    found = {}
    for row in rows:
        key = row.get("search"), row.get("shots"), row["evaluations"], row["score"]
        if key in first:
            found[str(row["budget"])] = first[key]
        first.setdefault(key, str(row["budget"]))
    return found


def _claims(lab: Lab, task: str, base: Mapping[str, float], scores: Mapping[Budget, Mapping[str, float]]) -> list[Claim]:
    """Each budget against the base and against the full one; t2eval's default, a question of ours, comes first."""
    reported = item("table10").reported

    def side(label: str, own: Mapping[str, float], name: str = "") -> Side:
        return Side(name or label, own, reported.figure(PAPER_TASK, label, lab.preset.model))

    sides = {budget: side(budget.label, own) for budget, own in scores.items()}
    full, *others = sides
    pairs = [(budget, full) if budget.iterations is None else (full, budget) for budget in others]
    claims = [better(own, side(BASE, base, "the base"), f"on {short(task)}") for own in sides.values()]
    return claims + [better(sides[a], sides[b], f"on {short(task)}") for a, b in pairs]


def _ours(result: Result) -> Columns:
    columns: dict[str, dict[str, str]] = {head: {} for head in ("score", "candidates", "answers in the search", "seconds of the search")}
    for row in result.rows:
        label = str(row["budget"])
        columns["score"][label] = score(row)
        columns["candidates"][label] = f"{row['evaluations']:.0f}"
        columns["answers in the search"][label] = f"{row['answers']:.0f}"
        columns["seconds of the search"][label] = f"{row['first_pass_seconds']:.1f}"
    return columns


ITEMS = (
    Item(
        name="table10",
        title="What few-shot search costs",
        measures="The score of few-shot adaptation with full to light search budgets, and what each spends.",
        reported=Reported(
            model="Llama-3-8B-Instruct",
            columns={
                PAPER_TASK: {
                    BASE: "80.63",
                    "CEM, 10 shots": "82.61",
                    "CEM, 3 shots": "82.18",
                    "CEM light, 3 shots, 10 iterations": "82.08",
                },
                "answers": {"CEM, 10 shots": "100%", "CEM, 3 shots": "30%", "CEM light, 3 shots, 10 iterations": "3% (some 11 minutes)"},
            },
        ),
        run=_run,
        ours=_ours,
    ),
)
