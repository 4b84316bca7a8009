"""Tables 1, 2 and 7: methods × tasks.

1. LoRA stands in two rows: chosen by validation, and chosen by the test items themselves, which is what Table 2 of the paper reports and
   which flatters it.
2. Where few-shot's search is not the paper's (t2eval's default is not), Table 2 has a row with the paper's, too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from t2eval.bench.config import PAPER_STRATEGIES as STRATEGIES
from t2eval.paper.claims import Claim, Side, better, judge
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.items.budgets import paper_search
from t2eval.paper.lab import STRATEGIES as STUDY
from t2eval.paper.lab import Cells, Lab, Training
from t2eval.paper.markdown import score, short, spread
from t2eval.paper.presets import PAPER_SEEN, PAPER_UNSEEN, Preset
from t2eval.paper.sweep import Candidate, Sweep

BEST = "LoRA, best by test"
PAPER_SEARCH = "few-shot, the paper's search"
ALONE = "few-shot, the task's own expert alone"
NAMES = {
    "base": "base",
    "lora": "LoRA",
    "expert": "SVF",
    "ia3": "IA3",
    "dora": "DoRA",
    "prompt": "prompt",
    "cls": "cls",
    "fewshot": "few-shot",
}
MISTRAL, LLAMA_70B = "Mistral-7B-Instruct-v0.3", "Llama-3-70B-Instruct"
_SEEN, _UNSEEN = tuple(PAPER_SEEN.values()), tuple(PAPER_UNSEEN.values())


def _cells(lab: Lab, methods: Sequence[str], tasks: Sequence[str]) -> tuple[dict[str, Cells], list[dict[str, Any]]]:
    """The cells that have each method, and a row for each method and task. Methods have the same seeds, but that strategies that choose
    among experts may have a library of their own, and its seeds."""
    apart = [method for method in methods if method in STRATEGIES and lab.preset.choosing is not None]
    shared = [method for method in methods if method not in apart]
    found: dict[str, Cells] = {}
    if shared:
        found |= dict.fromkeys(shared, lab.cells(shared, tasks))
    if apart:
        found |= dict.fromkeys(apart, lab.strategies(apart, tasks))
    return found, [{**found[method].summary(method, task), "label": NAMES[method]} for method in methods for task in tasks]


def _lora_rows(sweep: Sweep, validated: Candidate, best: Candidate) -> list[dict[str, Any]]:
    """LoRA as validation chose it, and as the test items would choose it, where there is a choice."""
    rows = [_lora(validated, NAMES["lora"])]
    return rows if sweep.single else [*rows, _lora(best, BEST)]


def _lora(candidate: Candidate, label: str) -> dict[str, Any]:
    own = {"label": label, "learning_rate": candidate.rate, "trained_on": candidate.source}
    return {**candidate.cells.summary("lora", candidate.task), **own}


def columns(result: Result) -> Columns:
    """One column a task: label → score ± standard error."""
    found: dict[str, dict[str, str]] = {}
    for row in result.rows:
        found.setdefault(f"{short(row['task'])} (n={row['n']})", {})[row["label"]] = score(row)
    return found


def notes(lab: Lab, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the numbers are, and what was trained for them."""
    swept = [row for row in rows if "learning_rate" in row]
    chosen = "; ".join(f"{row['label']} on {short(row['task'])}: {row['learning_rate']:g} from {row['trained_on']}" for row in swept)
    shipped = "Experts and baselines are those shipped with t2eval" + (
        ", except LoRA's other learning rates, trained here." if swept else "."
    )
    found = (spread(rows), shipped if lab.preset.shipped else "Everything was trained here, in `training/`.")
    single = len(lab.preset.rates) == 1
    only = "LoRA has one learning rate in this report" if single else "Learning rate and training task that were chosen"
    return (*found, f"{only}: {chosen}.") if swept else found


def _side(lab: Lab, reported: Reported, head: str, label: str, scores: Mapping[str, float], name: str = "") -> Side:
    """One side of a comparison: its row's label (or another name), its scores, and the paper's figure for it."""
    return Side(name or label, scores, reported.figure(head, label, lab.preset.model))


# ---------------------------------------------------------------------- table 1
def run_seen(lab: Lab) -> Result:
    """Base, LoRA and SVF on the tasks that they were trained on."""
    preset = lab.preset
    cells, rows = _cells(lab, ("base", "expert"), tuple(preset.seen.values()))
    sweep = Sweep(lab)
    claims: list[Claim] = []
    for skill, task in preset.seen.items():
        head = PAPER_SEEN[skill]
        validated, best = sweep.by_validation(skill, task), sweep.by_test(task)
        rows += _lora_rows(sweep, validated, best)
        side = functools.partial(_side, lab, TABLE1.reported, head)
        svf = side(NAMES["expert"], cells["expert"].examples("expert", task))
        others = (
            side(NAMES["base"], cells["base"].examples("base", task), "the base"),
            side(NAMES["lora"], validated.cells.examples("lora", task)),
        )
        claims += [better(svf, other, f"on {short(task)}") for other in others]
    sizes = {row["method"]: row["trainable_parameters"] for row in rows}
    share = sizes["expert"] / sizes["lora"]
    fewer = Claim(
        text="SVF trains less than 10% of LoRA's parameters", holds=share < 0.1, seen=f"{sizes['expert']} of {sizes['lora']}, {share:.1%}"
    )
    return Result(tuple(rows), (*judge(claims), fewer), notes(lab, rows))


