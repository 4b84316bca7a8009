"""Training: the runs that make a benchmark's experts and baselines, from its file's `train:` section. What is finished is not repeated.

Where the file does not say where experts and baselines lie, they are made in the benchmark's own folder (`settle`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2eval.basemodel.devices import AUTO, pick_device
from t2eval.bench.config import BASELINES, DISPATCH, EXPERT_METHODS, BenchConfig, TrainSection
from t2eval.bench.plan import Cell, Plan, open_tasks
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.errors import T2Error, UsageError
from t2eval.paths import EMBEDDED, experts_dir, is_embedded
from t2eval.store.files import read_record, write_bytes
from t2eval.store.folders import staged_folder
from t2eval.training.config import TrainConfig, changed_setting
from t2eval.workers.executor import Executor

RECORD, SETTINGS = "training.json", "settings.json"
LOG = "training.log"
_DECIDED = {"output", "model", "revision", "dtype", "device", "method", "seed", "label", "resume", "overwrite"}
_DECIDED |= {"num_fewshot", "apply_chat_template", "include_path"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One training run: what it is called (`math`, `lora-math`, `math, seed 1`), and its settings."""

    name: str
    config: TrainConfig

    @property
    def output(self) -> Path:
        """The folder of what it makes."""
        return self.config.output

    @property
    def finished(self) -> bool:
        """Whether the run has ended (its record is written last)."""
        return (self.output / RECORD).is_file()

    def __str__(self) -> str:
        from t2eval.training.record import Results

        found = Results.read(self.output, f"Remove {self.output} to train it anew.")
        before, after = found.scores["before"][found.split], found.scores["after"][found.split]
        scored = f"{before.score:.3f} → {after.score:.3f} on the {found.split} split (n={after.n})"
        return f"{self.name}: {scored}, {found.seconds:.0f} s"


def settle(plan: Plan, output: Path) -> Plan:
    """A plan whose experts and baselines lie in its own folder, where its file has a `train:` section and does not say where."""
    config = plan.config
    if config.train is None:
        return plan
    folder = output.resolve()
    places = {"experts": folder / "experts" / "seed-{seed}", "baselines": folder / "baselines" / "seed-{seed}" / "{method}-{label}"}
    missing = {field: str(place) for field, place in places.items() if getattr(config, field) is None}
    return replace(plan, config=config.model_copy(update=missing))


def jobs(plan: Plan, cells: Iterable[Cell] | None = None) -> list[Job]:
    """The training runs that cells need, finished or not: seed by seed, experts first.

    Args:
        plan: settled (`settle`).
        cells: by default all of the plan's.

    Returns:
        One run for each skill of the `train:` section: an expert where a strategy or `expert` is evaluated (the classification expert,
        labelled `dispatch`, only for `cls`), an adapter for each baseline. Nothing without a `train:` section.

    Raises:
        UsageError: a wrong setting in the section, or in a recipe.
    """
    section = plan.config.train
    if section is None:
        return []
    wanted = {(cell.method, cell.seed) for cell in (plan.cells if cells is None else cells)}
    found = []
    for seed in sorted({seed for _, seed in wanted}):
        methods = {plan.config.kind(method) for method, of in wanted if of == seed and plan.config.is_trained(method)}
        for method in ("svf", *BASELINES):
            if method not in methods and not (method == "svf" and methods & EXPERT_METHODS):
                continue
            for label in section.skills:
                if label != DISPATCH or (method == "svf" and "cls" in methods):
                    found.append(_job(plan.config, method, label, seed))
    return found


def _job(config: BenchConfig, method: str, label: str, seed: int) -> Job:
    """One run of the `train:` section."""
    section = config.train
    assert section is not None
    run = label if method == "svf" else f"{method}-{label}"
    name = f"{run}, seed {seed}" if seed else run
    for key in sorted(_said(section, method, label).keys() & _DECIDED):
        raise UsageError(f"train: {key!r} is not a setting of a run here: the benchmark file says it for evaluation and training alike.")
    decided = {
        "output": config.library(seed) / label if method == "svf" else config.adapter(method, label, seed),
        "model": None if config.model == EMBEDDED else config.model,
        "revision": config.revision,
        "dtype": config.dtype,
        "device": None if config.device == AUTO else config.device,
        "num_fewshot": config.num_fewshot,
        "apply_chat_template": config.apply_chat_template,
        "include_path": config.include_path,
        "label": label,
    }
    try:
        settings = run_config(section, method, label, seed, decided)
    except T2Error as error:
        raise UsageError(f"train, {name}: {error}") from error
    if settings.gguf_file is not None:
        raise UsageError(f"train, {name}: gguf_file cannot be used here: what is trained on it would be evaluated on another base model.")
    return Job(name, settings)


