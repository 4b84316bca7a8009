"""Lab: what an item's experiment works with. Everything that takes time goes through it once, and is found again by the next run.

<output>/lab.json               the preset, so that two sizes are never mixed
<output>/cells/<study>/         a benchmark's folder (rows.jsonl, samples/); items that ask for the same cells share them
<output>/training/<name>/seed-<n>/<label>/   one training run each: as an expert library, or as a baselines' folder
<output>/pieces/<name>.json     other results that took time
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.analysis.presets import SKILLS, Preset
from t2eval.bench.compare import average_seeds, mean_stderr
from t2eval.bench.demo import Job, train
from t2eval.bench.execute import WorkerFactory, run
from t2eval.bench.plan import BASELINES, make_plan, parse_config
from t2eval.bench.rows import Row, Sample, read_samples, scores_by_example, write_atomically
from t2eval.bench.worker import Worker
from t2eval.errors import T2Error, UsageError
from t2eval.resources import experts_dir

if TYPE_CHECKING:
    from t2eval.training.config import TrainConfig

MAIN = "main"
_MARKER = "lab.json"
_LIBRARY = frozenset({"expert", "prompt", "cls", "fewshot"})
_FEW = 4  # cells a worker process: starting one takes as long as a few small cells


@dataclass(frozen=True)
class Training(Job):
    """One training run of an item; `recipe` is its name, `settings` are `TrainConfig`'s."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> TrainConfig:
        from t2eval.training.config import TrainConfig

        return TrainConfig(**self.settings, output=self.output, seed=self.seed, resume=True)

    @property
    def record(self) -> dict[str, Any]:
        """`training.json` of the finished run."""
        found: dict[str, Any] = json.loads((self.output / "training.json").read_text(encoding="utf-8"))
        return found


@dataclass(frozen=True)
class Cells:
    """Finished cells of one study.

    Attributes:
        folder: of the benchmark.
        rows: one a cell, all of them `ok`.
    """

    folder: Path
    rows: tuple[Row, ...]

    def of(self, method: str, task: str) -> list[Row]:
        """The rows of one method on one task, seeds in order."""
        return sorted((row for row in self.rows if (row.method, row.task) == (method, task)), key=lambda row: row.seed)

    def samples(self, method: str, task: str) -> list[list[Sample]]:
        """The examples of one method on one task, a list for each seed."""
        return [read_samples(self.folder, row) for row in self.of(method, task)]

    def examples(self, method: str, task: str) -> dict[str, float]:
        """Example → score, averaged over the seeds. The same example has the same key in every study.

        Raises:
            T2Error: the task's metric has no score for a single example.
        """
        runs = [scores_by_example(samples) for samples in self.samples(method, task)]
        found = [run for run in runs if run]
        if not found or len(found) < len(runs):
            raise T2Error(f"The metric of {task} has no score for each example, so that nothing can be compared.")
        return average_seeds(found)

    def summary(self, method: str, task: str) -> dict[str, Any]:
        """What a table needs of one method on one task: score, standard error over examples, n, seeds, spread between seeds."""
        rows = self.of(method, task)
        score, stderr = mean_stderr(list(self.examples(method, task).values()))
        spread = mean_spread([row.score for row in rows if row.score is not None])
        return {
            "method": method,
            "task": task,
            "metric": rows[0].metric,
            "score": score,
            "stderr": stderr,
            "n": rows[0].n,
            "seeds": [row.seed for row in rows],
            "seed_std": spread,
            "trainable_parameters": rows[0].trainable_parameters,
        }


def mean_spread(scores: Sequence[float]) -> float | None:
    """The standard deviation between seeds' scores; None for one seed."""
    if len(scores) < 2:
        return None
    mean = sum(scores) / len(scores)
    return float((sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)) ** 0.5)


