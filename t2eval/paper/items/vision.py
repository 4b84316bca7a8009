"""Figure 5: SVF on a seen task with images, and the strategies with experts that never saw an image on an unseen one.

Deviations from the paper:
1. IA3 and DoRA stand beside LoRA. On the unseen task LoRA is the seen task's adapter, too: the paper does not say which one it took.
2. A control is added: few-shot over the language experts and the vision expert.
3. The embedded language experts fit the vision-language model's backbone by weight. LLaVA-NeXT's was trained further, so that there the
   basis check, which refuses the language model's experts, is passed by name (`allow_basis_mismatch`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t2eval.bench.config import PAPER_BASELINES as BASELINES
from t2eval.bench.config import PAPER_STRATEGIES as STRATEGIES
from t2eval.paper.claims import Claim, Side, better, judge
from t2eval.paper.item import Columns, Item, Reported, Result, Unavailable
from t2eval.paper.items.scores import NAMES
from t2eval.paper.markdown import NONE, score, short, spread

if TYPE_CHECKING:
    from t2eval.expert.expert import Expert
    from t2eval.paper.lab import Cells, Lab
    from t2eval.paper.presets import Vision

LABEL = "vision"
"""The skill of the experts and adapters that are trained on the seen task."""
BOTH = "few-shot, with the vision expert"
_STUDY = "vision"


def _vision(lab: Lab) -> Vision:
    if lab.preset.vision is None:
        raise Unavailable(
            f"The preset {lab.preset.name!r} has no vision-language model, which this figure is about. Use embedded or paper."
        )
    return lab.preset.vision


def _experts(lab: Lab, vision: Vision) -> str:
    """The libraries of vision experts: shipped, or trained here."""
    if vision.experts is not None:
        return vision.experts
    model = {"model": vision.model, "task": vision.seen}
    lab.train([lab.training("vision-svf", LABEL, seed, **model) for seed in lab.preset.seeds])
    return str(lab.folder("vision-svf"))


def _baselines(lab: Lab, vision: Vision) -> str:
    """The folders of the adapters: shipped, or trained here on the answers."""
    if vision.baselines is not None:
        return vision.baselines
    how = {"model": vision.model, "task": vision.seen, "objective": "supervised"}
    lab.train([lab.training(f"vision-{m}", LABEL, seed, method=m, **how) for m in BASELINES for seed in lab.preset.seeds])
    return str(lab.folder("vision-{method}") / "{label}")


def _both(lab: Lab, vision: str) -> str:
    """Libraries of the language experts and the vision expert."""
    from t2eval.paper.derived import skills, write_library

    language = lab.library(lab.preset.seeds)
    folder = (lab.output / "derived" / "vision-both").resolve()

    def experts_of(seed: int) -> list[Expert]:
        return [expert for library in (language, vision) for expert in skills(library.replace("{seed}", str(seed)))]

    for seed in lab.preset.seeds:
        write_library(folder / f"seed-{seed}", functools.partial(experts_of, seed))
    return str(folder / "seed-{seed}")


def _cells(lab: Lab, vision: Vision) -> dict[str, Mapping[tuple[str, str], Cells]]:
    """Task → (method, row label) → finished cells that have it."""
    allow = {"allow_basis_mismatch": True} if vision.foreign else {}
    arguments = {method: {**allow, **(lab.preset.search if method == "fewshot" else {})} for method in STRATEGIES}
    experts = _experts(lab, vision)
    common: dict[str, Any] = {"model": vision.model, "labels": {vision.seen: LABEL, vision.unseen: LABEL}}
    trained = {**common, "experts": experts, "baselines": _baselines(lab, vision), "model_args": {}}
    seen = lab.cells(["base", "expert", *BASELINES], [vision.seen], study=_STUDY, **trained)
    control = lab.cells(["base", "lora"], [vision.unseen], study=_STUDY, **trained)
    language = {**common, "experts": lab.library(lab.preset.seeds), "model_args": arguments}
    adapted = lab.cells(STRATEGIES, [vision.unseen], study=f"{_STUDY}-language", **language)
    both = {**common, "experts": _both(lab, experts), "model_args": {"fewshot": arguments["fewshot"]}}
    more = lab.cells(["fewshot"], [vision.unseen], study=f"{_STUDY}-both", **both)
    return {
        vision.seen: {(method, NAMES[method]): seen for method in ("base", "expert", *BASELINES)},
        vision.unseen: {
            **{(method, NAMES[method]): control for method in ("base", "lora")},
            **{(method, NAMES[method]): adapted for method in STRATEGIES},
            ("fewshot", BOTH): more,
        },
    }


def _claims(lab: Lab, vision: Vision, cells: Mapping[str, Mapping[tuple[str, str], Cells]]) -> tuple[Claim, ...]:
    """What the paper's text says of its figure."""

    def side(task: str, method: str) -> Side:
        return Side(words[method], cells[task][method, NAMES[method]].examples(method, task))

    pairs = [(vision.seen, "expert", "base"), (vision.seen, "expert", "lora"), *((vision.unseen, each, "base") for each in STRATEGIES)]
    pairs.append((vision.unseen, "fewshot", "lora"))
    words = {
        "expert": "SVF",
        "lora": "LoRA",
        "base": "the base",
        **{each: f"{NAMES[each]} over language experts" for each in STRATEGIES},
    }
    return judge([better(side(task, a), side(task, b), f"on {short(task)}") for task, a, b in pairs])