def _said(section: TrainSection, method: str, label: str) -> dict[str, Any]:
    """The settings that a `train:` section gives to one run; what comes later wins."""
    return {**section.settings, **section.methods.get(method, {}), **section.skills.get(label, {})}


def run_config(section: TrainSection, method: str, label: str, seed: int, decided: Mapping[str, Any]) -> TrainConfig:
    """The configuration of one run by a `train:` section: its recipe, then its settings, then what is decided elsewhere.

    Args:
        section: of a benchmark file.
        method: `svf`, `lora`, `ia3` or `dora`.
        label: the skill.
        seed: of the training.
        decided: settings over the section's; those that are None are ignored.

    Raises:
        T2Error: the recipe cannot be read.
        UsageError: a wrong setting.
    """
    over = {key: value for key, value in decided.items() if value is not None}
    given = {**_said(section, method, label), **over, "method": method, "seed": seed, "resume": True}
    if section.recipe is None:
        return TrainConfig(**given)
    recipe = section.recipe
    run = label if method == "svf" else f"{method}-{label}"
    for field, value in (("run", run), ("label", label), ("method", method), ("seed", str(seed))):
        recipe = recipe.replace("{" + field + "}", value)
    return TrainConfig.from_yaml(recipe, **given)


def train_missing(plan: Plan, cells: Iterable[Cell], pool: Executor, say: Say, log: Path | None = None) -> tuple[Job, ...]:
    """Do the runs that cells still need.

    Args:
        plan: settled (`settle`).
        cells: those that are to be evaluated now.
        pool: runs several at a time, where there is no GPU.
        say: told each step in a line.
        log: gets what the runs print where several run at a time.

    Returns:
        What was trained now.

    Raises:
        UsageError: a finished run has other settings than the benchmark file, or the run would write into t2eval's own folder.
        T2Error: a run fails, or Ctrl-C; what is finished stays.
    """
    needed = jobs(plan, cells)
    for job in needed:
        check_settings(job)
    pending = tuple(job for job in needed if not job.finished)
    for job in pending:
        if job.output.resolve().is_relative_to(experts_dir().resolve()):
            raise UsageError(
                f"No expert or baseline {job.name!r} is shipped. To train it, copy the benchmark file, and give `experts:` and "
                "`baselines:` folders of your own in it."
            )
    if pending:
        # A wrong name is said now, not after a day of training.
        open_tasks([*plan.config.tasks, *(job.config.task for job in pending)], plan.config.include_path)
        train(pending, pool, say, log)
    return pending


def check_settings(job: Job, source: str = "the benchmark file") -> None:
    """Refuse what was trained, or begun, with other settings. Shipped experts have no settings file to compare.

    Args:
        job: finished or not. A run that is not may go on with more steps; of a finished one, its length too must be the same.
        source: what says the settings of now, in the error's words.

    Raises:
        UsageError: a setting differs; it is named, with both values.
    """
    file = job.output / SETTINGS
    if not file.is_file():
        return
    from t2eval.training.claim import to_lose

    if not job.finished and not to_lose(job.output):
        return  # it failed before its first step, and begins anew
    before = read_record(file, dict[str, Any], what="settings of a training", remedy=f"Remove {job.output} to train it anew.")
    now = job.config.for_task().hyperparameters
    if (key := changed_setting(before, now, finished=job.finished)) is not None:
        raise UsageError(
            f"{job.output} was trained with {key} = {before.get(key)!r}, and {source} now says {now.get(key)!r}. Give the first setting, "
            f"or another --output, or remove {job.output}."
        )


