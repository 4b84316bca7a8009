"""Presets: a benchmark file, and the tasks, seeds and sizes with which the items are run on its base model.

`embedded` runs on the embedded base in hours (`quick`: in minutes, with few examples and one seed); its experts and baselines of three
seeds are shipped. `smollm2` is a real instruct model on the real rows of ARC, at a CPU's size, and `smollm2-whole` the same model on all
tasks, for a GPU. `paper` and its like are the paper's models as `configs/` has them: everything is trained, by the recipes that the
file names, and takes a GPU, the hub, and time.

Deviations from the paper:
1. The embedded base has its own learning rates: a model of a million parameters does not move with 8B's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from t2eval.bench.config import DISPATCH, PAPER_STRATEGIES, BenchConfig
from t2eval.bench.plan import load_plan
from t2eval.errors import UsageError, unknown
from t2eval.paths import EMBEDDED_VLM, experts_dir

SKILLS = ("math", "code", "reasoning")
PAPER_SEEN = {"math": "GSM8K", "code": "MBPP-pro", "reasoning": "ARC-Easy"}
PAPER_UNSEEN = {"math": "MATH", "code": "HumanEval", "reasoning": "ARC-Challenge"}
"""Skill → the paper's task, as its tables name it."""
_GENERATED = {"math": "t2_gsm8k", "code": "t2_mbpp_pro", "reasoning": "t2_arc_easy"}
"""Skill → the paper's seen task, in the form of its own trainings."""
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
_RATES = (2e-4, 5e-4, 2e-5, 5e-5, 2e-6, 5e-6)
_POLICY_RATES = (2e-4, 5e-4, 2e-3, 5e-3, 2e-2, 5e-2)


@dataclass(frozen=True)
class Vision:
    """The vision-language part of a preset (figure 5).

    Attributes:
        model: a vision-language model around the preset's base.
        seen, unseen: tasks with images.
        experts: the library of the vision experts, with `{seed}` in it; None: the lab trains them.
        baselines: the folder of an adapter, with `{seed}`, `{method}` and `{label}`; None: the lab trains them.
        foreign: whether the language model in it was trained further, so that the base's experts are not of its basis.
    """

    model: str
    seen: str
    unseen: str
    experts: str | None = None
    baselines: str | None = None
    foreign: bool = False


@dataclass(frozen=True)
class Preset:
    """How large, on what.

    Attributes:
        name: of the preset. quick: the small form.
        bench: the benchmark file's settings: how cells are evaluated and what recipes trainings follow.
        model: the base. other: a second base, for figure 11 and for transfer; None: the preset has none.
        seen, unseen: skill → task.
        seeds: training seeds (and draws of adaptation examples).
        limit: test examples a task; None: all.
        shipped: whether experts and baselines of `seeds` come with t2eval; else the lab trains them.
        training: settings of every training, over the recipes'.
        vision: a vision-language model and its tasks; None: the preset has none.
        rates: LoRA's learning rates in the supervised sweep. policy_rates: LoRA's under policy gradient (figure 9).
        rate_factors: method → what the other rows of table 4 have beside the recipes' learning rates: multiples of them.
        objectives: objective → settings of table 4's and figure 9's trainings by it, whichever the method, over the recipes'.
        few_seeds: of tables 3, 4 and 10 and figure 9, where there are fewer than of the experts; None: as many.
        seen_only: whether table 7 scores IA3 and DoRA on the seen tasks alone.
        strategies: those that are compared on unseen tasks; `expert` is the seen task's own expert.
        choosing: the benchmark file of the library that strategies choose among or mix, where that has more experts than `bench` trains,
            or fewer seeds; None: it has not.
        generated: the benchmark file of trainings on the generated form of seen tasks, where `seen` has another (figure 4); None: none.
        cpu_sized: whether table 10's searches have fewer iterations than the paper's, and table 3's generated answers fewer tokens.
        remarks: what a report says of the preset's settings, a sentence each.
        left_out: item → why the preset does not carry it, in a sentence.
        rewarded: skill → task whose right samples are counted (`limits`), on the first ones of 2,000 drawn training examples.
        samples: skill → how many of them; all 2,000 where it is not there.
    """

    name: str
    bench: BenchConfig
    model: str
    seen: Mapping[str, str]
    unseen: Mapping[str, str]
    quick: bool = False
    other: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = None
    shipped: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    vision: Vision | None = None
    rates: tuple[float, ...] = _RATES
    policy_rates: tuple[float, ...] = _POLICY_RATES
    rate_factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    few_seeds: tuple[int, ...] | None = None
    seen_only: bool = False
    strategies: tuple[str, ...] = PAPER_STRATEGIES
    choosing: BenchConfig | None = None
    generated: BenchConfig | None = None
    cpu_sized: bool = False
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    rewarded: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)

    @property
    def skills(self) -> tuple[str, ...]:
        """Those that experts and baselines are trained for."""
        return tuple(self.seen)

    @property
    def library(self) -> tuple[str, ...]:
        """The labels of a library's experts: the skills, and the classification expert where the benchmark file trains one."""
        section = self.bench.train
        return self.skills if section is not None and DISPATCH not in section.skills else (*self.skills, DISPATCH)

    @property
    def costly_seeds(self) -> tuple[int, ...]:
        """The training seeds of tables 3, 4 and 10 and figure 9."""
        return self.seeds if self.few_seeds is None else self.few_seeds

    @property
    def mixed_seeds(self) -> tuple[int, ...]:
        """The training seeds of the library that strategies choose among or mix."""
        return self.seeds if self.choosing is None else self.choosing.seeds

    @property
    def tasks(self) -> tuple[str, ...]:
        """Seen, then unseen."""
        return (*self.seen.values(), *self.unseen.values())

    @property
    def labels(self) -> dict[str, str]:
        """Task → skill."""
        return {task: skill for tasks in (self.seen, self.unseen) for skill, task in tasks.items()}

    @property
    def chat(self) -> bool:
        """Whether prompts go through the model's chat template."""
        return self.bench.apply_chat_template

    @property
    def device(self) -> str | None:
        """Where the base runs; None: a GPU where there is one."""
        return self.bench.device

    @property
    def dtype(self) -> str:
        """Of the base's weights."""
        return self.bench.dtype

    @property
    def search(self) -> dict[str, Any]:
        """Few-shot's `model_args`: the paper's budget with the paper's models, the defaults elsewhere (`quick`: few iterations)."""
        return dict((self.choosing or self.bench).model_args.get("fewshot", {}))

    @property
    def searches_as_paper(self) -> bool:
        """Whether few-shot's search is the paper's: free α, its budget."""
        return self.search.get("preset") == "paper"

    def describe(self) -> str:
        """One line for reports."""
        examples = "all" if self.limit is None else f"at most {self.limit}"
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"seeds {', '.join(map(str, self.seeds))}"
        steps = f", trainings of {self.training['steps']} steps" if "steps" in self.training else ""
        return f"preset {self.name}{', quick' if self.quick else ''}: base {self.model}, {seeds}, {examples} test examples a task{steps}"


