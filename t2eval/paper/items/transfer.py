"""Transfer: tables 5 and 9, the experts of one base model on another one of the same shape.

The basis check, which refuses an expert of another base, is passed by name (`allow_basis_mismatch`). z is applied in the order of the
second base's singular values (ordered), or after a random permutation within each matrix (shuffled, several of them).

Deviations from the paper:
1. The paper does not say which expert answers which task in the ordered and shuffled rows; here it is the expert of the task's skill.
2. The second base's own experts stand beside them, alone and under few-shot: what few-shot over both sets has to be better than. The
   paper has these figures in Tables 1 and 2.
3. The embedded bases differ in their seed: corpus, tokenizer and first weights. They share their architecture and the corpus's recipe.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.errors import T2Error
from t2eval.paper.claims import Claim, Side, better, judge
from t2eval.paper.item import Columns, Item, Reported, Result, Unavailable, item
from t2eval.paper.markdown import score, short
from t2eval.paper.presets import PAPER_SEEN, PAPER_UNSEEN, SKILLS

if TYPE_CHECKING:
    from t2eval.paper.lab import Cells, Lab

SHUFFLES, _QUICK_SHUFFLES = 6, 2
_ALLOW = {"allow_basis_mismatch": True}
BASE, ORDERED, SHUFFLED, OWN = "second base", "+ first base's experts, ordered", "+ first base's experts, shuffled", "+ its own experts"
BOTH, OWN_FEWSHOT = "few-shot over both bases' experts", "few-shot over its own experts"


def _second(lab: Lab) -> str:
    if lab.preset.other is None:
        raise Unavailable(f"The preset {lab.preset.name!r} has no second base model to transfer experts to.")
    return lab.preset.other


def _libraries(lab: Lab) -> dict[int, Path]:
    """The first base's experts, by training seed."""
    template = lab.library(lab.preset.seeds)
    return {seed: Path(template.replace("{seed}", str(seed))) for seed in lab.preset.seeds}


def _shuffled(lab: Lab, libraries: Mapping[int, Path], number: int) -> str:
    """Libraries of shuffled experts, by the shuffle's seed; training seeds take turns."""
    from t2eval.paper.derived import Deriving, skills, write_library

    folder = (lab.output / "derived" / "shuffled").resolve()
    experts = {seed: skills(library) for seed, library in libraries.items()}
    deriving = Deriving(lab.preset.model, next(iter(experts.values())))
    seeds = list(experts)
    for shuffle in range(number):
        chosen = experts[seeds[shuffle % len(seeds)]]
        write_library(folder / f"seed-{shuffle}", functools.partial(deriving.shuffled, chosen, shuffle))
    return str(folder / "seed-{seed}")


def _own(lab: Lab) -> str:
    """The second base's own experts, trained here: one a skill and seed."""
    lab.train([lab.training("second", label, seed, model=_second(lab)) for seed in lab.preset.seeds for label in SKILLS])
    return str(lab.folder("second"))


def _both(lab: Lab, libraries: Mapping[int, Path], own: str) -> str:
    """Libraries of both bases' experts; the first base's get another name."""
    from t2eval.paper.derived import skills, write_library

    folder = (lab.output / "derived" / "both").resolve()
    for seed, library in libraries.items():
        mine = Path(own.replace("{seed}", str(seed)))

        def experts(library: Path = library, mine: Path = mine) -> list[Any]:
            return [*(expert.renamed(f"first-{expert.name}") for expert in skills(library)), *skills(mine)]

        write_library(folder / f"seed-{seed}", experts)
    return str(folder / "seed-{seed}")


