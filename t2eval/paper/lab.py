"""Lab: what an item's experiment works with. Everything that takes time goes through it once, and is found again by the next run.

<output>/lab.json               the preset, so that two sizes are never mixed
<output>/cells/<study>/         a benchmark's folder (rows.jsonl, samples/); items that ask for the same cells share them
<output>/training/<name>/seed-<n>/<label>/   one training run each: as an expert library, or as a baselines' folder
<output>/pieces/<name>.json     other results that took time (`value`), and the settings that they depend on (`key`)
<output>/seconds.json           how long each item took, over all sessions
<output>/sessions.json          the commit and the versions of each session, where they are not those of the one before

The lab's worker processes live as long as it does: small studies one after the other would otherwise start processes and little else. Close
the lab, or use it in a `with`.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.bench.config import BASELINES, EXPERT_METHODS, BenchConfig, parse_config
from t2eval.bench.execute import Progress, WorkerFactory, run
from t2eval.bench.plan import make_plan
from t2eval.bench.rows import Row, Sample, read_samples, scores_by_example
from t2eval.bench.training import LOG, Job, check_settings, run_config, train
from t2eval.errors import T2Error, UsageError
from t2eval.paper.clock import Clock
from t2eval.paper.key import check_key, plain
from t2eval.paper.presets import Preset
from t2eval.paths import EMBEDDED, is_embedded
from t2eval.stats.means import average_seeds, mean_stderr, spread
from t2eval.store.files import read_record, write_json
from t2eval.store.guard import refuse_other_settings
from t2eval.store.lock import locked
from t2eval.store.versions import git_commit, versions
from t2eval.training.record import Results
from t2eval.workers.pool import Pool
from t2eval.workers.processes import gpus_of

if TYPE_CHECKING:
    from t2eval.expert.expert import Expert

MAIN, STRATEGIES = "main", "strategies"
_MARKER, _SESSIONS = "lab.json", "sessions.json"
_BYTES = 1 << 30  # the largest piece, a study's answers, takes some megabytes


@dataclass(frozen=True)
class Training(Job):
    """One training run of an item."""

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.config.seed

    @property
    def record(self) -> dict[str, Any]:
        """`training.json` of the finished run."""
        remedy = f"Delete {self.output} to train it anew."
        return Results.read(self.output, remedy).model_dump(mode="json")


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

    def runs(self, method: str, task: str) -> list[dict[str, float]]:
        """Example → score, for each seed. The same example has the same key in every study.

        Raises:
            T2Error: the task's metric has no score for a single example.
        """
        runs = [scores_by_example(samples) for samples in self.samples(method, task)]
        found = [run for run in runs if run]
        if not found or len(found) < len(runs):
            raise T2Error(f"The metric of {task} has no score for each example, so that nothing can be compared.")
        return found

    def examples(self, method: str, task: str) -> dict[str, float]:
        """Example → score, averaged over the seeds; errors as `runs`."""
        return average_seeds(self.runs(method, task))

    def summary(self, method: str, task: str) -> dict[str, Any]:
        """What a table needs of one method on one task: score, standard error over examples, n, seeds, spread between seeds."""
        rows = self.of(method, task)
        score, stderr = mean_stderr(list(self.examples(method, task).values()))
        seed_std = spread([row.score for row in rows if row.score is not None])
        return {
            "method": method,
            "task": task,
            "metric": rows[0].metric,
            "score": score,
            "stderr": stderr,
            "n": rows[0].n,
            "seeds": [row.seed for row in rows],
            "seed_std": seed_std,
            "trainable_parameters": rows[0].trainable_parameters,
        }


class Lab:
    """One output folder and the preset that it was begun with.

    Args:
        output: made if it does not exist.
        preset: from `presets.preset`.
        workers: processes for cells and trainings.
        say: told each step in a line.
        factory: what runs cells in a worker process, instead of `bench.worker.Worker` (tests give another one).

    Attributes:
        pool: the worker processes.
        sessions: `commit` (None: not known) and `versions` of the sessions that this folder's results may be of; the last one is this.

    Raises:
        UsageError: the folder holds another preset's results.
        T2Error: another process works in it.
    """

    def __init__(
        self,
        output: str | Path,
        preset: Preset,
        *,
        workers: int = 1,
        say: Callable[[str], None] = print,
        factory: WorkerFactory | None = None,
    ) -> None:
        self.output, self.preset, self.workers, self._say, self._factory = Path(output), preset, workers, say, factory
        with contextlib.ExitStack() as taken:  # let go where the folder is another preset's, or damaged
            taken.enter_context(locked(self.output, "run of `t2 paper`"))
            self.sessions = self._claim()
            self.clock = Clock(self.output, workers)
            self._lock = taken.pop_all()
        self.pool = Pool(workers, gpus_of(preset.device) if workers > 1 else ())

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, and let others have the folder."""
        self.pool.close()
        self._lock.close()

    def say(self, line: str) -> None:
        """Tell a step, and keep the time that it took."""
        self.clock.save()
        self._say(line)

    def _claim(self) -> list[dict[str, Any]]:
        """Make the folder this preset's, and note the session in it."""
        marker, file = self.output / _MARKER, self.output / _SESSIONS
        mine = {"preset": self.preset.name, "quick": self.preset.quick, "model": self.preset.model}
        if marker.exists():
            refuse_other_settings(self.output, kept(marker, dict), mine, remedy="Choose another --output.")
        now = {"commit": git_commit(), "versions": versions()}
        unknown: list[dict[str, Any]] = [{"commit": None, "versions": {}}] if marker.exists() else []
        sessions: list[dict[str, Any]] = kept(file, list) if file.exists() else unknown
        if not sessions or sessions[-1] != now:
            sessions.append(now)
            write_json(file, sessions)
        write_json(marker, mine)
        return list(sessions)

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
        # The lab trains by itself: a study is evaluated with what lies where it is told to look.
        how = preset.bench.model_dump(exclude={"train", "assume"}, exclude_defaults=True)
        what = {"name": study, "methods": list(methods), "tasks": list(tasks), "seeds": list(seeds), "limit": preset.limit}
        places = {} if preset.shipped else self._trained_inputs(settings, methods, seeds)
        given = {**how, "model": preset.model, "labels": preset.labels, **what, **places, **settings}
        plan = make_plan(parse_config(given, f"the study {study!r}"))
        folder = self.output / "cells" / study

        def told(event: Progress) -> None:
            if event.row is not None or event.note or event.done < event.total:  # nothing is said of cells that are all done already
                self.say(f"  {study}: {event}")

        result = run(plan, folder, pool=self.pool, progress=told, factory=self._factory)
        if not is_embedded(preset.model):
            self.pool.close()  # a large base's memory is wanted by the next training
        if result.failed:
            row = result.failed[0]
            raise T2Error(f"{len(result.failed)} cells of {folder} failed, the first {row.cell}: {row.error}")
        return Cells(folder, result.rows)

    def _trained_inputs(self, given: Mapping[str, Any], methods: Sequence[str], seeds: Sequence[int]) -> dict[str, str]:
        """Where the preset's experts and baselines lie, after those that these cells need have been trained.

        The places are the same for every call, so that a study can grow by methods.
        """
        if EXPERT_METHODS & set(methods) and "experts" not in given:
            self.library(seeds)
        chosen = [method for method in methods if method in BASELINES]
        if chosen and "baselines" not in given:
            self.adapters(chosen, seeds)
        return {"experts": str(self.folder("svf")), "baselines": str(self.folder("{method}") / "{label}")}

    def strategies(self, methods: Sequence[str], tasks: Sequence[str], *, study: str = MAIN, **settings: Any) -> Cells:
        """Run cells of strategies that choose among experts or mix them, over the preset's library of several experts.

        Args:
            methods, tasks, study, settings: as for `cells`. Where the preset has a benchmark file of its own for this (`choosing`), seeds,
                search and library are that file's, and so the default study is another one.
        """
        bench = self.preset.choosing
        if bench is None:
            return self.cells(methods, tasks, study=study, **settings)
        own = {"seeds": bench.seeds, "experts": self.mixed_library(), "model_args": bench.model_args}
        return self.cells(methods, tasks, study=STRATEGIES if study == MAIN else study, **{**own, **settings})

    # ------------------------------------------------------------------ trainings
    def training(self, name: str, label: str, seed: int, **settings: Any) -> Training:
        """A training run, not yet done, by the preset's benchmark file.

        Args:
            name: its folder under `training/`; one name has one set of settings (for all labels and seeds).
            label: the skill (or `dispatch`): it gives the recipe, and names the last folder.
            seed: of the training.
            settings: of `TrainConfig`, over the recipe's and the preset's. `method` also chooses the recipe.
        """
        return self.training_by(self.preset.bench, name, label, seed, **settings)

    def training_by(self, bench: BenchConfig, name: str, label: str, seed: int, **settings: Any) -> Training:
        """A training run, not yet done, by the `train:` section of another benchmark file; the rest as for `training`."""
        preset, section = self.preset, bench.train
        if section is None or (section.recipe is None and "task" not in section.skills.get(label, {})):
            raise UsageError(f"The benchmark file of the preset {preset.name!r} does not say in `train:` how {label!r} is trained.")
        method = str(settings.get("method", "svf"))
        base = {"model": None if preset.model == EMBEDDED else preset.model, "dtype": preset.dtype, "device": preset.device}
        own = {"output": self.folder(name, seed) / label, "test": False, "name": label, "label": label}
        decided = {**base, "apply_chat_template": bench.apply_chat_template, **own, **preset.training, **settings}
        return Training(f"{name} {label}, seed {seed}", run_config(section, method, label, seed, decided))

    def folder(self, name: str, seed: int | str = "{seed}") -> Path:
        """The folder of the trainings of a name and seed: a library of experts, or (with `/{label}`) the baselines' folder."""
        return (self.output / "training" / name).resolve() / f"seed-{seed}"

    def train(self, trainings: Sequence[Training]) -> None:
        """Do the trainings that are not done yet; one that was cut off goes on from its checkpoint.

        Raises:
            UsageError: one was done or begun with other settings.
            T2Error: one fails, or Ctrl-C.
        """
        for training in trainings:
            check_settings(training, "this run")
        pending = [training for training in trainings if not training.finished]
        train(pending, self.pool, lambda line: self.say(f"  {line}"), self.output / LOG)

    def library(self, seeds: Sequence[int]) -> str:
        """The experts' folder with `{seed}` in it: shipped, or trained here (the three skills and dispatch)."""
        if self.preset.shipped:
            return str(self.preset.bench.experts)
        self.train([self.training("svf", label, seed) for seed in seeds for label in self.preset.library])
        return str(self.folder("svf"))

    def mixed_library(self) -> str:
        """The folder, with `{seed}` in it, of the experts that strategies choose among or mix.

        By default the experts of `library`. Where the preset has a benchmark file for this, those, and what that file trains beside
        them.
        """
        bench = self.preset.choosing
        if bench is None:
            return self.library(self.preset.seeds)
        from t2eval.expert.library import load_library
        from t2eval.paper.derived import write_library

        parts = [self.library(bench.seeds), str(self.folder(STRATEGIES))]
        self.train(self.mixed_trainings())
        folder = (self.output / "derived" / STRATEGIES).resolve()

        def experts_of(seed: int) -> list[Expert]:
            return [expert for part in parts for expert in load_library(part.replace("{seed}", str(seed)))]

        for seed in bench.seeds:
            write_library(folder / f"seed-{seed}", functools.partial(experts_of, seed))
        return str(folder / "seed-{seed}")

    def mixed_trainings(self) -> list[Training]:
        """The trainings of the experts that `mixed_library` has beside those of `library`; none where the preset has no file for it."""
        bench = self.preset.choosing
        if bench is None or bench.train is None:
            return []
        more = [label for label in bench.train.skills if label not in self.preset.library]
        return [self.training_by(bench, STRATEGIES, label, seed) for seed in bench.seeds for label in more]

    def adapters(self, methods: Sequence[str], seeds: Sequence[int]) -> str:
        """The baselines' folder with `{seed}`, `{method}` and `{label}` in it: shipped, or trained here, supervised."""
        if self.preset.shipped:
            return str(self.preset.bench.baselines)
        options = {"objective": "supervised"}
        self.train([self.training(m, label, seed, method=m, **options) for m in methods for seed in seeds for label in self.preset.skills])
        return str(self.folder("{method}") / "{label}")

    # ------------------------------------------------------------------ pieces
    def once(self, name: str, compute: Callable[[], Any], *, key: Any) -> Any:
        """A JSON value that takes time to compute: computed once for this folder.

        Args:
            name: of the piece; `/` makes folders.
            compute: gives the value; what it raises is raised, and nothing is kept.
            key: a JSON value that says what the piece depends on: model, task, sizes, ….

        Raises:
            UsageError: the folder holds the piece with another key, or with none.
        """
        path = self.output / "pieces" / f"{re.sub(r'[^A-Za-z0-9._/-]+', '-', name)}.json"
        if path.exists():
            return kept_piece(path, key)
        self.say(f"  {name} …")
        value = plain(compute())
        write_json(path, {"key": key, "value": value})
        return value


def kept(file: Path, kind: type) -> Any:
    """What a file of a lab's folder holds.

    Raises:
        T2Error: it is damaged.
    """
    remedy = f"Choose another --output, or delete {file} to make it anew."
    return read_record(file, kind, what="file of `t2 paper`", remedy=remedy, limit=_BYTES)


def kept_piece(path: Path, key: Any) -> Any:
    """The value of a piece that was computed before.

    Raises:
        UsageError: it was made with another key, or with none.
        T2Error: it is damaged.
    """
    found = kept(path, object)
    if not (isinstance(found, dict) and found.keys() == {"key", "value"}):
        raise UsageError(f"{path} does not say what settings it was made with. Choose another --output, or delete {path} to make it anew.")
    check_key(path, found["key"], key)
    return found["value"]
