"""Search study: which search, granularity and form of α is worth its evaluations, on validation tasks only.

`python -m t2eval.paper.search_study --output FILE` runs it on the embedded base and prints the tables of docs/notes.md. Adaptation
examples come from a seen task's training split, and what a search found is scored on the task's validation split: no unseen task and no
test item is looked at, so the defaults that follow from it (`SearchConfig`, `FewshotConfig`) are chosen fairly.

A budget of n iterations is a search of its own with the same seed, so each point of a curve is what a user of that budget would get,
the choice between mean and best candidate included.

A seen task's own expert makes the optimum a corner of the box: α is 1 for one expert and 0 for the others. With `others=True` that
expert is left out, as it would be for an unseen task.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import Tensor

from t2eval.basemodel.folders import embedded_library_dir
from t2eval.basemodel.load import load_base
from t2eval.environment.environment import Environment, Example
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.expert.library import load_library
from t2eval.generation.engine import Engine
from t2eval.stats.corrections import holm
from t2eval.stats.means import average_seeds, mean_stderr
from t2eval.stats.paired import paired
from t2eval.store.files import append_line, of_shape, read_json_lines
from t2eval.strategies.alpha import Coefficients, Form, Granularity
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.strategies.fewshot import Candidates, FewshotConfig, Outcome, adapt
from t2eval.strategies.search import Array, Method, SearchConfig
from t2eval.svf.attachment import attach

TASKS = ("embedded_math_seen", "embedded_code_seen", "embedded_reasoning_seen")
BUDGETS = (1, 2, 4, 8)
_BATCH = 80


@dataclass(frozen=True)
class Arm:
    """One way to search: what is compared."""

    search: Method = "cem"
    granularity: Granularity = "task"
    normalize: bool = False
    form: Form = "paper"

    def __str__(self) -> str:
        return f"{self.search} {self.granularity}{' normalised' if self.normalize else ''}{' offset' if self.form == 'offset' else ''}"


SEARCHES = (Arm("random"), *(Arm(search, granularity) for granularity in ("task", "layer", "matrix") for search in ("cem", "cmaes")))
_FORMS: tuple[tuple[bool, Form], ...] = ((True, "paper"), (False, "offset"), (True, "offset"))
_METHODS: tuple[Method, ...] = ("random", "cem", "cmaes")
FORMS = tuple(Arm(search, normalize=normalize, form=form) for normalize, form in _FORMS for search in _METHODS)


@dataclass(frozen=True)
class Point:
    """One search at one budget, scored on validation.

    Attributes:
        task, arm: what was searched. others: without the task's own expert.
        library: training seed of the experts. draw: of the adaptation examples and of the search.
        iterations: the budget; 0 for an α that needs no search (`arm` is then its name).
        evaluations, seconds: of candidates on the adaptation examples.
        adaptation: the score there.
        outcomes: the score of each validation example.
    """

    task: str
    arm: str
    others: bool
    library: int
    draw: int
    iterations: int
    evaluations: int
    seconds: float
    adaptation: float | None
    outcomes: list[float]


@dataclass
class _Timed:
    """Outcomes of candidates, each computed once for all budgets, and the seconds that it took."""

    evaluate: Callable[[Sequence[Array]], list[Outcome]]
    seconds: float = 0.0
    known: dict[bytes, Outcome] = field(default_factory=dict)

    def __call__(self, vectors: Sequence[Array]) -> list[Outcome]:
        new = [vector for vector in vectors if vector.tobytes() not in self.known]
        started = time.perf_counter()
        if new:
            self.known.update(zip((vector.tobytes() for vector in new), self.evaluate(new), strict=True))
        self.seconds += time.perf_counter() - started
        return [self.known[vector.tobytes()] for vector in vectors]


class Study:
    """The embedded base (or another one) with the experts of several training seeds, ready to be searched over.

    Args:
        libraries: training seed → label → z by matrix path.
        base: (model, tokenizer); None: the embedded base.
        validation: at most so many validation examples a task.
        shots, population: of each search.
    """

    def __init__(
        self,
        libraries: Mapping[int, Mapping[str, Mapping[str, Tensor]]],
        base: tuple[Any, Any] | None = None,
        *,
        validation: int = 100,
        shots: int = 10,
        population: int = 16,
    ) -> None:
        self.libraries, self.validation, self.shots, self.population = libraries, validation, shots, population
        self.model, self.tokenizer = base or load_base()
        paths = sorted({path for library in libraries.values() for z in library.values() for path in z})
        self.adapted = attach(self.model, paths=paths)
        self.adapted.set_z(None)
        self._tasks: dict[str, tuple[Environment, list[Example]]] = {}

    def _task(self, name: str) -> tuple[Environment, list[Example]]:
        if name not in self._tasks:
            environment = Environment(name)
            self._tasks[name] = environment, environment.examples("validation", limit=self.validation, seed=0)
        return self._tasks[name]

    def _candidates(self, environment: Environment, examples: Sequence[Example], coefficients: Coefficients) -> Candidates:
        engine = Engine(self.model, self.tokenizer, batch_size=_BATCH)
        return Candidates(self.adapted, engine, environment, examples, coefficients)

    def score(self, task: str, z: Mapping[str, Tensor]) -> list[float]:
        """The score of each validation example with z."""
        environment, examples = self._task(task)
        return list(self._candidates(environment, examples, Coefficients([z]))([np.ones(1)])[0].scores)

    def experts(self, task: str, library: int, others: bool) -> list[Mapping[str, Tensor]]:
        """z of the experts, by label; without the task's own if `others`."""
        own = self._task(task)[0].t2.get("label")
        return [z for label, z in sorted(self.libraries[library].items()) if not (others and label == own)]

    def references(self, task: str, library: int, others: bool) -> list[Point]:
        """What needs no search: the base, the task's own expert, and the even mix."""
        scales = self.experts(task, library, others)
        mixes = Coefficients(scales)
        own = self.libraries[library].get(str(self._task(task)[0].t2.get("label")))
        known: dict[str, Mapping[str, Tensor]] = {"base": {path: z * 0 + 1 for path, z in scales[0].items()}}
        known |= {} if own is None else {"own expert": own}
        known["even mix"] = mixes.z(np.full(len(scales), 1 / len(scales)))
        return [Point(task, name, others, library, 0, 0, 0, 0.0, None, self.score(task, z)) for name, z in known.items()]

    def search(self, task: str, arm: Arm, library: int, draw: int, others: bool, budgets: Sequence[int] = BUDGETS) -> list[Point]:
        """One search at growing budgets."""
        environment, _ = self._task(task)
        coefficients = Coefficients(self.experts(task, library, others), arm.granularity, arm.normalize, arm.form)
        examples = environment.examples("train", limit=self.shots, seed=draw)
        evaluate = _Timed(self._candidates(environment, examples, coefficients))
        points: list[Point] = []
        for iterations in sorted(budgets):
            search = SearchConfig(method=arm.search, population=self.population, iterations=iterations, seed=draw)
            found = adapt(coefficients, evaluate, FewshotConfig(shots=self.shots, search=search))
            same = next((point for point in points if point.evaluations == found.evaluations), None)  # it had converged
            outcomes = same.outcomes if same else self.score(task, found.z)
            points.append(
                Point(task, str(arm), others, library, draw, iterations, found.evaluations, evaluate.seconds, found.score, outcomes)
            )
        return points