def _paper(heads: Sequence[str], **methods: str) -> Columns:
    """Columns from rows of figures: method → figures separated by spaces; `lora` etc. as in `NAMES`."""
    return {head: {NAMES.get(name, name): figures.split()[place] for name, figures in methods.items()} for place, head in enumerate(heads)}


TABLE1 = Item(
    name="table1",
    title="SVF and LoRA on the tasks that they were trained on",
    measures="Test scores on the three seen tasks: the base, LoRA (next-token prediction on worked answers, swept over its learning rate) "
    "and SVF (policy gradient on right and wrong).",
    reported=Reported(
        model="Llama-3-8B-Instruct",
        columns=_paper(_SEEN, base="75.89 64.65 88.59", expert="79.15 66.67 89.56", lora="77.18 67.68 88.97"),
        others={
            MISTRAL: _paper(_SEEN, base="42.83 49.50 81.65", expert="49.74 51.52 85.14", lora="44.66 51.52 81.19"),
            LLAMA_70B: _paper(_SEEN, base="85.29 80.81 89.10", expert="88.32 80.81 88.47", lora="77.26 68.69 88.55"),
        },
    ),
    run=run_seen,
    ours=columns,
)


# ---------------------------------------------------------------------- table 2
def run_unseen(lab: Lab) -> Result:
    """Base, LoRA and the three strategies on tasks that nothing was trained on."""
    preset = lab.preset
    shown = preset.strategies
    tasks = tuple(preset.unseen.values())
    cells, rows = _cells(lab, ("base", *shown), tasks)
    alone: Cells | None = None
    if "fewshot" in shown and preset.choosing is not None:
        alone = lab.cells(["fewshot"], tasks)
        rows += [{**alone.summary("fewshot", task), "label": ALONE} for task in tasks]
    if "fewshot" in shown and not (preset.searches_as_paper or preset.cpu_sized):
        theirs = paper_search(lab, tasks)
        rows += [{**theirs.summary("fewshot", task), "label": PAPER_SEARCH} for task in tasks]
    sweep = Sweep(lab)
    claims: list[Claim] = []
    for skill, task in preset.unseen.items():
        head = PAPER_UNSEEN[skill]
        validated, best = sweep.by_validation(skill, task), sweep.by_test(task)
        rows += _lora_rows(sweep, validated, best)
        side = functools.partial(_side, lab, TABLE2.reported, head)
        sides = {method: side(NAMES[method], cells[method].examples(method, task)) for method in shown}
        sides["base"] = side(NAMES["base"], cells["base"].examples("base", task), "the base")
        if alone is not None:
            sides["alone"] = side(ALONE, alone.examples("fewshot", task), "few-shot over the task's own expert alone")
        sides["lora"] = side(BEST, validated.cells.examples("lora", task), "LoRA chosen by validation")
        if not sweep.single:
            sides["best"] = side(BEST, best.cells.examples("lora", task), "the LoRA that is best by test")
        pairs = [
            *((method, "base") for method in (*shown, "alone")),
            ("expert", "lora"),
            ("cls", "prompt"),
            ("fewshot", "cls"),
            ("fewshot", "alone"),
            ("fewshot", "lora"),
            ("fewshot", "best"),
        ]
        claims += [better(sides[a], sides[b], f"on {short(task)}") for a, b in pairs if a in sides and b in sides]
    own = "" if "fewshot" not in shown or preset.searches_as_paper else f" {_search(preset)}"
    text = f"The paper's figures for LoRA are of its best checkpoint for each test task.{own}"
    lone = f"{ALONE!r} searches a free α of one expert{_given(preset.bench.model_args.get('fewshot', {}))}."
    return Result(tuple(rows), judge(claims), (*notes(lab, rows), text, *mixed_notes(lab), *([lone] if alone is not None else [])))


def _search(preset: Preset) -> str:
    """What few-shot's search is, where it is not the paper's."""
    return f"{NAMES['fewshot']!r} is t2eval's default{_given(preset.search)}, with α divided by its sum."


def _given(search: Mapping[str, Any]) -> str:
    return "".join(f", {name} {value}" for name, value in search.items())


