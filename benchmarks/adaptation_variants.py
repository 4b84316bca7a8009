"""Adaptation variants: steps beyond the paper's strategies, on validation questions of the embedded tasks. The table of docs/notes.md.

    python benchmarks/adaptation_variants.py runs/variants.jsonl             measures what is missing, then prints the tables
    python benchmarks/adaptation_variants.py runs/variants.jsonl --report    the tables of what is there

Three ideas, each beside what it would replace (`COMPARED`):

- soft: dispatch's probabilities of the skills are the α of each question (`mix=soft`), instead of one expert a question;
- warm: the cross-entropy method begins at the mean of dispatch's probabilities over the adaptation examples, half as wide, instead of at
  the even mix; also with half of the iterations, which is what a good beginning would be for;
- tied: one α a layer, of which the search moves the task's α and each layer's distance from it, a fifth as far; instead of one α a task.

No test question is looked at. Of a seen task 10 training questions are searched on and 100 validation questions scored; of an unseen one 10
of 20 and the 40 others of its adaptation split; three training seeds of the experts, each with another draw of the 10. The rule was fixed
before anything was measured: an idea becomes a setting, or a default, only where it is above what it would replace over all questions
(paired bootstrap over draws and questions, Holm's correction over the comparisons, p < 0.05).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2eval.basemodel.folders import embedded_base_dir, embedded_library_dir
from t2eval.basemodel.load import load_base
from t2eval.environment.environment import Environment, Example
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.expert.library import load_library
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.stats.corrections import holm
from t2eval.stats.means import mean_stderr
from t2eval.stats.paired import paired_draws
from t2eval.store.files import append_line, read_json_lines
from t2eval.strategies.alpha import Coefficients
from t2eval.strategies.dispatch import DISPATCH_LABEL, Decision, Dispatcher, load_format
from t2eval.strategies.fewshot import Candidates, FewshotConfig, adapt
from t2eval.strategies.search import Array, SearchConfig
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.scales import mix_scales

FAMILIES = ("math", "code", "reasoning")
TASKS = tuple(f"embedded_{family}_{level}" for level in ("seen", "unseen") for family in FAMILIES)
SEEDS = (0, 1, 2)
SHOTS = 10
SCORED = {"seen": 100, "unseen": 40}
OTHERS = "others"
ITERATIONS = {"cem": 4, "warm": 4, "tied": 4, "cem, half": 2, "warm, half": 2}
VARIANTS = ("hard", "soft", *ITERATIONS)
COMPARED = (("soft", "hard"), ("warm", "cem"), ("warm, half", "cem, half"), ("tied", "cem"))
_BATCH = 96


# ---------------------------------------------------------------------- what a search's vector means
@dataclass(frozen=True)
class Warm(Coefficients):
    """Searched around `centre`, not around the even mix: a vector's distance from the even mix, times `width`, is that from `centre`."""

    centre: tuple[float, ...] = ()
    width: float = 0.5

    def alphas(self, vector: Array) -> Array:
        even = 1.0 / len(self.scales)
        return super().alphas(np.clip(np.asarray(self.centre) + self.width * (np.asarray(vector) - even), 0.0, 1.0))  # (K,)


@dataclass(frozen=True)
class Tied(Coefficients):
    """One α a layer: the task's (the first K of a vector), and `width` times each layer's distance from the even mix (the others)."""

    width: float = 0.2

    @property
    def dimensions(self) -> int:
        return len(self.scales) * (1 + len(self.groups))

    def alphas(self, vector: Array) -> Array:
        rows = np.asarray(vector, dtype=np.float64).reshape(-1, len(self.scales))  # (1 + layers, K)
        tied = np.clip(rows[:1] + self.width * (rows[1:] - 1.0 / len(self.scales)), 0.0, 1.0)  # (layers, K)
        return super().alphas(tied.reshape(-1))


