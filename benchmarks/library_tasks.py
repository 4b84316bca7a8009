"""The tasks of large_library.py: 100 subtypes of the embedded base's seen tasks, and the task that asks for a question's subtype.

A subtype is a way of asking (a template) about one group of things: `math/buys/food`, `code/then/run`, `reasoning/kind/fruit`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from t2eval.embedded import arithmetic, facts, programming
from t2eval.embedded.corpus import FAMILIES, HARD
from t2eval.embedded.problem import Problem, bucket
from t2eval.paths import tasks_dir
from t2eval.store.files import read_json_lines, write_json, write_text
from t2eval.strategies.dispatch import DispatchFormat

SIZES = {"train": 64, "validation": 16, "test": 10}  # questions of a subtype
PLACES = {"train": (60, 70), "validation": (70, 80), "test": (80, 100)}  # the buckets of the embedded tasks
THINGS = {
    "food": "apples eggs plums nuts",
    "paper": "books cards stamps maps",
    "toys": "balls kites bells cups",
    "jewels": "coins rings beads keys",
    "finds": "stones shells pens hats",
}
FUNCTIONS = {words.split()[0]: words for words in ("f g h go", "run step move calc", "work turn shift blend", "mix fold spin mark")}
ABOUT = {
    "math": "a number and needs arithmetic",
    "code": "a Python function",
    "reasoning": "which of several options fits",
}


# ---------------------------------------------------------------------- subtypes
def subtypes() -> list[str]:
    """The 100 labels, `family/template/group`."""
    found = [f"math/{template}/{group}" for template in arithmetic.TEMPLATES["seen"] for group in THINGS]
    found += [f"code/{template}/{group}" for template in programming.TEMPLATES["seen"] for group in FUNCTIONS]
    found += [f"reasoning/{template}/{kind}" for template in ("kind", "use") for kind in facts.KINDS]
    return found + [f"reasoning/{template}/{place}" for template in ("place", "where") for place in facts.PLACES]


def subtype_of(problem: Problem) -> str | None:
    """The label of a problem; None where it is of no subtype."""
    words = problem.question.split()
    if problem.family == "math":
        groups = {group for group, things in THINGS.items() if set(things.split()) & set(words)}
    elif problem.family == "code":
        groups = {group for group, names in FUNCTIONS.items() if _function(words) in names.split()}
    elif problem.template in ("kind", "use"):
        groups = {facts.KIND_OF[problem.target]}
    else:
        groups = {facts.PLACE_OF[problem.target]}
    label = f"{problem.family}/{problem.template}/{next(iter(groups))}" if len(groups) == 1 else ""
    return label if label in _KNOWN else None


_KNOWN = frozenset(subtypes())


def _function(words: list[str]) -> str:
    """The name of the function that a code problem asks for."""
    return words[words.index("name") + 1] if "name" in words else words[1]


def questions() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The rows of each subtype by split; no question stands in two splits, and none in the pretraining corpus."""
    rng = random.Random(16)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {label: {split: [] for split in SIZES} for label in subtypes()}
    known: set[str] = set()
    for family, module in FAMILIES.items():
        wanted = {label: rows for label, rows in found.items() if label.startswith(family)}
        while any(len(rows[split]) < size for rows in wanted.values() for split, size in SIZES.items()):
            problem = module.sample(rng, "seen", HARD[family])
            label, place = subtype_of(problem), bucket(problem.question)
            split = next((name for name, (low, high) in PLACES.items() if low <= place < high), None)
            if label is None or split is None or problem.question in known or len(wanted[label][split]) == SIZES[split]:
                continue
            known.add(problem.question)
            row = {"question": problem.question, "answer": problem.answers["good"], "target": problem.target, "test": problem.test}
            wanted[label][split].append({**row, "subtype": label})
    return found


