"""Presets: the base model, the tasks, the seeds and the sizes with which the items are run.

`embedded` runs on the embedded base in hours (`quick`: in minutes, with few examples and one seed); its experts and baselines of three
seeds are shipped. `paper` names the paper's tasks and, by default, Llama-3-8B-Instruct: it trains everything itself, with Table 6's
hyper-parameters, and takes a GPU, the hub, and time.

Deviations from the paper:
1. The embedded base has its own learning rates: a model of a million parameters does not move with 8B's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from t2eval.bench.plan import EMBEDDED
from t2eval.errors import UsageError, unknown

SKILLS = ("math", "code", "reasoning")
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"


@dataclass(frozen=True)
class Preset:
    """How large, on what.

    Attributes:
        name: `embedded` or `paper`. quick: the small form.
        model: the base. other: a second base, for figure 11 (and transfer); None: the preset has none.
        seen, unseen: skill → task. dispatch: the classification expert's task.
        seeds: training seeds (and draws of adaptation examples).
        limit: test examples a task; None: all.
        shipped: whether experts and baselines of `seeds` come with t2eval; else the lab trains them.
        batch_size, chat: of evaluation.
        device: for training; None: a GPU where there is one.
        training: settings of every training.
        steps: method → optimiser steps; empty: the training preset's own.
        rates: LoRA's learning rates in the supervised sweep. policy_rates: LoRA's under policy gradient (figure 9).
    """

    name: str
    model: str
    seen: Mapping[str, str]
    unseen: Mapping[str, str]
    dispatch: str
    quick: bool = False
    other: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = None
    shipped: bool = True
    batch_size: int = 64
    chat: bool = False
    device: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    policy_rates: tuple[float, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Seen, then unseen."""
        return (*self.seen.values(), *self.unseen.values())

    @property
    def labels(self) -> dict[str, str]:
        """Task → skill."""
        return {task: skill for tasks in (self.seen, self.unseen) for skill, task in tasks.items()}

    @property
    def search(self) -> dict[str, Any]:
        """Few-shot's `model_args`: the paper's budget with the paper's models, t2eval's defaults elsewhere, fewer iterations in `quick`."""
        if self.name == "paper":
            return {"preset": "paper"}
        return {"iterations": 4} if self.quick else {}

    def describe(self) -> str:
        """One line for reports."""
        examples = "all" if self.limit is None else f"at most {self.limit}"
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"seeds {', '.join(map(str, self.seeds))}"
        return f"preset {self.name}{', quick' if self.quick else ''}: base {self.model}, {seeds}, {examples} test examples a task"


_EMBEDDED = Preset(
    name="embedded",
    model=EMBEDDED,
    other="embedded-seed-1",
    seen={skill: f"embedded_{skill}_seen" for skill in SKILLS},
    unseen={skill: f"embedded_{skill}_unseen" for skill in SKILLS},
    dispatch="embedded_dispatch",
    training={"preset": "embedded"},
    steps={"svf": 50, "lora": 60, "ia3": 80, "dora": 60},
    rates=(5e-4, 2e-3, 8e-3),
    policy_rates=(2e-4, 5e-4, 2e-3, 5e-3, 2e-2, 5e-2),
)
_QUICK: dict[str, Any] = {
    "quick": True,
    "seeds": (0,),
    "limit": 60,
    "training": {"preset": "embedded", "validation_limit": 64, "validate_every": 4, "test_limit": 60},
    "steps": {"svf": 12, "lora": 12, "ia3": 12, "dora": 12},
    "rates": (5e-4, 2e-3),
    "policy_rates": (5e-4, 2e-2),
}
_PAPER = Preset(
    name="paper",
    model=LLAMA,
    other=MISTRAL,
    seen={"math": "t2_gsm8k", "code": "t2_mbpp_pro", "reasoning": "t2_arc_easy"},
    unseen={"math": "t2_math", "code": "t2_humaneval", "reasoning": "t2_arc_challenge"},
    dispatch="t2_dispatch",
    seeds=(0,),
    shipped=False,
    batch_size=16,
    chat=True,
    training={"preset": "paper", "dtype": "bfloat16", "apply_chat_template": True},
    rates=(2e-4, 5e-4, 2e-5, 5e-5, 2e-6, 5e-6),
    policy_rates=(2e-4, 5e-4, 2e-3, 5e-3, 2e-2, 5e-2),
)
PRESETS = {"embedded": _EMBEDDED, "paper": _PAPER}


def preset(name: str = "embedded", *, quick: bool = False, model: str | None = None) -> Preset:
    """A preset.

    Args:
        name: `embedded` or `paper`.
        quick: few examples, one seed, short trainings and searches (`embedded` only).
        model: another base (`paper` only): a Hugging Face name or folder.

    Raises:
        UsageError: an unknown name, or a combination that does not exist.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if name == "embedded" and model not in (None, EMBEDDED):
        raise UsageError(f"The preset 'embedded' runs on the embedded base. For --model {model} give --preset paper.")
    if quick and name != "embedded":
        raise UsageError("--quick is a small form of the preset 'embedded'. A small run on your own model is a benchmark file: t2 bench.")
    chosen = PRESETS[name]
    if quick:
        chosen = replace(chosen, **_QUICK)
    return replace(chosen, model=model) if model else chosen
