"""Table 6: hyper-parameters. Nothing is trained: the paper's values are held against those that `preset=paper` gives a training.

1. The paper's initial values are of p in the form z = sigmoid(p), renormalised (`parameterisation=sigmoid-renorm` has them). The default
   form is z = 1 + p with p = 0, so that training starts at the base model.
"""

from __future__ import annotations

from typing import Any

from t2eval.paper.claims import Claim
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.lab import Lab
from t2eval.training.config import TrainConfig

_SETTINGS = {
    "svf": {"batch_size": "batch size", "lr": "learning rate", "clip": "clip max norm", "kl": "KL coefficient λ"},
    "lora": {
        "lora_rank": "rank",
        "lora_alpha": "α",
        "lora_dropout": "dropout",
        "batch_size": "batch size",
        "lr": "learning rate",
        "clip": "clip max norm",
        "steps": "iterations",
    },
}
_PAPER: dict[str, dict[str, Any]] = {
    "svf": {"batch_size": 256, "lr": 2e-3, "clip": 1e-3, "kl": (0.0, 0.1, 0.2, 0.3)},
    "lora": {
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "batch_size": 256,
        "lr": (2e-4, 5e-4, 2e-5, 5e-5, 2e-6, 5e-6),
        "clip": (1e-3, 1.0),
        "steps": 200,
    },
}
_OBJECTIVES = {"svf": "reinforce", "lora": "supervised"}
_NAMES = {"svf": "SVF", "lora": "LoRA"}


def _text(value: Any) -> str:
    return ", ".join(f"{part:g}" for part in value) if isinstance(value, (tuple, list)) else f"{value:g}"


def _label(method: str, setting: str) -> str:
    return f"{_NAMES[method]}: {_SETTINGS[method][setting]}"


def run(lab: Lab) -> Result:
    """The settings of `preset=paper`, and of the trainings of this preset."""
    rows = []
    claims = []
    skill = lab.preset.skills[0]
    for method, settings in _SETTINGS.items():
        paper = TrainConfig(task="any", output="unused", preset="paper", method=method, objective=_OBJECTIVES[method])
        here = lab.training("settings", skill, 0, method=method, objective=_OBJECTIVES[method]).config
        for setting in settings:
            values = {"paper": getattr(paper, setting), "here": getattr(here, setting)}
            rows.append({"method": method, "setting": setting, "skill": skill, **values})
            text = f"preset=paper has Table 6's {_label(method, setting)}"
            claims.append(Claim(text=text, holds=_PAPER[method][setting] == values["paper"], seen=_text(values["paper"])))
    note = (
        "A list is swept, and validation chooses. Initial z is 1; the paper's initial values belong to `parameterisation=sigmoid-renorm`. "
        "LoRA's modules are PEFT's for the architecture: query and value for Llama and Mistral, as in the paper. Tables 1, 2 and 4 and "
        "figure 9 sweep LoRA's learning rate, table 4 sets the modules."
    )
    return Result(tuple(rows), tuple(claims), (note,))


def ours(result: Result) -> Columns:
    """Two columns: what `preset=paper` gives, and what trainings of this preset's first skill have."""
    heads = {"preset=paper": "paper", f"{result.rows[0]['skill']} trainings here, not swept": "here"}
    return {head: {_label(row["method"], row["setting"]): _text(row[key]) for row in result.rows} for head, key in heads.items()}


_INITIAL = {"SVF: initial z, mean": "0.1", "SVF: initial z, variance": "0.001"}
ITEMS = (
    Item(
        name="table6",
        title="Hyper-parameters",
        measures="The settings of SVF's and LoRA's trainings, the paper's beside ours.",
        reported=Reported(
            model="all base models",
            columns={
                "value": {
                    **{_label(method, name): _text(value) for method, values in _PAPER.items() for name, value in values.items()},
                    **_INITIAL,
                }
            },
        ),
        run=run,
        ours=ours,
    ),
)