def run(lab: Lab) -> Result:
    """Both halves of the figure."""
    vision = _vision(lab)
    cells = _cells(lab, vision)
    rows = [
        {"label": label, "level": level, **found.summary(method, task)}
        for level, task in (("seen", vision.seen), ("unseen", vision.unseen))
        for (method, label), found in cells[task].items()
    ]
    shipped = "The vision experts and adapters are those shipped with t2eval."
    inside = "from which its language model was trained further" if vision.foreign else "which is its language model"
    notes = (
        f"Vision-language model: {vision.model}. The language experts (math, code, reasoning) are those of {lab.preset.model}, {inside}; "
        "none of them was trained with images.",
        spread(rows),
        shipped if vision.experts else f"The vision experts and adapters were trained here on {vision.seen}.",
        *(("The basis check was passed by name (allow_basis_mismatch=true).",) if vision.foreign else ()),
    )
    return Result(tuple(rows), _claims(lab, vision, cells), notes)


def change(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A score's change from the base's on the same task, as the paper gives it: in percent of the base's score."""
    base = next(other["score"] for other in rows if (other["label"], other["task"]) == (NAMES["base"], row["task"]))
    return f"{row['score'] / base - 1:+.0%}" if base and row["label"] != NAMES["base"] else NONE


def ours(result: Result) -> Columns:
    """For each task the scores, and the change from the base in percent of its score."""
    columns: dict[str, dict[str, str]] = {}
    for row in result.rows:
        head = short(str(row["task"]))
        columns.setdefault(f"{head} (n={row['n']})", {})[str(row["label"])] = score(row)
        columns.setdefault(f"{head}, change from the base", {})[str(row["label"])] = change(row, result.rows)
    return columns


_KINDS = ("SVF expert of the seen task", "experts of language alone", "language and vision experts", "adapter of the seen task")


def _kind(row: Mapping[str, Any]) -> str:
    """Which of `_KINDS` a bar is."""
    by_label = {NAMES["expert"]: _KINDS[0], BOTH: _KINDS[2]}
    return by_label.get(row["label"], _KINDS[1] if row["method"] in STRATEGIES else _KINDS[3])


def draw(result: Result, figure: Any) -> None:
    """A panel a task: a bar a method with its standard error and change, the base's score as a line in a band of its own error."""
    from t2eval.paper.style import BASE, ERRORS, bar

    panels = figure.subplots(1, 2, sharey=True)
    handles: dict[str, Any] = {}
    for panel, level in zip(panels, ("seen", "unseen"), strict=True):
        own = [row for row in result.rows if row["level"] == level]
        (base,) = [row for row in own if row["label"] == NAMES["base"]]
        bars = sorted((row for row in own if row is not base), key=lambda row: _KINDS.index(_kind(row)))
        for place, row in enumerate(bars):
            look = bar(_KINDS.index(_kind(row)))
            handles[_kind(row)] = panel.bar(place, row["score"], 0.72, yerr=row["stderr"] or 0.0, error_kw=ERRORS, **look)
            where = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8, "zorder": 5}
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            panel.annotate(change(row, own), (place, row["score"] + (row["stderr"] or 0.0)), bbox=white, **where)
        error = base["stderr"] or 0.0
        panel.axhspan(base["score"] - error, base["score"] + error, color="0.5", alpha=0.18, linewidth=0, zorder=0)
        handles["base"] = panel.axhline(base["score"], **{**BASE, "zorder": 3})
        panel.set_title(f"{level} task: {short(str(base['task']))} (n = {base['n']}), base {score(base)}")
        panel.set_xticks(range(len(bars)), ["few-shot,\n+ vision" if row["label"] == BOTH else row["label"] for row in bars])
        panel.margins(y=0.12)
    panels[0].set_ylabel(f"{result.rows[0]['metric']} (± standard error)\npercent: change from the base")
    order = [name for name in ("base", *_KINDS) if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=3)


_TEXT = (
    "SVF on TextVQA raises LLaVA-NeXT's score by more than 39% of the base's. On OK-VQA, which is unseen, the score rises above the base's "
    "only with the strategies, although their experts are those of GSM8K, MBPP-pro and ARC-Easy: of language alone. The text gives no "
    "other number of the figure."
)

ITEMS = (
    Item(
        name="figure5",
        title="Vision: SVF on a seen task, language experts on an unseen one",
        measures="Scores of a vision-language model on two tasks with images: SVF and the adapters on the task that they were trained on "
        "(half of the layers, reward -0.1 for a wrong answer), and the strategies over experts of language alone on an unseen one.",
        reported=Reported(model="Llama3-LLaVA-NeXT-8B", text=_TEXT),
        run=run,
        ours=ours,
        draw=draw,
        size=(8.0, 3.6),
    ),
)