def train(todo: Sequence[Job], pool: Executor, say: Say, log: Path | None = None) -> None:
    """Do the runs that are not finished; one that was cut off goes on from its checkpoint.

    Where the executor's processes are elsewhere, there. Else one after the other with a progress bar, or side by side with a share of the
    cores each: two of them on two cores end sooner than one after the other with two threads. On a GPU they never run side by side: each
    is given all of its memory.

    Args:
        todo: finished or not.
        pool: its processes take one run after the other.
        say: told each step in a line.
        log: gets what the runs print where several run at a time.

    Raises:
        T2Error: a run fails, or Ctrl-C. Side by side, the others are done nevertheless; one after the other, the rest is not begun.
    """
    pending = [job for job in todo if not job.finished]
    for job in todo:
        if job.finished:
            say(f"already trained: {job}")
    if not pending:
        return
    quiet_lm_eval()
    try:
        if pool.elsewhere:
            say(f"training {len(pending)} experts and baselines on other machines, at most {pool.workers} at a time …")
            _side_by_side(pending, pool, say, log or Path(os.devnull))
        elif len(pending) == 1 or pool.workers == 1 or any(_device(job) != "cpu" for job in pending):
            _one_by_one(pending, say)
        else:
            say(f"training {len(pending)} experts and baselines, {pool.workers} at a time …")
            _side_by_side(pending, pool, say, log or Path(os.devnull))
    except KeyboardInterrupt:
        raise T2Error("Interrupted while training. Run the same command again: it continues.") from None


def _device(job: Job) -> str:
    """Where a run takes place: the embedded models are too small to gain from a GPU, and their recipes are reproducible on a CPU."""
    asked = job.config.device
    if asked is not None and asked != AUTO:
        return asked
    return "cpu" if job.config.model is None or is_embedded(job.config.model) else pick_device(asked).type


def placed(job: Job) -> TrainConfig:
    """A run's settings, with the device that it takes on this machine."""
    return job.config.model_copy(update={"device": _device(job)})


def _one_by_one(pending: Sequence[Job], say: Say) -> None:
    from t2eval.training.train import train_expert

    for number, job in enumerate(pending):
        count = f"[{number + 1}/{len(pending)}] " if len(pending) > 1 else ""
        say(f"{count}training {job.name} …")
        try:
            train_expert(placed(job), progress=True)
        except Exception as error:
            message = str(error) if isinstance(error, T2Error) else f"{type(error).__name__}: {error}"
            raise T2Error(f"Training {job.name!r} failed: {message}") from error
        _free_memory()
        say(f"{count}trained {job}")


def _free_memory() -> None:
    """Give the GPU's memory back: the workers that evaluate are other processes."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trainer() -> Callable[[Job], None]:
    """Makes a worker process ready for runs."""
    from t2eval.training.train import train_expert

    quiet_lm_eval()

    def trained(job: Job) -> None:
        train_expert(placed(job), progress=False)

    return trained


def _keep(output: Path, files: Mapping[str, bytes]) -> None:
    """Write what was trained elsewhere, in place of what was begun here."""
    with staged_folder(output) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)


def _side_by_side(pending: Sequence[Job], pool: Executor, say: Say, log: Path) -> None:
    from t2eval.bench.travel import TrainSetup

    failed: list[str] = []
    include = pending[0].config.include_path
    setup: Callable[[], Callable[[Job], Any]] = TrainSetup(None if include is None else str(include)) if pool.elsewhere else _trainer
    with contextlib.closing(pool.run(setup, pending, log)) as outcomes:
        for number, outcome in enumerate(outcomes, start=1):
            job: Job = outcome.item
            if outcome.value:
                _keep(job.output, outcome.value)
            if outcome.error is None and job.finished:
                say(f"[{number}/{len(pending)}] trained {job}")
                continue
            reason = outcome.error or f"{outcome.death}."
            failed.append(f"Training {job.name!r} failed: {reason}")
            say(f"[{number}/{len(pending)}] {failed[-1]}")
    if failed:
        more = f" ({len(failed)} runs failed; this is the first.)" if len(failed) > 1 else ""
        raise T2Error(failed[0] + more)