_EMBEDDED_VISION = Vision(
    model=EMBEDDED_VLM,
    seen="embedded_vqa_seen",
    unseen="embedded_vqa_unseen",
    experts=str(experts_dir() / "vlm-library" / "seed-{seed}"),
    baselines=str(experts_dir() / "vlm-baselines" / "seed-{seed}" / "{method}-{label}"),
)
_PAPER_VISION = Vision(model="llava-hf/llama3-llava-next-8b-hf", seen="t2_textvqa", unseen="t2_okvqa", foreign=True)


def _embedded(name: str) -> Preset:
    bench = load_plan("embedded").config
    return Preset(
        name=name,
        bench=bench,
        model=bench.model,
        other="embedded-seed-1",
        seen={skill: f"embedded_{skill}_seen" for skill in SKILLS},
        unseen={skill: f"embedded_{skill}_unseen" for skill in SKILLS},
        shipped=True,
        vision=_EMBEDDED_VISION,
        rates=(5e-4, 2e-3, 8e-3),
        rate_factors={"svf": (16,), "lora": (4,)},
    )


def _paper(name: str, file: str, other: str | None) -> Preset:
    bench = load_plan(file).config
    return Preset(
        name=name,
        bench=bench,
        model=bench.model,
        other=other,
        seen=_GENERATED,
        unseen={"math": "t2_math", "code": "t2_humaneval", "reasoning": "t2_arc_challenge"},
        seeds=bench.seeds,
        vision=_PAPER_VISION if name == "paper" else None,
    )


_SMOLLM2_LEFT_OUT = {
    "table5": "there is no second base model",
    "table8": "its forty searches and its trainings of 1,000 steps are more than a CPU's size",
    "table9": "there is no second base model",
    "figure5": "there is no vision-language model around this base",
    "figure11": "there is no second base model",
}
"""What a small base does not carry on a CPU."""
_SMOLLM2_REMARKS = (
    "The tasks are lm-eval's own `arc_easy` and `arc_challenge`: an answer is the choice whose text is likeliest, without a chat template. "
    "Nothing was trained on ARC-Challenge, and rows of ARC-Easy's training split that are test rows too are left out.",
    "Rates were chosen by 128 validation rows, seed 0, never by a test row. SVF's, before any test row was scored, from 0.006 and 0.02: "
    "0.641 and 0.672 after a third of the steps, where the first one was stopped. After all steps, LoRA's from 0.0005, 0.002 and 0.008: "
    "0.664, 0.688 and 0.648; IA3's from 0.003, 0.01 and 0.03: 0.648, 0.648 and 0.633, where of equals the one that stood there was kept; "
    "DoRA's from 0.0003, 0.001 and 0.003: 0.633, 0.680 and 0.688. One row is 0.008: these are choices, not findings. IA3 and DoRA had "
    "been scored on test rows at 0.01 and 0.001 before. All methods see the same 32 questions a step, 12 steps.",
    "Neither the math nor the code expert earns a place among the shipped ones by its validation score, and without them the "
    "classification expert has nothing to choose; they stand in this report alone. `cls` had been scored on the test rows three times "
    "before, with seed 0: with a classification expert of 12 steps (0.297 of 64 validation rows), with one of 32, when dispatch did not "
    "yet see the options of a task that does not show them (0.235 and 0.240, nearly all rows called math), and with that one when it did "
    "(0.325). The three of this report learnt anew, by the same settings, when the order of the labels in `t2_dispatch` had become that of "
    "a library.",
    "Tables 3, 4 and 10 and figure 9 have seed 0 alone, and table 4 one rate a row, that of table 1's SVF or LoRA; LoRA under policy "
    "gradient has both. Figure 4's training on generated answers has seed 0 and 64 test rows.",
)
_ALONE = {item: f"{_SMOLLM2_LEFT_OUT[item]}." for item in ("table5", "table9", "figure5", "figure11")}
"""What no size of this base carries."""
_WHOLE = {item: f"{reason}. `--preset smollm2-whole` carries it, on a GPU." for item, reason in _SMOLLM2_LEFT_OUT.items()}
"""What a GPU carries: all skills, all rows."""