# ---------------------------------------------------------------------- one task under one seed's experts
class Lab:
    """The embedded base with the experts of one training seed, and one task: 10 examples to search on, others to score."""

    def __init__(self, base: tuple[Any, Any], adapted: Adapted, task: str, seed: int) -> None:
        model, tokenizer = base
        self.adapted, self.seed = adapted, seed
        experts = [expert for expert in load_library(embedded_library_dir(seed)) if expert.label != DISPATCH_LABEL]
        self.labels, self.scales = [expert.label for expert in experts], [expert.z for expert in experts]
        self.environment = Environment(task)
        self.engine = Engine(model, tokenizer, batch_size=_BATCH)
        form = load_format(embedded_base_dir())
        assert form is not None
        self.dispatcher = Dispatcher(self.engine, form, OTHERS)
        level = task.rpartition("_")[2]
        if level == "seen":
            self.searched = self.environment.examples("train", limit=SHOTS, seed=seed)
            self.scored = self.environment.examples("validation", limit=SCORED[level], seed=0)
        else:
            examples = self.environment.examples("adaptation")
            order = np.random.default_rng(0).permutation(len(examples)).tolist()  # the same questions are scored under all seeds
            drawn = np.random.default_rng(seed).choice(order[SCORED[level] :], SHOTS, replace=False).tolist()
            self.searched = [examples[place] for place in sorted(drawn)]
            self.scored = [examples[place] for place in sorted(order[: SCORED[level]])]

    def decisions(self, examples: list[Example]) -> list[Decision]:
        with self.adapted.disabled():
            return self.dispatcher.decide([str(example.doc["question"]) for example in examples])

    def chosen(self, variant: str) -> list[dict[str, Tensor]]:
        """The z of each scored question by dispatch."""
        ones = {path: torch.ones_like(z) for path, z in self.scales[0].items()}
        by_label = {**dict(zip(self.labels, self.scales, strict=True)), OTHERS: ones}
        decisions = self.decisions(self.scored)
        if variant == "hard":
            return [dict(by_label[decision.label]) for decision in decisions]
        return [mix_scales(self.scales, [decision.weights[label] for label in self.labels], "offset") for decision in decisions]

    def found(self, variant: str) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
        """The z of each scored question by search: one for all of them."""
        coefficients = Coefficients(self.scales, "task", normalize=True)
        if variant.startswith("warm"):
            decisions = self.decisions(self.searched)
            centre = np.mean([[decision.weights[label] for label in self.labels] for decision in decisions], axis=0)  # (K,)
            coefficients = Warm(self.scales, "task", normalize=True, centre=tuple(map(float, centre)))
        elif variant == "tied":
            coefficients = Tied(self.scales, "layer", normalize=True)
        config = FewshotConfig(search=SearchConfig(iterations=ITERATIONS[variant], seed=self.seed))
        candidates = Candidates(self.adapted, self.engine, self.environment, self.searched, coefficients)
        adaptation = adapt(coefficients, candidates, config)
        told = {"alphas": adaptation.alphas, "evaluations": adaptation.evaluations, "adaptation": adaptation.score}
        return [adaptation.z] * len(self.scored), told

    def outcomes(self, scales: list[dict[str, Tensor]]) -> dict[str, float]:
        """The score of each scored question, answered greedily under its own z."""
        settings = GenerationSettings.from_gen_kwargs(self.environment.generation_kwargs, self.environment.max_new_tokens)
        stacked = {path: torch.stack([z[path] for z in scales]) for path in scales[0]}  # (questions, r) by path
        made = self.engine.complete(
            [self.engine.encode(example.prompt) for example in self.scored],
            settings,
            scope=lambda places: self.adapted.per_sequence({path: z[torch.tensor(places)] for path, z in stacked.items()}),
        )
        pairs = [(example, completion.text) for example, completion in zip(self.scored, made, strict=True)]
        scores = self.environment.score_many(pairs)
        return {f"{self.environment.name} {example.index}": score for example, score in zip(self.scored, scores, strict=True)}