def embedded_libraries(seeds: Sequence[int]) -> dict[int, dict[str, dict[str, Tensor]]]:
    """The shipped experts: training seed → label → z."""
    return {
        seed: {expert.label: expert.z for expert in load_library(embedded_library_dir(seed)) if expert.label != DISPATCH_LABEL}
        for seed in seeds
    }


def summary(points: Iterable[Point]) -> list[dict[str, Any]]:
    """Mean validation score of each arm and budget over tasks, libraries and draws, and its distance from random search on α per task.

    The standard error is over validation examples, whose outcomes are averaged over libraries and draws first; `spread` is the
    standard deviation between runs. `p` compares with `random task` at the same budget on the same examples (paired, Holm's correction
    over all comparisons).
    """
    groups: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.arm, point.iterations), []).append(point)
    examples = {key: _by_example(group) for key, group in groups.items()}
    rows: list[dict[str, Any]] = []
    for (arm, iterations), group in groups.items():
        score, stderr = mean_stderr(list(examples[arm, iterations].values()))
        floor = examples.get((str(Arm("random")), iterations))
        versus = paired(examples[arm, iterations], floor) if floor and arm != str(Arm("random")) else None
        runs = [float(np.mean(point.outcomes)) for point in group]
        rows.append(
            {
                "arm": arm,
                "iterations": iterations,
                "evaluations": float(np.mean([point.evaluations for point in group])),
                "seconds": float(np.mean([point.seconds for point in group])),
                "adaptation": float(np.mean([point.adaptation for point in group])) if group[0].adaptation is not None else None,
                "validation": score,
                "stderr": stderr,
                "spread": float(np.std(_centred(group, runs), ddof=1)) if len(runs) > 1 else 0.0,
                "n": len(examples[arm, iterations]),
                "runs": len(group),
                "versus_random": versus.difference if versus else None,
                "p": versus.p if versus else None,
            }
        )
    adjusted = iter(holm([row["p"] for row in rows if row["p"] is not None]))
    return [{**row, "p": None if row["p"] is None else next(adjusted)} for row in rows]


