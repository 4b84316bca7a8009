"""Large library: routes over 100 small experts of the embedded base, by several ways of choosing, in accuracy, seconds and memory.

    python benchmarks/large_library.py make runs/hundred        tasks, 100 experts, the classification expert, and their embeddings
    python benchmarks/large_library.py tries runs/hundred       each classification expert that was tried, on validation questions
    python benchmarks/large_library.py measure runs/hundred     a line of results.jsonl for each way
    python benchmarks/large_library.py report runs/hundred      the tables of docs/routing.md

The 100 subtypes are those of library_tasks.py; the expert of each learns from 64 worked answers. The questions that are routed are of no
expert's training split. What is there is not made again: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library_tasks import SIZES, dispatch_form, name_of, rows_of, subtypes, write_tasks
from lm_eval import simple_evaluate

from t2eval.basemodel.load import load_base
from t2eval.embedded.corpus import FAMILIES
from t2eval.environment.loading import make_task_manager
from t2eval.environment.plain import plain_model
from t2eval.models.registry import strategy_class
from t2eval.stats.means import mean_stderr
from t2eval.store.files import append_line, read_json, read_json_lines, write_json
from t2eval.strategies.dispatch import Decision, Question
from t2eval.strategies.training_prompts import write_prompt_vectors
from t2eval.training.config import TrainConfig
from t2eval.training.train import train_expert

# ---------------------------------------------------------------------- experts
STEPS = 12


def settings(folder: Path) -> Iterator[TrainConfig]:
    """The experts' runs, a supervised one a subtype."""
    for label in subtypes():
        yield TrainConfig(
            task=f"sub_{name_of(label)}",
            output=folder / "library" / name_of(label),
            steps=STEPS,
            batch_size=32,
            validation_limit=16,
            validate_every=STEPS,
            **common(folder),
        )


def common(folder: Path) -> dict[str, Any]:
    return {"objective": "supervised", "include_path": folder / "tasks", "device": "cpu", "test": False, "resume": True}


@dataclass(frozen=True)
class Classifier:
    """A classification expert that was tried, over all training questions.

    Attributes:
        words: whether it says labels in tokens that the base knows (`library_tasks.said`), or as they stand.
        settings: of its training.
    """

    words: bool
    settings: dict[str, Any]


LORA = {"method": "lora", "modules": "all"}
CLASSIFIERS = {
    "svf, 1e-2": Classifier(False, {"lr": 1e-2, "steps": 400}),
    "svf, 1e-1": Classifier(False, {"lr": 1e-1, "steps": 400}),
    "lora, 5e-3": Classifier(False, {**LORA, "lr": 5e-3, "steps": 200}),
    "svf, words, 3e-2": Classifier(True, {"lr": 3e-2, "steps": 200}),
    "svf, words, 1e-1": Classifier(True, {"lr": 1e-1, "steps": 200}),
    "svf, words, 1e-1, longer": Classifier(True, {"lr": 1e-1, "steps": 800}),
    "lora, words, 5e-3": Classifier(True, {**LORA, "lr": 5e-3, "steps": 200}),
}
CHOSEN = "svf, words, 1e-1, longer"
"""The best on validation questions."""


def classifier(folder: Path, name: str) -> Path:
    """A classification expert, trained where it is not there yet."""
    tried = CLASSIFIERS[name]
    output = folder / "classifiers" / name.replace(", ", "-")
    task = "words_dispatch" if tried.words else "sub_dispatch"
    given = {"batch_size": 64, "validation_limit": 200, "validate_every": 100, **common(folder), **tried.settings}
    train(TrainConfig(task=task, output=output, **given), "dispatch")
    return output


def train(config: TrainConfig, label: str) -> None:
    if not (config.output / "training.json").exists():
        result = train_expert(config, progress=False)
        before, after = (result.scores[when]["validation"].score for when in ("before", "after"))
        print(f"{config.output.name}: {before:.3f} → {after:.3f}, {result.seconds:.1f} s", flush=True)
    file = config.output / ("expert.json" if config.method == "svf" else "t2_adapter.json")
    card = read_json(file, what="card")  # the labels are paths, and names are not: cards say what dispatch calls an expert
    if card["label"] != label:
        write_json(file, {**card, "label": label})


def make(folder: Path) -> None:
    write_tasks(folder)
    for config in settings(folder):
        train(config, label_of(config.output.name))
    classifier(folder, CHOSEN)
    write_json(folder / "library" / "dispatch.json", dispatch_form(words=False, hierarchy=True).model_dump(mode="json"))
    if any(not (config.output / "prompts.safetensors").exists() for config in settings(folder)):
        write_prompt_vectors(folder / "library", include_path=folder / "tasks", limit=SIZES["train"])


def label_of(name: str) -> str:
    return next(label for label in subtypes() if name_of(label) == name)


# ---------------------------------------------------------------------- measuring
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("prompt", {}),
    "prompt, hierarchy": ("prompt", {"hierarchy": True}),
    "prompt, words": ("prompt", {}),
    "prompt, words, hierarchy": ("prompt", {"hierarchy": True}),
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


def asked(folder: Path, number: int, split: str = "test") -> list[dict[str, Any]]:
    """So many questions of each subtype."""
    return [row for label in subtypes() for row in rows_of(folder, label, split)[:number]]


def strategy_of(folder: Path, way: str, tried: str = CHOSEN) -> Any:
    """The lm-eval model of one way; `tried` is the classification expert of `cls`."""
    strategy, options = WAYS[way]
    experts = str(folder / "library")
    if strategy == "cls":
        experts += f"+{classifier(folder, tried)}"
    lm = strategy_class(strategy)(experts=experts, batch_size=64, device="cpu", **options)
    if strategy != "nearest":  # what a dispatch.json in the library would say
        words = CLASSIFIERS[tried].words if strategy == "cls" else "words" in way
        lm._own_format, lm._form = True, dispatch_form(words=words, hierarchy="hierarchy" in options)
    return lm


def route(folder: Path, way: str, number: int, split: str = "test", tried: str = CHOSEN) -> dict[str, Any]:
    """The routes of one way: right at each depth, processor seconds, and memory beyond what the model and the experts take."""
    strategy, _ = WAYS[way]
    rows = asked(folder, number, split)
    lm = strategy_of(folder, way, tried)
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
    lm = strategy_class("fewshot")(experts=str(folder / "library"), batch_size=80, device="cpu", **SEARCHES[name])
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


def tries(folder: Path, number: int) -> None:
    """What tries.jsonl does not have yet: each classification expert on validation questions, flat and by hierarchy."""
    file = folder / "tries.jsonl"
    done = {(line["tried"], line["way"]) for line in (read_json_lines(file, what="tries") if file.exists() else [])}
    for name in CLASSIFIERS:
        for way in ("cls", "cls, hierarchy"):
            if (name, way) not in done:
                append_line(file, json.dumps({"tried": name, **route(folder, way, number, "validation", name)}))


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
    parser.add_argument("do", choices=["make", "tries", "measure", "report"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=3, help="Questions of each subtype that are routed, at most 10.")
    options = parser.parse_args()
    if options.do == "make":
        make(options.folder)
    elif options.do == "report":
        print(report(options.folder))
    else:
        {"tries": tries, "measure": measure}[options.do](options.folder, options.number)


if __name__ == "__main__":
    main()