def measure(results: Path) -> None:
    """What `results` does not have yet, a line each."""
    results.parent.mkdir(parents=True, exist_ok=True)
    have = read_json_lines(results, what="results") if results.exists() else []
    done = {(line["task"], line["seed"], line["variant"]) for line in have}
    base = load_base("embedded")
    paths = sorted({path for expert in load_library(embedded_library_dir(0)) for path in expert.z})
    adapted = attach(base[0], paths=paths)
    adapted.set_z(None)
    for task in TASKS:
        for seed in SEEDS:
            missing = [variant for variant in VARIANTS if (task, seed, variant) not in done]
            lab = Lab(base, adapted, task, seed) if missing else None
            for variant in missing:
                assert lab is not None
                started = time.process_time()
                scales, told = lab.found(variant) if variant in ITERATIONS else (lab.chosen(variant), {"evaluations": 0})
                seconds = time.process_time() - started
                line = {"task": task, "seed": seed, "variant": variant, "outcomes": lab.outcomes(scales), "cpu_seconds": seconds, **told}
                append_line(results, json.dumps(line))
                print(task, seed, variant, f"{statistics.fmean(line['outcomes'].values()):.3f}", f"{seconds:.1f} s", flush=True)


# ---------------------------------------------------------------------- tables
def report(lines: list[dict[str, Any]]) -> str:
    """The means by level of task, and each comparison over all questions."""
    table = ["| | candidates | seen: own expert is there | unseen | CPU s |", "|---|---|---|---|---|"]
    for variant in VARIANTS:
        own = [line for line in lines if line["variant"] == variant]
        cells = []
        for level in SCORED:
            of_level = [line["outcomes"] for line in own if line["task"].endswith(f"_{level}")]
            if not of_level:
                cells.append("–")
                continue
            mean, error = mean_stderr(list(_by_question(of_level).values()))
            cells.append(f"{mean:.3f} ± {error or 0:.3f} (n={len(_by_question(of_level))})")
        spent, seconds = (statistics.fmean(line[key] for line in own) if own else float("nan") for key in ("evaluations", "cpu_seconds"))
        table.append(f"| {variant} | {spent:.0f} | {' | '.join(cells)} | {seconds:.1f} |")
    tests = [(one, other, paired_draws(_runs(lines, one, other), _runs(lines, other, one))) for one, other in COMPARED]
    known = [(one, other, test) for one, other, test in tests if test is not None]
    corrected = holm([test.p for _, _, test in known])
    table += ["", "| idea, instead of | difference | p, p by Holm | n | a setting |", "|---|---|---|---|---|"]
    for (one, other, test), p in zip(known, corrected, strict=True):
        earned = "yes" if p < 0.05 and test.difference > 0 else "no"
        change = f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
        table.append(f"| {one}, {other} | {change} | {test.p:.2g}, {p:.2g} | {test.n} | {earned} |")
    return "\n".join(table)


def _by_question(runs: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each question over the seeds that scored it."""
    keys = sorted({key for run in runs for key in run})
    return {key: statistics.fmean(run[key] for run in runs if key in run) for key in keys}


def _runs(lines: list[dict[str, Any]], variant: str, other: str) -> list[dict[str, float]]:
    """The outcomes of each seed under one variant: of the tasks that `other` has too, and the questions that all seeds scored."""
    wanted = {name: {(line["task"], line["seed"]) for line in lines if line["variant"] == name} for name in (variant, other)}
    shared = wanted[variant] & wanted[other]
    tasks = {task for task, _ in shared if all((task, seed) in shared for seed in SEEDS)}
    return [
        {
            key: score
            for line in lines
            if (line["variant"], line["seed"]) == (variant, seed) and line["task"] in tasks
            for key, score in line["outcomes"].items()
        }
        for seed in SEEDS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    quiet_lm_eval()
    if not options.report:
        measure(options.results)
    print(report(read_json_lines(options.results, what="results")))


if __name__ == "__main__":
    main()