def _smollm2(name: str) -> Preset:
    """The real model: at a CPU's size, the choice form of ARC alone."""
    bench = load_plan("smollm2").config
    return Preset(
        name=name,
        bench=bench,
        model=bench.model,
        seen={"reasoning": "arc_easy"},
        unseen={"reasoning": "arc_challenge"},
        seeds=bench.seeds,
        limit=bench.limit,
        rates=_trained_at(bench, "lora"),
        policy_rates=_trained_at(bench, "lora") + _trained_at(bench, "svf"),
        objectives=_by_objective(bench),
        few_seeds=bench.seeds[:1],
        seen_only=True,
        strategies=("expert", *PAPER_STRATEGIES),
        choosing=load_plan("smollm2-strategies").config,
        generated=load_plan("smollm2-generated").config,
        cpu_sized=True,
        remarks=_SMOLLM2_REMARKS,
        left_out=_WHOLE | _ALONE,
        rewarded=_GENERATED,
        samples=_CPU_SAMPLES,
    )


def _trained_at(bench: BenchConfig, method: str) -> tuple[float, ...]:
    """The learning rates that a benchmark file gives to a method."""
    assert bench.train is not None
    rate = bench.train.methods[method]["lr"]
    return tuple(rate) if isinstance(rate, list | tuple) else (float(rate),)


def _by_objective(bench: BenchConfig) -> dict[str, dict[str, Any]]:
    """How a benchmark file trains SVF, by policy gradient, and how LoRA, on worked answers, but for their learning rates."""
    assert bench.train is not None
    own = {objective: bench.train.methods[method] for objective, method in (("reinforce", "svf"), ("supervised", "lora"))}
    common = {"rollouts": 1, "baseline": "batch_mean", "validate_every": bench.train.settings["validate_every"]}
    return {objective: {**common, **{k: v for k, v in settings.items() if k != "lr"}} for objective, settings in own.items()}


_QUICK: dict[str, Any] = {
    "quick": True,
    "seeds": (0,),
    "limit": 30,
    "training": {"steps": 4, "validation_limit": 32, "validate_every": 2},
    "rates": (5e-4, 2e-3),
    "policy_rates": (5e-4, 2e-2),
    "rate_factors": {"svf": (16,)},
}
_QUICK_ITERATIONS = 2  # fewer than the search's own default
_FILES = {
    "paper": ("paper-llama3-8b", MISTRAL),
    "paper-mistral-7b": ("paper-mistral-7b", None),
    "paper-llama3-70b": ("paper-llama3-70b", None),
}
SMOLLM2_PRESETS = ("smollm2", "smollm2-whole")
PRESETS = ("embedded", *SMOLLM2_PRESETS, *_FILES)
_CPU_SAMPLES = {"reasoning": 128}
"""64 samples are three to five minutes of a core. MBPP-pro has 188 training examples, and all of them are counted."""


def preset(name: str = "embedded", *, quick: bool = False) -> Preset:
    """A preset.

    Args:
        name: of `PRESETS`.
        quick: few examples, one seed, short trainings and searches (`embedded` only).

    Raises:
        UsageError: an unknown name, or a combination that does not exist.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if quick and name != "embedded":
        raise UsageError("--quick is a small form of the preset 'embedded'. A small run on another model is a benchmark: t2 bench --limit.")
    if name == "embedded":
        found = _embedded(name)
        short = found.bench.model_copy(update={"model_args": {"fewshot": {"iterations": _QUICK_ITERATIONS}}})
        return replace(found, bench=short, **_QUICK) if quick else found
    if name == "smollm2":
        return _smollm2(name)
    if name == "smollm2-whole":
        return replace(_paper(name, name, None), left_out=_ALONE, rewarded=_GENERATED)
    return _paper(name, *_FILES[name])