def mixed_notes(lab: Lab) -> tuple[str, ...]:
    """What the library is that strategies choose among, where it is another than that of SVF's rows."""
    bench = lab.preset.choosing
    if bench is None or bench.train is None:
        return ()
    taught = [label for label, settings in bench.train.skills.items() if settings.get("objective") == "supervised"]
    seeds = f"training seed {bench.seeds[0]}" if len(bench.seeds) == 1 else f"training seeds {', '.join(map(str, bench.seeds))}"
    learnt = "; ".join(_learnt(training) for training in lab.mixed_trainings())
    return (
        f"prompt, cls and few-shot choose among or mix the experts {', '.join(bench.train.skills)} of {seeds}. {', '.join(taught)} learnt "
        f"from worked answers, not, as in the paper, from right and wrong. What validation gave, before and after: {learnt}.",
    )


def _learnt(training: Training) -> str:
    """A training's validation scores; where no step was better than none, the expert is the base."""
    record = training.record
    before, after = (record["scores"][when]["validation"] for when in ("before", "after"))
    same = "" if record["chosen_step"] else ", so that step 0 was chosen, which is the base"
    return f"{training.name.removeprefix(f'{STUDY} ')} {before['score']:.3f} and {after['score']:.3f} (n={after['n']}{same})"


_LLAMA_UNSEEN: dict[str, str] = {
    "base": "24.54 60.98 80.63",
    "prompt": "25.22 61.59 81.74",
    "cls": "25.18 62.80 81.37",
    "fewshot": "25.47 62.99 82.61",
}
TABLE2 = Item(
    name="table2",
    title="Self-adaptation on unseen tasks",
    measures="Test scores on the three unseen tasks: the base, LoRA, and the strategies prompt, cls and few-shot over the SVF experts "
    "of the seen tasks. The paper's LoRA is the best checkpoint for each test task; ours is also shown chosen by validation on the seen "
    "task.",
    reported=Reported(
        model="Llama-3-8B-Instruct",
        columns=_paper(_UNSEEN, **_LLAMA_UNSEEN, **{BEST: "24.12 52.44 81.06"}),
        others={
            MISTRAL: _paper(
                _UNSEEN,
                base="13.02 43.29 71.76", prompt="11.86 43.90 72.35", cls="11.60 43.90 74.83", fewshot="13.39 47.40 75.47",
                **{BEST: "13.16 37.80 75.77"},
            ),
            LLAMA_70B: _paper(_UNSEEN, base="40.64 78.66 87.63", prompt="40.44 79.88 88.48", **{BEST: "25.40 73.78 83.70"}),
        },
    ),
    run=run_unseen,
    ours=columns,
)  # fmt: skip


# ---------------------------------------------------------------------- table 7
def run_more(lab: Lab) -> Result:
    """IA3 and DoRA beside SVF and the strategies."""
    preset = lab.preset
    everywhere = ((PAPER_SEEN, preset.seen), (PAPER_UNSEEN, preset.unseen))
    compared = everywhere[:1] if preset.seen_only else everywhere
    cells, rows = _cells(lab, ("base", "ia3", "dora"), tuple(task for _, tasks in compared for task in tasks.values()))
    shown = preset.strategies
    chosen = "fewshot" if "fewshot" in shown else shown[-1]
    svf, more = _cells(lab, ("expert",), tuple(preset.seen.values()))
    adapted, further = _cells(lab, shown, tuple(preset.unseen.values()))
    claims = []
    for (heads, tasks), method, own in zip(compared, ("expert", chosen), (svf, adapted), strict=False):
        for skill, task in tasks.items():
            side = functools.partial(_side, lab, TABLE7.reported, heads[skill])
            ours = side(NAMES[method], own[method].examples(method, task))
            others = [side(NAMES[other], cells[other].examples(other, task)) for other in ("ia3", "dora")]
            claims += [better(ours, other, f"on {short(task)}") for other in others]
    rows = [*rows, *more, *further]
    text = "On an unseen task the adapter of its skill's seen task answers."
    if preset.seen_only:
        text = "IA3 and DoRA are not scored on the unseen tasks, which is left to a larger preset."
    if preset.shipped:
        text = f"IA3 and DoRA have one learning rate each, where LoRA is swept. {text}"
    return Result(tuple(rows), judge(claims), (*notes(lab, rows), text, *mixed_notes(lab)))


TABLE7 = Item(
    name="table7",
    title="IA3 and DoRA",
    measures="Test scores of two more adapters, trained on the same examples as LoRA, on seen and unseen tasks, beside SVF and the "
    "strategies.",
    reported=Reported(
        model="Llama-3-8B-Instruct",
        columns={
            **_paper(_SEEN, base="75.89 64.65 88.59", ia3="78.01 67.68 89.10", dora="78.09 64.65 89.14", expert="79.15 66.67 89.56"),
            **_paper(_UNSEEN, **_LLAMA_UNSEEN, ia3="23.64 59.76 81.57", dora="24.44 52.44 81.14"),
        },
    ),
    run=run_more,
    ours=columns,
)

ITEMS = (TABLE1, TABLE2, TABLE7)
