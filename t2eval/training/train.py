"""Train: one call from a configuration to a saved expert (svf) or PEFT adapter (lora, ia3, dora), with its record.

Validation chooses: the checkpoint of each run (the first best one), and the run where the configuration lists several values. The test
split is only scored, once before and once after, by lm-eval.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from t2eval.basemodel.load import base_identity, load_base
from t2eval.environment.environment import Environment, Example
from t2eval.errors import T2Error, UsageError
from t2eval.expert.card import CARD, README, TENSORS, Score, TrainingRecord
from t2eval.expert.expert import Expert
from t2eval.store.versions import git_commit
from t2eval.training.adapter_card import adapter_card
from t2eval.training.config import TrainConfig, changed_setting
from t2eval.training.curve import draw
from t2eval.training.loop import LOG, Loop, Progress
from t2eval.training.methods import PeftTrainable, SvfTrainable, Trainable, make_trainable
from t2eval.training.progress import Report, reporter
from t2eval.training.reinforce import Reinforce
from t2eval.training.scores import TestScore, paired_test, score_test, summarise, validate
from t2eval.training.supervised import Supervised
from t2eval.vision.features import Reader
from t2eval.vision.images import reads_images, text_tokenizer

RECORD, SETTINGS, CURVE, OUTCOMES = "training.json", "settings.json", "learning_curve.png", "test_outcomes.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_OWN = (RECORD, SETTINGS, CURVE, OUTCOMES, LOG, "checkpoints", "sweep", TENSORS, CARD, README, *_ADAPTER)
_PACKAGES = ("t2eval", "lm_eval", "torch", "transformers", "peft", "datasets")


@dataclass(frozen=True)
class TrainResult:
    """What a training run left.

    Attributes:
        path: the expert's or adapter's directory.
        scores: {"before" | "after": {"validation" | "test": Score}}; before is the base model.
        comparison: of the test outcomes before and after: `n`, `gained`, `lost`, `p_value`; None where the test split was not scored.
        steps: optimiser steps of the chosen run. chosen_step: the checkpoint that validation chose.
        seconds: of training, over all sessions and all runs of a sweep.
        trainable_parameters: how many.
        record: all of `training.json`.
    """

    path: Path
    scores: dict[str, dict[str, Score]]
    comparison: dict[str, float | int] | None
    steps: int
    chosen_step: int
    seconds: float
    trainable_parameters: int
    record: dict[str, Any]


@dataclass(frozen=True)
class _Setup:
    """What all runs of a sweep share."""

    environment: Environment
    trainable: Trainable
    tokenizer: Any
    processor: Any
    reader: Reader | None
    identity: dict[str, Any]
    train: list[Example]
    validation: list[Example]


def train_expert(config: TrainConfig, progress: bool | Report = True) -> TrainResult:
    """Train one expert or baseline.

    Args:
        config: what to train, on what, how. With a list in `lr`, `clip` or `kl`, each combination is trained (sharing `max_seconds`)
            and the best by validation is kept.
        progress: True: a progress bar; False: nothing; or a function that gets each row of the log.

    Returns:
        Scores, the paired test, and where the result lies. In `config.output`: the expert or adapter, `training.json`,
        `test_outcomes.json`, `log.jsonl`, `learning_curve.png`, `checkpoints/` (with a sweep: `sweep/<n>/` for each run).

    Raises:
        T2Error: a task without a training split, a hub that cannot be reached, a full disk, a diverged loss, …
        UsageError: an output directory that is in use, a resumed run with other settings.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.

    Example:
        >>> result = train_expert(TrainConfig(task="embedded_math_seen", output="runs/math", max_seconds=60))
        >>> result.scores["after"]["test"].score, result.comparison["p_value"]
    """
    config = config.for_task()
    if (finished := _claim(config)) is not None:
        return finished
    setup = _set_up(config)
    _write(config.output / SETTINGS, json.dumps(config.hyperparameters, indent=2) + "\n")
    initial = setup.trainable.state()
    points = config.points
    reached: list[tuple[Progress, Path]] = []
    for number, point in enumerate(points):
        folder = config.output if len(points) == 1 else config.output / "sweep" / str(number)
        if config.max_seconds is not None:
            point = point.model_copy(update={"max_seconds": config.max_seconds / len(points)})
        setup.trainable.load(initial)
        reached.append((_run(setup, point, folder, progress, _title(config, point, number)), folder))
    scores = [run.best_score for run, _ in reached]
    chosen = scores.index(max(scores))
    best, folder = reached[chosen]
    setup.trainable.load(best.best)
    if folder != config.output:
        shutil.copyfile(folder / LOG, config.output / LOG)
    seconds = sum(run.elapsed for run, _ in reached)
    sweep = [{**_swept(point), "validation": score} for point, score in zip(points, scores, strict=True)] if len(points) > 1 else None
    return _finish(setup, config, points[chosen], best, seconds, sweep)


def _title(config: TrainConfig, point: TrainConfig, number: int) -> str:
    title = f"{config.method} {config.task}"
    return title if len(config.points) == 1 else f"{title} {number + 1}/{len(config.points)} {_swept(point)}"


def _swept(point: TrainConfig) -> dict[str, Any]:
    return {name: getattr(point, name) for name in ("lr", "clip", "kl")}


# ---------------------------------------------------------------------- the output directory
def _claim(config: TrainConfig) -> TrainResult | None:
    """Make the output directory this run's; a finished run that is resumed gives its result."""
    output = config.output
    held = [name for name in _OWN if (output / name).exists()]
    if held and config.overwrite:
        for name in held:
            shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink()
        held = []
    if held and not config.resume:
        raise UsageError(f"{output} already holds a training run ({held[0]}). Resume it, overwrite it, or give another output directory.")
    settings = config.hyperparameters
    if held and (output / SETTINGS).is_file():
        before = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
        if (changed := changed_setting(before, settings)) is not None:
            raise UsageError(
                f"{output} was begun with {changed} = {before.get(changed)!r}, and this run has {settings.get(changed)!r}. A resumed run "
                "keeps its settings: give the first ones, or overwrite."
            )
        if (output / RECORD).is_file():
            return _read_result(output)
    return None


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    staging = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise T2Error(f"Could not write {path}: {error.strerror or error}. Make room or give another output directory.") from error