def refusal(lab: Lab) -> str:
    """The message with which an expert is refused on a base of another width: its own base's architecture with random weights, made here.

    Returns:
        The message; empty if the expert was not refused.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from t2eval.basemodel.load import model_source
    from t2eval.paper.derived import skills
    from t2eval.svf.attachment import attach

    config = AutoConfig.from_pretrained(model_source(lab.preset.model))
    config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim = 64, 160, 64, 16
    config.num_attention_heads = config.num_key_value_heads = 4
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    expert = skills(next(iter(_libraries(lab).values())))[0]
    narrow = AutoModelForCausalLM.from_config(config)
    try:
        expert.check(attach(narrow, paths=list(expert.z)), allow_basis_mismatch=True)
    except T2Error as error:
        return str(error)
    return ""


def _ways(lab: Lab, level: str) -> dict[str, Cells]:
    """Row label → finished cells."""
    second, seeds = _second(lab), lab.preset.seeds
    tasks = list((lab.preset.seen if level == "seen" else lab.preset.unseen).values())
    libraries = _libraries(lab)
    shuffles = _QUICK_SHUFFLES if lab.preset.quick else SHUFFLES

    def cells(method: str, study: str, **settings: Any) -> Cells:
        budget = lab.preset.search if method == "fewshot" else {}
        given = {"model": second, "seeds": seeds, "model_args": {method: {**_ALLOW, **budget}}, **settings}
        return lab.cells([method], tasks, study=f"transfer-{study}", **given)

    found = {BASE: lab.cells(["base"], tasks, study="transfer-base", model=second)}
    found[ORDERED] = cells("expert", "ordered", experts=lab.library(seeds))
    found[SHUFFLED] = cells("expert", "shuffled", experts=_shuffled(lab, libraries, shuffles), seeds=tuple(range(shuffles)))
    own = _own(lab)
    found[OWN] = cells("expert", "own", experts=own)
    if level == "unseen":
        found[OWN_FEWSHOT] = cells("fewshot", "fewshot-own", experts=own)
        found[BOTH] = cells("fewshot", "fewshot-both", experts=_both(lab, libraries, own))
    return found


_METHOD = {BASE: "base", ORDERED: "expert", SHUFFLED: "expert", OWN: "expert", OWN_FEWSHOT: "fewshot", BOTH: "fewshot"}

_WORDS = {
    BASE: "the second base",
    ORDERED: "the first base's ordered expert",
    SHUFFLED: "the same expert shuffled",
    OWN: "the second base's own expert",
    OWN_FEWSHOT: "few-shot over its own experts",
    BOTH: "few-shot over both bases' experts",
}
"""Row label → in a sentence."""


def _run(lab: Lab, level: str) -> Result:
    ways = _ways(lab, level)
    tasks = tuple((lab.preset.seen if level == "seen" else lab.preset.unseen).values())
    rows = [{"way": way, **cells.summary(_METHOD[way], task)} for way, cells in ways.items() for task in tasks]

    reported = item({"unseen": "table5", "seen": "table9"}[level]).reported
    heads = dict(zip(tasks, reported.columns, strict=True))

    def side(way: str, task: str) -> Side:
        return Side(_WORDS[way], ways[way].examples(_METHOD[way], task), reported.figure(heads[task], way))

    pairs = [(ORDERED, BASE), (ORDERED, SHUFFLED)] + ([(BOTH, BASE), (BOTH, OWN_FEWSHOT)] if level == "unseen" else [(OWN, ORDERED)])
    claims = [better(side(first, task), side(second, task), f"on {short(task)}") for first, second in pairs for task in tasks]
    message = refusal(lab)
    refused = Claim(text="an expert is refused on a base of another width, with the reason", holds=bool(message), seen=message)
    shuffles = len({row.seed for row in ways[SHUFFLED].rows})
    notes = (
        f"Second base: {_second(lab)}. Seeds of the experts: {', '.join(map(str, lab.preset.seeds))}; {shuffles} shuffles.",
        "The basis check was passed by name (allow_basis_mismatch=true); without that each of these experts is refused on the second base.",
        "The second base's own experts were trained for this item by the same recipe. The paper's figures for them are in its "
        f"{'Table 2' if level == 'unseen' else 'Table 1'}.",
    )
    return Result(rows=tuple(rows), claims=(*judge(claims), refused), notes=notes)


def _ours(result: Result) -> Columns:
    columns: dict[str, dict[str, str]] = {}
    for row in result.rows:
        columns.setdefault(f"{short(row['task'])} (n={row['n']})", {})[str(row["way"])] = score(row)
    return columns


def _paper(rows: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> Columns:
    return {task: {way: values[index] for way, values in rows.items()} for index, task in enumerate(tasks)}


_TABLE5 = {
    BASE: ("13.02", "43.29", "71.76"),
    ORDERED: ("11.96", "45.12", "72.01"),
    SHUFFLED: ("10.52", "40.24", "70.82"),
    OWN_FEWSHOT: ("13.39", "47.40", "75.47"),
    BOTH: ("12.65", "46.75", "75.64"),
}
_TABLE9 = {
    BASE: ("42.83", "49.50", "81.65"),
    ORDERED: ("42.61", "48.48", "81.78"),
    SHUFFLED: ("41.93", "46.34", "80.81"),
    OWN: ("49.74", "51.52", "85.14"),
}
_MODELS = "Llama-3-8B-Instruct's experts on Mistral-7B-Instruct-v0.3"

ITEMS = (
    Item(
        name="table5",
        title="Experts of one base model on another, unseen tasks",
        measures="Experts of the first base on the second one, with z in order and shuffled, and few-shot over both bases' experts.",
        reported=Reported(model=_MODELS, columns=_paper(_TABLE5, tuple(PAPER_UNSEEN.values()))),
        run=functools.partial(_run, level="unseen"),
        ours=_ours,
    ),
    Item(
        name="table9",
        title="Experts of one base model on another, seen tasks",
        measures="Experts of the first base on the second one, with z in order and shuffled, on the tasks that they were trained for.",
        reported=Reported(
            model=_MODELS,
            columns=_paper(_TABLE9, tuple(PAPER_SEEN.values())),
            slips=("46.34 is 76 of 164, HumanEval's number of problems, not MBPP-pro's 99.",),
        ),
        run=functools.partial(_run, level="seen"),
        ours=_ours,
    ),
)