# ---------------------------------------------------------------------- tasks
def write_tasks(folder: Path) -> None:
    """A task a subtype (`sub_NAME`), a task a family with all of its subtypes' questions (`mixed_FAMILY`), those that ask for a subtype."""
    if (folder / "tasks" / "mixed_reasoning.yaml").exists():
        write_dispatch_tasks(folder)
        return
    rows = questions()
    for label, splits in rows.items():
        _write_task(folder, f"sub_{name_of(label)}", label.split("/")[0], label, splits)
    for family in FAMILIES:
        mixed = {split: [row for label in rows if label.startswith(family) for row in rows[label][split]] for split in SIZES}
        random.Random(family).shuffle(mixed["test"])
        random.Random(family).shuffle(mixed["validation"])
        _write_task(folder, f"mixed_{family}", family, family, mixed)
    write_dispatch_tasks(folder)


def write_dispatch_tasks(folder: Path) -> None:
    """The tasks that ask for a question's subtype: `sub_dispatch` wants the label itself, `words_dispatch` how `said` says it."""
    for name, say in (("sub_dispatch", str), ("words_dispatch", said)):
        if (folder / "tasks" / f"{name}.yaml").exists():
            continue
        splits = {}
        for split in SIZES:
            rows = [row for label in subtypes() for row in rows_of(folder, label, split)]
            splits[split] = [{**row, "answer": say(row["subtype"]), "target": say(row["subtype"])} for row in rows]
        _write_task(folder, name, "dispatch", "dispatch", splits)


def rows_of(folder: Path, label: str, split: str) -> list[dict[str, Any]]:
    """The questions of a subtype."""
    return read_json_lines(folder / "data" / f"sub_{name_of(label)}.{split}.jsonl", what="questions")


# ---------------------------------------------------------------------- how a label is said
WORDS = dict(
    pair.split("=")
    for pair in "boxes-eats=drops boxes-more=more finds-gives=gives first-next=first loses=lost named=name place=these three-days=monday "
    "food=apples paper=books toys=balls jewels=rings attic=at cellar=cell chapel=cha garden=gar harbor=har tower=to".split()
)
"""Parts of labels that are no token of the embedded base, and a token of it that says them: a word, or how the word begins."""


def said(label: str) -> str:
    """A label in tokens that the embedded base knows, one a part: `math/buys/food` is `math buys apples`."""
    return " ".join(WORDS.get(part, part) for part in label.split("/"))


def dispatch_form(*, words: bool, hierarchy: bool) -> DispatchFormat:
    """How the model is asked for a subtype: by the labels as they stand, or as `said` says them."""
    form = DispatchFormat(template="Q: {question}\nskill:", unlisted=" {label}")
    if not words:
        return form if hierarchy else form.with_labels(subtypes())
    if not hierarchy:
        return form.model_copy(update={"labels": {label: f" {said(label)}" for label in subtypes()}})
    paths = {"/".join(label.split("/")[:depth]): label.split("/")[depth - 1] for label in subtypes() for depth in (1, 2, 3)}
    return form.model_copy(update={"labels": {path: f" {said(part)}" for path, part in paths.items()}})


def _write_task(folder: Path, name: str, family: str, label: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    files = {}
    for split, rows in splits.items():
        files[split] = str((folder / "data" / f"{name}.{split}.jsonl").resolve())
        write_text(Path(files[split]), "".join(json.dumps(row) + "\n" for row in rows))
    common = tasks_dir() / "embedded" / {"code": "_code.yaml", "dispatch": "embedded_dispatch.yaml"}.get(family, "_word.yaml")
    description = f"Asks for {ABOUT.get(family, 'the skill')}, in the way {' and '.join(label.split('/')[1:]) or 'of all'}."
    task = {
        "include": str(common),
        "task": name,
        "custom_dataset": None,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "fewshot_split": "train",
        # the code tasks' metric, pass_at_1 of tasks/embedded, runs programs in t2eval's sandbox
        "metadata": {"version": 1.0, "t2": {"label": label, "description": description, "adaptation_split": "validation", "sandbox": True}},
    }
    if family == "dispatch":  # labels are of several tokens; the included task reads one word
        task["generation_kwargs"] = {"until": ["\n"], "do_sample": False, "max_gen_toks": 24}
        filters = [{"function": "regex", "regex_pattern": r"^\s*(\S.*)"}, {"function": "take_first"}]
        task["filter_list"] = [{"name": "strict-match", "filter": filters}]
    write_json(folder / "tasks" / f"{name}.yaml", task)  # JSON is YAML


def name_of(label: str) -> str:
    return label.replace("/", "-")
