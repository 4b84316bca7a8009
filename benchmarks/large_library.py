"""Large library: routes over 100 small experts of the embedded base, by several ways of choosing, in accuracy, seconds and memory.

    python benchmarks/large_library.py make runs/hundred        tasks, 100 experts, a classification expert, and their embeddings
    python benchmarks/large_library.py measure runs/hundred     a line of results.jsonl for each way
    python benchmarks/large_library.py report runs/hundred      the tables of docs/routing.md

A subtype is a way of asking (a template of the embedded tasks) about one group of things: `math/buys/food`, `code/then/run`,
`reasoning/kind/fruit`. Its expert learns from 64 worked answers. The questions that are routed are of no expert's training split. What is
there is not made again: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate

from t2eval.basemodel.load import load_base
from t2eval.embedded import arithmetic, facts, programming
from t2eval.embedded.corpus import FAMILIES, HARD
from t2eval.embedded.problem import Problem, bucket
from t2eval.environment.loading import make_task_manager
from t2eval.environment.plain import plain_model
from t2eval.models.registry import strategy_class
from t2eval.paths import tasks_dir
from t2eval.stats.means import mean_stderr
from t2eval.store.files import append_line, read_json, read_json_lines, write_json, write_text
from t2eval.strategies.dispatch import Decision, Question, load_format
from t2eval.strategies.training_prompts import write_prompt_vectors
from t2eval.training.config import TrainConfig
from t2eval.training.train import train_expert

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
    """A task a subtype (`sub_NAME`), a task a family with all of its subtypes' questions mixed (`mixed_FAMILY`), and `sub_dispatch`."""
    if (folder / "tasks" / "sub_dispatch.yaml").exists():
        return
    rows = questions()
    for label, splits in rows.items():
        _write_task(folder, f"sub_{name_of(label)}", label.split("/")[0], label, splits)
    for family in FAMILIES:
        mixed = {split: [row for label in rows if label.startswith(family) for row in rows[label][split]] for split in SIZES}
        random.Random(family).shuffle(mixed["test"])
        random.Random(family).shuffle(mixed["validation"])
        _write_task(folder, f"mixed_{family}", family, family, mixed)
    asked = {split: [{**row, "answer": label, "target": label} for label in rows for row in rows[label][split]] for split in SIZES}
    _write_task(folder, "sub_dispatch", "dispatch", "dispatch", asked)


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
    if family == "dispatch":  # labels are paths of several tokens; the included task reads one word
        task["generation_kwargs"] = {"until": ["\n"], "do_sample": False, "max_gen_toks": 24}
        filters = [{"function": "regex", "regex_pattern": r"^\s*(\S+)"}, {"function": "take_first"}]
        task["filter_list"] = [{"name": "strict-match", "filter": filters}]
    write_json(folder / "tasks" / f"{name}.yaml", task)  # JSON is YAML


def name_of(label: str) -> str:
    return label.replace("/", "-")


# ---------------------------------------------------------------------- experts
def settings(folder: Path) -> Iterator[TrainConfig]:
    """The runs: a supervised one a subtype, and one of the classification expert over all of their training questions."""
    common = {"objective": "supervised", "include_path": folder / "tasks", "device": "cpu", "test": False, "resume": True}
    for label in subtypes():
        yield TrainConfig(
            task=f"sub_{name_of(label)}",
            output=folder / "library" / name_of(label),
            steps=STEPS,
            batch_size=32,
            validation_limit=16,
            validate_every=STEPS,
            **common,
        )
    yield TrainConfig(  # a label that the base never says takes a higher rate than the recipe's: validation chooses
        task="sub_dispatch",
        output=folder / "classifier",
        steps=200,
        batch_size=64,
        lr=[3e-2, 1e-1],
        validation_limit=200,
        validate_every=100,
        **common,
    )


STEPS = 12


def make(folder: Path) -> None:
    write_tasks(folder)
    for config in settings(folder):
        if not (config.output / "training.json").exists():
            result = train_expert(config, progress=False)
            before, after = (result.scores[when]["validation"].score for when in ("before", "after"))
            print(f"{config.output.name}: {before:.3f} → {after:.3f}, {result.seconds:.1f} s", flush=True)
    for config in settings(folder):  # the labels are paths, and names are not: cards say what dispatch calls an expert
        card = read_json(config.output / "expert.json", what="card")
        wanted = "dispatch" if config.output.name == "classifier" else label_of(config.output.name)
        if card["label"] != wanted:
            write_json(config.output / "expert.json", {**card, "label": wanted})
    form = {"template": "Q: {question}\nskill:", "labels": {}, "unlisted": " {label}"}
    write_json(folder / "library" / "dispatch.json", form)
    if any(not (config.output / "prompts.safetensors").exists() for config in settings(folder) if config.output.name != "classifier"):
        write_prompt_vectors(folder / "library", include_path=folder / "tasks", limit=SIZES["train"])


