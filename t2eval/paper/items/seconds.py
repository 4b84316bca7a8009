"""Table 3: what the first pass costs beside the second.

1. The paper generates the dispatch answer. By default we score the labels behind a shared prefix (`dispatch=score`); both are timed.
"""

from __future__ import annotations

from typing import Any

from t2eval.paper.claims import Claim
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.lab import Lab
from t2eval.paper.markdown import short

MODES = ("score", "generate")
_SHORT = 64
"""Tokens of a generated answer at a CPU's size."""
_PAPER_TASKS = {"math": "MATH", "code": "HumanEval", "reasoning": "ARC-Challenge"}


def run(lab: Lab) -> Result:
    """The prompt strategy on the unseen tasks, with both ways to dispatch."""
    tasks = lab.preset.unseen
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        short = {"dispatch_tokens": _SHORT} if lab.preset.cpu_sized else {}
        own: dict[str, Any] = (
            {} if mode == "score" else {"study": f"dispatch-{mode}", "model_args": {"prompt": {"dispatch": mode, **short}}}
        )
        cells = lab.strategies(["prompt"], tuple(tasks.values()), seeds=lab.preset.costly_seeds, **own)
        for skill, task in tasks.items():
            found = cells.of("prompt", task)
            row: dict[str, Any] = {"dispatch": mode, "skill": skill, "task": task, "n": found[0].n, "runs": len(found)}
            for number, name in (("first", "first_pass"), ("second", "second_pass")):
                passes = [(seed.t2 or {})[name] for seed in found]
                row[f"{number}_seconds"] = sum(part["seconds"] for part in passes) / len(passes)
                row[f"{number}_tokens"] = sum(part["tokens"] for part in passes) / len(passes)
            rows.append({**row, "ratio": row["first_seconds"] / row["second_seconds"]})
    claims = tuple(_shorter(row) for row in rows)
    runs = "one run" if rows[0]["runs"] == 1 else f"the mean of {rows[0]['runs']} runs"
    once = f"Seconds and tokens are for all n questions, {runs} on this machine, with other cells beside them; they are not tested."
    cut = (f"A generated answer ends after {_SHORT} tokens at the latest; the paper's limit is 1024.",) if lab.preset.cpu_sized else ()
    return Result(tuple(rows), claims, (once, *cut, "Tokens are those that the model read and wrote in that pass, without padding."))


def _shorter(row: dict[str, Any]) -> Claim:
    text = f"with dispatch={row['dispatch']}, the first pass takes less time than the second on {short(row['task'])}"
    return Claim(text=text, holds=row["ratio"] < 1, seen=f"{row['ratio']:.0%} of it")


def _label(skill: str) -> str:
    return f"{skill} ({_PAPER_TASKS[skill]})"


def ours(result: Result) -> Columns:
    """Seconds, their ratio, and tokens, for each way to dispatch."""
    found: dict[str, dict[str, str]] = {}
    for row in result.rows:
        label, mode = _label(row["skill"]), row["dispatch"]
        found.setdefault("n", {})[label] = str(row["n"])
        found.setdefault(f"{mode}: 1st pass, s", {})[label] = f"{row['first_seconds']:.2f} ({row['ratio']:.0%})"
        found.setdefault(f"{mode}: 2nd pass, s", {})[label] = f"{row['second_seconds']:.2f}"
        found.setdefault(f"{mode}: tokens, 1st / 2nd", {})[label] = f"{row['first_tokens']:.0f} / {row['second_tokens']:.0f}"
    return found


ITEMS = (
    Item(
        name="table3",
        title="The time of the two passes",
        measures="Seconds of the first and of the second pass of the prompt strategy over each unseen task, and their ratio.",
        reported=Reported(
            model="Llama-3-8B-Instruct",
            columns={
                "1st pass, s": {_label("math"): "42.64 (13%)", _label("code"): "2.76 (19%)", _label("reasoning"): "13.40 (47%)"},
                "2nd pass, s": {_label("math"): "321.19", _label("code"): "14.28", _label("reasoning"): "28.51"},
            },
        ),
        run=run,
        ours=ours,
    ),
)