def _by_example(group: Sequence[Point]) -> dict[str, float]:
    """Validation example → outcome, averaged over the libraries and draws of its task."""
    found: dict[str, float] = {}
    for task in dict.fromkeys(point.task for point in group):
        runs = [{f"{task}/{index}": value for index, value in enumerate(point.outcomes)} for point in group if point.task == task]
        found |= average_seeds(runs)
    return found


def _centred(group: Sequence[Point], runs: Sequence[float]) -> list[float]:
    """Each run's score less its task's mean: what draws and training seeds change."""
    by_task: dict[str, list[float]] = {}
    for point, run in zip(group, runs, strict=True):
        by_task.setdefault(point.task, []).append(run)
    return [run - float(np.mean(by_task[point.task])) for point, run in zip(group, runs, strict=True)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of `summary`."""
    lines = [
        "| search | iterations | evaluations | seconds | adaptation | validation | spread of runs | against random, α per task |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        versus = "–" if row["versus_random"] is None else f"{row['versus_random']:+.3f} (p = {row['p']:.2g})"
        error = "N/A" if row["stderr"] is None else f"{row['stderr']:.3f}"
        adaptation = "–" if row["adaptation"] is None else f"{row['adaptation']:.3f}"
        lines.append(
            f"| {row['arm']} | {row['iterations']} | {row['evaluations']:.0f} | {row['seconds']:.1f} | {adaptation} | "
            f"{row['validation']:.3f} ± {error} | {row['spread']:.3f} | {versus} |"
        )
    return "\n".join(lines)


def read(path: Path) -> list[Point]:
    """The finished points of a study's file."""
    what, remedy = "file of a study", "Mend or remove the line: its search runs again."
    lines = read_json_lines(path, what=what, remedy=remedy, limit=2**30) if path.exists() else []
    return [of_shape(line, Point, path, what=what, remedy=remedy, place=f"search {number}") for number, line in enumerate(lines, start=1)]


def run_study(
    study: Study,
    output: Path,
    *,
    tasks: Sequence[str] = TASKS,
    arms: Sequence[Arm] = (*SEARCHES, *FORMS),
    draws: int = 1,
    budgets: Sequence[int] = BUDGETS,
    others: bool = False,
    say: Callable[[str], None] = click.echo,
) -> list[Point]:
    """Run what is missing of a study; every finished search is a few lines of `output` (JSON).

    Args:
        study: what is searched over.
        output: JSON lines.
        tasks, arms, budgets: what is compared.
        draws: of adaptation examples, for each training seed of the experts (no two of them share one).
        others: without the task's own expert.
        say: told each search.

    Returns:
        All points with this `others`.
    """
    finished = read(output)
    done = {(point.task, point.arm, point.others, point.library, point.draw) for point in finished}
    jobs: list[tuple[tuple[Any, ...], Callable[[], list[Point]]]] = []
    for library, task in itertools.product(study.libraries, tasks):
        jobs.append(((task, "base", others, library, 0), functools.partial(study.references, task, library, others)))
    for number, library, task, arm in itertools.product(range(draws), study.libraries, tasks, arms):
        draw = 100 * number + library
        run = functools.partial(study.search, task, arm, library, draw, others, budgets)
        jobs.append(((task, str(arm), others, library, draw), run))
    output.parent.mkdir(parents=True, exist_ok=True)
    for key, job in jobs:
        if key in done:
            continue
        points = job()
        append_line(output, "\n".join(json.dumps(asdict(point)) for point in points))
        finished += points
        say(f"{' '.join(map(str, key))}: {np.mean(points[-1].outcomes):.3f}")
    return [point for point in finished if point.others == others]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON lines; run again to resume.")
@click.option("--draws", default=1, show_default=True, help="Draws of adaptation examples for each training seed and task.")
@click.option("--seeds", default=3, show_default=True, help="Training seeds of the experts.")
@click.option("--others", is_flag=True, help="Leave the task's own expert out.")
def main(output: Path, draws: int, seeds: int, others: bool) -> None:
    """Run the search study on the embedded base."""
    quiet_lm_eval()
    study = Study(embedded_libraries(range(seeds)))
    points = run_study(study, output, draws=draws, others=others)
    click.echo(table(sorted(summary(points), key=lambda row: (row["iterations"], -row["validation"]))))


if __name__ == "__main__":
    main()