def label_of(name: str) -> str:
    return next(label for label in subtypes() if name_of(label) == name)


# ---------------------------------------------------------------------- measuring
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("prompt", {}),
    "prompt, hierarchy": ("prompt", {"hierarchy": True}),
    "cls": ("cls", {}),
    "cls, hierarchy": ("cls", {"hierarchy": True}),
    "nearest, 5 neighbours": ("nearest", {}),
    "nearest, mean": ("nearest", {"neighbours": 0}),
}
NEAREST = "nearest, 5 neighbours"
ANSWERED = ("base", "own", NEAREST, "cls, hierarchy", "prompt, hierarchy")
SEARCHES: dict[str, dict[str, Any]] = {
    "cem": {"search": "cem"},
    "sepcmaes": {"search": "sepcmaes"},
    "sepcmaes, coarse to fine": {"search": "sepcmaes", "hierarchy": True},
}
SEARCHED = ("math/loses/food", "code/named/mix", "reasoning/use/fruit")


def asked(folder: Path, number: int) -> list[dict[str, Any]]:
    """So many test questions of each subtype."""
    return [
        row
        for label in subtypes()
        for row in read_json_lines(folder / "data" / f"sub_{name_of(label)}.test.jsonl", what="questions")[:number]
    ]


def library(folder: Path, strategy: str) -> str:
    return f"{folder / 'library'}+{folder / 'classifier'}" if strategy == "cls" else str(folder / "library")


def strategy_of(folder: Path, way: str) -> Any:
    """The lm-eval model of one way."""
    strategy, options = WAYS[way]
    lm = strategy_class(strategy)(experts=library(folder, strategy), batch_size=64, device="cpu", **options)
    if strategy == "cls":  # a library of several folders has no format of its own
        form = load_format(folder / "library")
        assert form is not None
        lm._own_format = True
        lm._form = form if options else form.with_labels(sorted(lm._experts_of))
    return lm


def route(folder: Path, way: str, number: int) -> dict[str, Any]:
    """The routes of one way: right at each depth, processor seconds, and memory beyond what the model and the experts take."""
    strategy, _ = WAYS[way]
    rows = asked(folder, number)
    lm = strategy_of(folder, way)
    form = "{}" if strategy != "nearest" else "Q: {}\nA:"  # as the tasks' documents are read
    questions = [Question(form.format(row["question"])) for row in rows]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, and not from the largest moment of an earlier way
    before, started = peak(), time.process_time()
    found = lm.decide(questions, chat=False)
    seconds = time.process_time() - started
    right = {
        depth: [decision.label.split("/")[:depth] == row["subtype"].split("/")[:depth] for decision, row in zip(found, rows, strict=True)]
        for depth in (1, 2, 3)
    }
    return {
        "way": way,
        "n": len(rows),
        "right": {name: mean_stderr([float(each) for each in right[depth]]) for name, depth in DEPTHS.items()},
        "cpu_ms_a_question": 1000 * seconds / len(rows),
        "tokens_a_question": lm.first_pass.tokens / len(rows),
        "peak_mb_more": (peak() - before) / 1e6,
    }


DEPTHS = {"family": 1, "template": 2, "subtype": 3}