def _read_result(output: Path) -> TrainResult:
    return _result(output, json.loads((output / RECORD).read_text(encoding="utf-8")))


def _result(output: Path, record: dict[str, Any]) -> TrainResult:
    scores = {when: {split: Score(**score) for split, score in splits.items()} for when, splits in record["scores"].items()}
    return TrainResult(
        path=output,
        scores=scores,
        comparison=record["comparison"],
        steps=record["steps"],
        chosen_step=record["chosen_step"],
        seconds=record["seconds"],
        trainable_parameters=record["trainable_parameters"],
        record=record,
    )


# ---------------------------------------------------------------------- the runs
def _set_up(config: TrainConfig) -> _Setup:
    model, processor = load_base(
        config.model, revision=config.revision, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    environment = Environment(
        config.task,
        include_path=config.include_path,
        tokenizer=processor,
        apply_chat_template=config.apply_chat_template,
        num_fewshot=config.num_fewshot,
    )
    if environment.images and not reads_images(processor):
        raise UsageError(
            f"Task {config.task!r} has images, and {config.model or 'the embedded base model'} reads text only: give a vision-language "
            "model, or leave the model out for the embedded one."
        )
    if not environment.higher_is_better:
        raise T2Error(f"The main metric of task {config.task!r}, {environment.metric}, is better when lower: it cannot be a reward.")
    train = environment.examples("train", config.train_limit, config.seed)
    validation = environment.examples("validation", config.validation_limit, seed=0)
    if not train or not validation:
        raise T2Error(f"Task {config.task!r} has {len(train)} training and {len(validation)} validation examples: both are needed.")
    identity = base_identity(model)
    reader = Reader(model, processor) if environment.images else None
    trainable = make_trainable(model, config)
    return _Setup(environment, trainable, text_tokenizer(processor), processor, reader, identity, train, validation)


def _run(setup: _Setup, point: TrainConfig, folder: Path, progress: bool | Report, title: str) -> Progress:
    """One run of a sweep, or all of it."""
    objective = (Reinforce if point.objective == "reinforce" else Supervised)(setup.environment, setup.tokenizer, point, setup.reader)

    def validated() -> Score:
        return summarise(validate(setup.trainable, setup.environment, setup.tokenizer, setup.validation, point, setup.reader))

    report, close = reporter(progress, title)
    try:
        loop = Loop(setup.trainable, objective, setup.train, validated, point, folder, report)
        return loop.run(resume=point.resume)
    finally:
        close()


# ---------------------------------------------------------------------- the end
def _finish(
    setup: _Setup, config: TrainConfig, point: TrainConfig, best: Progress, seconds: float, sweep: list[dict[str, Any]] | None
) -> TrainResult:
    """Score the test split, draw the curve, and save: the record comes last, and says that the run is finished."""
    points = {entry["step"]: {key: entry[key] for key in ("score", "stderr", "n")} for entry in best.validations}
    scores: dict[str, dict[str, Any]] = {"before": {"validation": points[0]}, "after": {"validation": points[best.best_step]}}
    comparison = None
    if config.test:
        before, after = (score_test(setup.trainable, setup.environment, setup.processor, config, base=base) for base in (True, False))
        scores["before"]["test"], scores["after"]["test"] = before.score.model_dump(), after.score.model_dump()
        comparison = paired_test(before.outcomes, after.outcomes)
        _write(config.output / OUTCOMES, _outcomes(before, after))
    environment = setup.environment
    record: dict[str, Any] = {
        "task": config.task,
        "splits": _splits(setup, config, comparison),
        "seed": config.seed,
        "method": config.method,
        "objective": config.objective,
        "hyperparameters": {**config.hyperparameters, **_swept(point)},
        "steps": max(entry["step"] for entry in best.validations),
        "seconds": round(seconds, 3),
        "metric": environment.metric,
        "scores": scores,
        "git_commit": git_commit(),
    }
    rows = [json.loads(line) for line in (config.output / LOG).read_text(encoding="utf-8").split("\n") if line]
    title = f"{config.method}, {config.objective}: {config.task}"
    _drawn(
        config.output,
        lambda path: draw(path, title=title, metric=environment.metric, points=best.validations, chosen=best.best_step, batches=rows),
    )
    _save_result(setup, config, record)
    full = {
        **record,
        "comparison": comparison,
        "chosen_step": best.best_step,
        "trainable_parameters": sum(parameter.numel() for parameter in setup.trainable.parameters().values()),
        "base_model": setup.identity,
        "sweep": sweep,
        "versions": _versions(),
    }
    if config.method != "svf":
        _write(config.output / README, adapter_card(config.name or config.output.name, full))
    _write(config.output / RECORD, json.dumps(full, indent=2) + "\n")
    return _result(config.output, full)


def _splits(setup: _Setup, config: TrainConfig, comparison: dict[str, float | int] | None) -> dict[str, Any]:
    source = setup.environment.split_source
    splits: dict[str, Any] = {
        "train": {"source": source("train"), "n": len(setup.train)},
        "validation": {"source": source("validation"), "n": len(setup.validation)},
    }
    if comparison is not None:
        splits["test"] = {"source": source("test"), **comparison}
    return splits


def _outcomes(before: TestScore, after: TestScore) -> str:
    rows = [{"doc_id": key, "before": before.outcomes[key], "after": after.outcomes.get(key)} for key in sorted(before.outcomes)]
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def _drawn(output: Path, draw_to: Callable[[Path], None]) -> None:
    staging = output / f".unfinished-{CURVE}"
    try:
        draw_to(staging)
        os.replace(staging, output / CURVE)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise T2Error(f"Could not write {output / CURVE}: {error.strerror or error}. Make room, then run again with resume.") from error


def _save_result(setup: _Setup, config: TrainConfig, record: dict[str, Any]) -> None:
    trainable, identity = setup.trainable, setup.identity
    if isinstance(trainable, SvfTrainable):
        Expert.from_adapted(
            trainable.adapted,
            trainable.z(),
            name=config.name or config.output.name,
            label=config.label or str(setup.environment.t2.get("label", config.task)),
            description=config.description or str(setup.environment.t2.get("description", f"Trained on {config.task}.")),
            base_id=identity["id"],
            revision=identity["revision"],
            training=TrainingRecord(**record),
        ).save(config.output)
    elif isinstance(trainable, PeftTrainable):
        trainable.save(config.output, identity)


def _versions() -> dict[str, str]:
    def one(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "unknown"

    return {package: one(package) for package in _PACKAGES}
