"""Evaluation: what one evaluation of a model chose and spent, `config.t2` of lm-eval's results file. Nothing of it is left for the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from t2eval.errors import listed
from t2eval.generation.usage import Usage


@dataclass
class Evaluation:
    """One evaluation of one model object.

    Attributes:
        after: its runs have higher numbers.
        last_run: the newest run that was recorded when it was first asked; a request of a newer one belongs to the next evaluation.
        first_pass, second_pass: seconds and tokens of this process.
        asked: the requests that this process's model was asked; those that lm-eval's response cache answered are not among them.
        totals: the records of all processes, once they have been shared.
    """

    after: int = 0
    last_run: int = 0
    first_pass: Usage = field(default_factory=Usage)
    second_pass: Usage = field(default_factory=Usage)
    asked: int = 0
    totals: list[dict[str, Any]] = field(default_factory=list)

    def record(self, report: dict[str, Any]) -> dict[str, Any]:
        """What this process gives to the others."""
        return {"report": report, "first": vars(self.first_pass).copy(), "second": vars(self.second_pass).copy(), "asked": self.asked}

    def passes(self, records: list[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
        """Seconds of the slowest process and tokens of all, by pass."""

        def total(name: str) -> dict[str, float | int]:
            return Usage(max(each[name]["seconds"] for each in records), sum(each[name]["tokens"] for each in records)).record()

        return {"first_pass": total("first"), "second_pass": total("second")}


def closing_line(info: dict[str, Any]) -> str:
    """What a strategy chose, in one line for the end of a run.

    Args:
        info: `config.t2`.
    """
    parts = [f"t2-{info['strategy']}"]
    names = [expert["name"] for expert in info["experts"]]
    if info.get("note"):
        parts.append(str(info["note"]))
    elif info["dispatch"]:
        for task, counts in info["dispatch"].items():
            parts.append(f"{task}: " + listed(f"{label} {count}" for label, count in counts.items()))
    elif info["adaptation"]:
        order = info["alpha_order"]
        for task, alphas in info["alphas"].items():
            found = info["adaptation"][task]
            flat = not (alphas and isinstance(alphas[0], list))
            values = listed(f"{name} {value:.2f}" for name, value in zip(order, alphas, strict=True)) if flat else f"{len(alphas)} rows"
            parts.append(f"{task}: α {values} ({found['metric']} {found['score']:.3f} on {found['examples']} of split {found['split']})")
    elif info.get("expert_by_label"):
        parts.append(", ".join(f"{task}: expert {name}" for task, name in info["expert_by_label"].items()))
    elif info.get("alpha_order"):
        alphas = next(iter(info["alphas"].values()), [])
        parts.append(listed(f"{value:g} {name}" for name, value in zip(info["alpha_order"], alphas, strict=False)))
    else:
        parts.append(f"experts {listed(names)}")
    parts.append(f"first pass {info['first_pass']['seconds']:.1f} s, second {info['second_pass']['seconds']:.1f} s")
    return " | ".join(parts)