class Lab:
    """One output folder and the preset that it was begun with.

    Args:
        output: made if it does not exist.
        preset: from `presets.preset`.
        workers: processes for cells and trainings.
        say: told each step in a line.
        factory: what runs cells in a worker process (tests give another one).

    Raises:
        UsageError: the folder holds another preset's results.
    """

    def __init__(
        self, output: str | Path, preset: Preset, *, workers: int = 1, say: Callable[[str], None] = print, factory: WorkerFactory = Worker
    ) -> None:
        self.output, self.preset, self.workers, self.say, self._factory = Path(output), preset, workers, say, factory
        self._claim()

    def _claim(self) -> None:
        marker = self.output / _MARKER
        mine = {"preset": self.preset.name, "quick": self.preset.quick, "model": self.preset.model}
        if marker.exists():
            held = json.loads(marker.read_text(encoding="utf-8"))
            if held != mine:
                raise UsageError(f"{self.output} holds results of {held}, and this run is {mine}. Choose another --output.")
            return
        write_atomically(marker, json.dumps(mine).encode() + b"\n")

    # ------------------------------------------------------------------ cells
    def cells(
        self, methods: Sequence[str], tasks: Sequence[str], *, study: str = MAIN, seeds: Sequence[int] | None = None, **settings: Any
    ) -> Cells:
        """Run cells, or those that are not done yet.

        Args:
            methods: of `t2eval.bench.plan.METHODS`.
            tasks: lm-eval task names.
            study: the cells' folder; one study has one set of settings. The default one has the preset's own settings: items share it.
            seeds: default: the preset's.
            settings: further ones of `BenchConfig`, over the preset's: `model_args`, `experts`, `baselines`, `labels`, `model`, ….

        Raises:
            T2Error: a cell failed (the others are kept).
            UsageError: a wrong setting, or another one than the study was begun with.
        """
        preset = self.preset
        seeds = tuple(seeds if seeds is not None else preset.seeds)
        what = {"name": study, "methods": list(methods), "tasks": list(tasks), "seeds": list(seeds)}
        how = {"model": preset.model, "limit": preset.limit, "batch_size": preset.batch_size, "apply_chat_template": preset.chat}
        searched = {"model_args": {"fewshot": preset.search}} if preset.search else {}
        given = {**what, **how, **searched, "labels": preset.labels, **settings}
        if not preset.shipped:
            given |= self._trained_inputs(given, methods, seeds)
        plan = make_plan(parse_config(given, f"the study {study!r}"))
        folder = self.output / "cells" / study
        workers = max(1, min(self.workers, -(-len(plan.cells) // _FEW)))
        result = run(plan, folder, workers=workers, progress=lambda event: self.say(f"  {study}: {event}"), factory=self._factory)
        if result.failed:
            row = result.failed[0]
            raise T2Error(f"{len(result.failed)} cells of {folder} failed, the first {row.cell}: {row.error}")
        return Cells(folder, result.rows)

    def _trained_inputs(self, given: Mapping[str, Any], methods: Sequence[str], seeds: Sequence[int]) -> dict[str, str]:
        """The experts and baselines that these cells need and that are not given, trained for the preset."""
        found = {}
        if _LIBRARY & set(methods) and "experts" not in given:
            found["experts"] = self.library(seeds)
        chosen = [method for method in methods if method in BASELINES]
        if chosen and "baselines" not in given:
            found["baselines"] = self.adapters(chosen, seeds)
        return found

    # ------------------------------------------------------------------ trainings
    def training(self, name: str, label: str, seed: int, **settings: Any) -> Training:
        """A training run, not yet done.

        Args:
            name: its folder under `training/`; one name has one set of settings (for all labels and seeds).
            label: the skill, which gives the task (unless `task` is set) and names the last folder.
            seed: of the training.
            settings: of `TrainConfig`, over the preset's.
        """
        preset = self.preset
        method = str(settings.get("method", "svf"))
        task = preset.dispatch if label == "dispatch" else preset.seen[label]
        steps = {"steps": preset.steps[method]} if method in preset.steps else {}
        model = {} if preset.name == "embedded" else {"model": preset.model, "device": preset.device or _device()}
        common = {"task": task, "name": label, "label": label, "test": False, **model, **preset.training, **steps}
        return Training(f"{name} {label}, seed {seed}", self.folder(name, seed) / label, seed, {**common, **settings})

    def folder(self, name: str, seed: int | str = "{seed}") -> Path:
        """The folder of the trainings of a name and seed: a library of experts, or (with `/{label}`) the baselines' folder."""
        return (self.output / "training" / name).resolve() / f"seed-{seed}"

    def train(self, trainings: Sequence[Training]) -> None:
        """Do the trainings that are not done yet; one that was cut off goes on from its checkpoint.

        Raises:
            T2Error: one fails, or Ctrl-C.
        """
        train([training for training in trainings if not training.finished], self.workers, lambda line: self.say(f"  {line}"))

    def library(self, seeds: Sequence[int]) -> str:
        """The experts' folder with `{seed}` in it: shipped, or trained here (the three skills and dispatch)."""
        if self.preset.shipped:
            return str(experts_dir() / "library" / "seed-{seed}")
        self.train([self.training("svf", label, seed) for seed in seeds for label in (*SKILLS, "dispatch")])
        return str(self.folder("svf"))

    def adapters(self, methods: Sequence[str], seeds: Sequence[int]) -> str:
        """The baselines' folder with `{seed}`, `{method}` and `{label}` in it: shipped, or trained here, supervised."""
        if self.preset.shipped:
            return str(experts_dir() / "baselines" / "seed-{seed}" / "{method}-{label}")
        options = {"objective": "supervised"}
        self.train([self.training(m, label, seed, method=m, **options) for m in methods for seed in seeds for label in SKILLS])
        return str(self.folder("{method}") / "{label}")

    # ------------------------------------------------------------------ pieces
    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON value that takes time to compute: computed once for this folder.

        Args:
            name: of the piece; `/` makes folders.
            compute: gives the value; what it raises is raised, and nothing is kept.
        """
        path = self.output / "pieces" / f"{re.sub(r'[^A-Za-z0-9._/-]+', '-', name)}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        self.say(f"  {name} …")
        value = compute()
        write_atomically(path, json.dumps(value).encode() + b"\n")
        return json.loads(path.read_text(encoding="utf-8"))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