def peak() -> int:
    """The most bytes that this process has held since its peak was reset (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def answers(folder: Path, way: str, number: int) -> dict[str, Any]:
    """The scores of the mixed tasks, their first `number` test questions, under one way of choosing; `own` is the right expert."""
    manager = make_task_manager(str(folder / "tasks"), task="mixed_math")
    if way == "base":
        lm: Any = plain_model(*load_base("embedded"), batch_size=64)
    else:
        lm = strategy_of(folder, NEAREST if way == "own" else way)
        if way == "own":
            of = {f"Q: {row['question']}\nA:": row["subtype"] for row in asked(folder, SIZES["test"])}
            lm.decide = lambda questions, chat: [Decision(of[question.text], {}) for question in questions]
    found = {}
    for family in FAMILIES:
        results = simple_evaluate(
            lm, tasks=[f"mixed_{family}"], task_manager=manager, limit=number, bootstrap_iters=0, confirm_run_unsafe_code=True
        )
        metric = "pass@1" if family == "code" else "exact_match"
        samples = {sample["doc_id"]: sample for sample in results["samples"][f"mixed_{family}"]}
        found[family] = mean_stderr([float(sample[metric]) for sample in samples.values()])
    return {"answers": way, "n": number, "score": found}


def search(folder: Path, name: str, label: str) -> dict[str, Any]:
    """One search of α over the 100 experts, on 10 examples of one subtype: what it found, and what it took."""
    lm = strategy_class("fewshot")(experts=library(folder, "fewshot"), batch_size=80, device="cpu", **SEARCHES[name])
    task = f"sub_{name_of(label)}"
    manager = make_task_manager(str(folder / "tasks"), task=task)
    started = time.process_time()
    results = simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0, confirm_run_unsafe_code=True)
    told = results["config"]["t2"]
    alphas = dict(zip(told["alpha_order"], told["alphas"][task], strict=True))
    total = sum(alphas.values()) or 1.0
    metric = "pass@1" if label.startswith("code") else "exact_match"
    scores = [float(sample[metric]) for sample in results["samples"][task]]
    return {
        "search": name,
        "label": label,
        "evaluations": told["adaptation"][task]["evaluations"],
        "adaptation_score": told["adaptation"][task]["score"],
        "score": mean_stderr(scores),
        "n": len(scores),
        "share": {
            depth: sum(alpha for each, alpha in alphas.items() if label_of(each).split("/")[:count] == label.split("/")[:count]) / total
            for depth, count in DEPTHS.items()
        },
        "cpu_seconds": time.process_time() - started,
    }


def measure(folder: Path, number: int) -> None:
    """What results.jsonl does not have yet, a line each."""
    file = folder / "results.jsonl"
    have = read_json_lines(file, what="results") if file.exists() else []
    done = {(line.get("way"), line.get("answers"), line.get("search"), line.get("label")) for line in have}
    for way in WAYS:
        if (way, None, None, None) not in done:
            append_line(file, json.dumps(route(folder, way, number)))
    for way in ANSWERED:
        if (None, way, None, None) not in done:
            append_line(file, json.dumps(answers(folder, way, 34 * number)))
    for label in SEARCHED:
        for name in SEARCHES:
            if (None, None, name, label) not in done:
                append_line(file, json.dumps(search(folder, name, label)))


def report(folder: Path) -> str:
    """The tables, in Markdown."""
    lines = read_json_lines(folder / "results.jsonl", what="results")
    table = ["| way | subtype (100) | template (17) | family (3) | tokens, ms a question | peak memory |", "|---|---|---|---|---|---|"]
    for line in (each for each in lines if "way" in each):
        right = " | ".join(f"{line['right'][depth][0]:.3f} ± {line['right'][depth][1]:.3f}" for depth in ("subtype", "template", "family"))
        cost = f"{line['tokens_a_question']:.0f}, {line['cpu_ms_a_question']:.1f}"
        table.append(f"| {line['way']} (n={line['n']}) | {right} | {cost} | +{line['peak_mb_more']:.0f} MB |")
    table += ["", "| answers under | math | code | reasoning |", "|---|---|---|---|"]
    for line in (each for each in lines if "answers" in each):
        scores = " | ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in line["score"].values())
        table.append(f"| {line['answers']} (n={line['n']} each) | {scores} |")
    table += ["", "| search | task | evaluations | Σα right: subtype, template, family | adaptation | test | CPU s |"]
    table.append("|---|---|---|---|---|---|---|")
    for line in (each for each in lines if "search" in each):
        share = ", ".join(f"{line['share'][depth]:.2f}" for depth in ("subtype", "template", "family"))
        score = f"{line['adaptation_score']:.2f} | {line['score'][0]:.2f} (n={line['n']})"
        table.append(f"| {line['search']} | {line['label']} | {line['evaluations']} | {share} | {score} | {line['cpu_seconds']:.0f} |")
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("do", choices=["make", "measure", "report"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=3, help="Test questions of each subtype, at most 10.")
    options = parser.parse_args()
    if options.do == "make":
        make(options.folder)
    elif options.do == "measure":
        measure(options.folder, options.number)
    else:
        print(report(options.folder))


if __name__ == "__main__":
    main()
