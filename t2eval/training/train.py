"""Train: one call from a configuration to a saved expert (svf) or PEFT adapter (lora, ia3, dora), with its record.

Validation chooses: the checkpoint of each run (the first best one, and the base model where none is better), and the run where the
configuration lists several values. The test split is only scored, once before and once after, by lm-eval.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.basemodel.devices import SPREAD, describe, pick_device
from t2eval.basemodel.load import base_identity, load_base
from t2eval.environment.environment import Environment, Example
from t2eval.errors import T2Error, UsageError
from t2eval.expert.card import BaseModelCard, Score
from t2eval.expert.expert import check_name
from t2eval.store.lock import locked
from t2eval.store.versions import git_commit, versions
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.training import claim
from t2eval.training.config import TrainConfig
from t2eval.training.curve import draw
from t2eval.training.log import LOG, read_log
from t2eval.training.methods import make_trainable
from t2eval.training.processes import Processes
from t2eval.training.progress import Report, opening
from t2eval.training.record import RunRecord
from t2eval.training.scores import TestScore, paired_test, refuse_no_room, score_test
from t2eval.training.sweep import Run, Setup, Sweep, best_of, entry_of, swept
from t2eval.training.trainable import Names
from t2eval.vision.features import Reader
from t2eval.vision.images import reads_images, text_tokenizer

OUTCOMES = claim.OUTCOMES


@dataclass(frozen=True)
class TrainResult:
    """What a training run left: `record`, in the folder `path`."""

    path: Path
    record: RunRecord

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        """{"before" | "after": {"validation" | "test": Score}}; before is the base model."""
        return {str(when): {str(split): score for split, score in of.items()} for when, of in self.record.scores.items()}

    @property
    def comparison(self) -> dict[str, float | int] | None:
        """Of the test outcomes before and after: `n`, `gained`, `lost`, `p_value`; None where the test split was not scored."""
        return self.record.comparison.model_dump() if self.record.comparison else None

    @property
    def steps(self) -> int:
        """Optimiser steps of the chosen run."""
        return self.record.steps

    @property
    def chosen_step(self) -> int:
        """The checkpoint that validation chose; 0: the base model, which none was better than."""
        return self.record.chosen_step

    @property
    def seconds(self) -> float:
        """Of training, over all sessions and all runs of a sweep."""
        return self.record.seconds

    @property
    def trainable_parameters(self) -> int:
        """How many."""
        return self.record.trainable_parameters


def train_expert(config: TrainConfig, progress: bool | Report = True) -> TrainResult:
    """Train one expert or baseline.

    Args:
        config: what to train, on what, how. With a list in `lr`, `clip` or `kl`, each combination is trained (sharing `max_seconds`, or as
            far as `sweep` says) and the best by validation is kept.
        progress: True: a progress bar; False: nothing; or a function that gets each row of the log.

    Returns:
        Scores, the paired test, and where the result lies. In `config.output`: the expert or adapter, `training.json`,
        `test_outcomes.json`, `log.jsonl`, `learning_curve.png`, `checkpoints/` (with a sweep: `sweep/<n>/` for each run).

    Raises:
        T2Error: a task without a training split, a hub that cannot be reached, a full disk, a diverged loss, …
        UsageError: an output directory that is in use, a resumed run with other settings.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.

    Examples:
        >>> result = train_expert(TrainConfig(task="embedded_math_seen", output="runs/math", max_seconds=60))
        >>> result.scores["after"]["test"].score, result.comparison["p_value"]
    """
    config = config.for_task()
    check_name(config.name or config.output.name)
    claim.check_folder(config.output)
    processes = Processes(pick_device(config.device), trackers=config.report_to, folder=config.output)
    progress = progress if processes.first else False
    try:
        with locked(config.output, "training run") if processes.first else contextlib.nullcontext():
            finished = processes.from_first(claim.claim(config) if processes.first else None)
            if finished is not None:
                return TrainResult(config.output, finished)
            record = _train(_set_up(config, processes, progress), config, progress)
            return TrainResult(config.output, _known(processes.from_first(record)))
    except T2Error:
        claim.leave(config.output)
        raise


def _train(setup: Setup, config: TrainConfig, progress: bool | Report) -> RunRecord | None:
    """All runs of the sweep, and what they leave; the record, on the first process."""
    processes = setup.processes
    if processes.first:
        claim.hold(config, setup.environment, [*setup.train, *setup.validation], setup.trainable.model)
    processes.begin_tracking(config.hyperparameters)
    runs = Sweep(setup, config, progress).train()
    processes.close()
    return _finish(setup, config, runs, progress) if processes.first else None


def _known(record: RunRecord | None) -> RunRecord:
    assert record is not None
    return record


# ---------------------------------------------------------------------- the runs
def _set_up(config: TrainConfig, processes: Processes, progress: bool | Report) -> Setup:
    model, processor = load_base(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device if config.device == SPREAD else pick_device(config.device),
        trust_remote_code=config.trust_remote_code,
        gguf_file=config.gguf_file,
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
    refuse_no_room(model, text_tokenizer(processor), environment)
    train, validation = apart_from_test(
        environment,
        (
            environment.examples("train", config.train_limit, config.seed),
            environment.examples("validation", config.validation_limit, seed=0),
        ),
        progress,
    )
    if not train or not validation:
        raise T2Error(f"Task {config.task!r} has {len(train)} training and {len(validation)} validation examples: both are needed.")
    identity = BaseModelCard.model_validate(base_identity(model))
    names = _names(config, environment, progress)
    reader = Reader(model, processor) if environment.images else None
    with processes.first_before_others():
        trainable = make_trainable(model, config)
    if config.checkpoint_activations:
        trainable.checkpoint_activations()
    steps = f"{config.steps} step{'' if config.steps == 1 else 's'}"
    steps = steps if config.max_seconds is None else f"{config.max_seconds:g} s, {steps} at most"
    halving = " by halving" if config.sweep == "halving" else ""
    sweep = f", {len(config.points)} runs{halving}" if len(config.points) > 1 else ""
    parallel = f", {processes.count} processes" if processes.count > 1 else ""
    opening(
        progress,
        f"{config.method} on {identity.id} ({identity.architecture}), {describe(trainable.device, model.dtype)}{parallel}; {config.task}: "
        f"{len(train)} examples of {environment.split_source('train')}, validated on {len(validation)} of "
        f"{environment.split_source('validation')}; {steps} of {config.batch_size} answers{sweep}",
    )
    return Setup(environment, trainable, text_tokenizer(processor), processor, reader, identity, train, validation, processes, names)


def apart_from_test(environment: Environment, splits: Sequence[list[Example]], progress: bool | Report) -> list[list[Example]]:
    """Of each split the examples that do not ask, with the same choices, what a test example asks: two rows of ARC-Easy's training do.

    A task with images keeps all, as one question may be asked about two pictures; so does a dispatch task, which may read such questions
    without their pictures.
    """
    if environment.images or environment.t2.get("label") == DISPATCH_LABEL or not environment.has_test:
        return list(splits)
    tested = {asked(environment.task, example) for example in environment.examples("test")}
    found = []
    for examples in splits:
        kept = [example for example in examples if asked(environment.task, example) not in tested]
        if left := len(examples) - len(kept):
            which = f"{left} of {len(examples)} examples of split {examples[0].split!r} of {environment.name!r}"
            opening(progress, f"Left out: {which}, which are test rows too.")
        found.append(kept)
    return found


def asked(task: Any, example: Example) -> tuple[str, tuple[str, ...] | None]:
    """What tells a question from another, however many worked examples stand before it: its text, and its choices."""
    return str(task.doc_to_text(example.doc)), example.choices


def _names(config: TrainConfig, environment: Environment, progress: bool | Report) -> Names:
    """What the expert will be called, and a word where dispatch could not tell it from others."""
    own = environment.t2
    label, description = config.label or own.get("label"), config.description or own.get("description")
    if config.method == "svf" and not (label and description):
        missing = " and ".join(word for word, value in (("label", label), ("description", description)) if not value)
        opening(
            progress,
            f"The task has no {missing} in metadata.t2, by which dispatch (t2-prompt, t2-cls) chooses this expert: give {missing}, such as "
            '--label math --description "Word problems with numbers."',
        )
    name = config.name or config.output.name
    return Names(name, str(label or config.task), str(description or f"Questions like those of {config.task}."))


# ---------------------------------------------------------------------- the end
def _finish(setup: Setup, config: TrainConfig, runs: list[Run], progress: bool | Report) -> RunRecord:
    """Score the test split, draw the curve, and save: the record comes last, and says that the run is finished."""
    chosen = best_of(runs)
    best = chosen.reached
    setup.trainable.load(best.best)
    if chosen.folder != config.output and (chosen.folder / LOG).is_file():
        shutil.copyfile(chosen.folder / LOG, config.output / LOG)
    tests: tuple[TestScore, TestScore] | None = None
    if config.test:
        before, after = (score_test(setup.trainable, setup.environment, setup.processor, config, base=base) for base in (True, False))
        tests = (before, after)
        claim.write_outcomes(config.output, before.outcomes, after.outcomes)
    record = _record(setup, config, runs, chosen, tests)
    for remark in record.remarks[len(chosen.remarks) :]:
        opening(progress, remark)
    log = config.output / LOG
    rows = read_log(log) if log.is_file() else []
    title, metric = f"{config.method}, {config.objective}: {config.task}", setup.environment.metric
    with claim.staged_file(config.output / claim.CURVE) as path:
        draw(path, title=title, metric=metric, points=best.validations, chosen=best.best_step, batches=rows)
    setup.trainable.save(config.output, record, setup.names)
    record.write(config.output)
    return record


def _record(setup: Setup, config: TrainConfig, runs: list[Run], chosen: Run, tests: tuple[TestScore, TestScore] | None) -> RunRecord:
    best, source = chosen.reached, setup.environment.split_source
    points = {entry["step"]: Score(**{key: entry[key] for key in ("score", "stderr", "n")}) for entry in best.validations}
    scores: dict[Any, dict[Any, Score]] = {"before": {"validation": points[0]}, "after": {"validation": points[best.best_step]}}
    splits: dict[str, Any] = {
        "train": {"source": source("train"), "n": len(setup.train)},
        "validation": {"source": source("validation"), "n": len(setup.validation)},
    }
    comparison, remarks = None, chosen.remarks
    if tests is not None:
        before, after = tests
        scores["before"]["test"], scores["after"]["test"] = before.score, after.score
        comparison = paired_test(before.outcomes, after.outcomes)
        splits["test"] = {"source": source("test"), **comparison.model_dump()}
        remarks += tuple(dict.fromkeys(test.remark for test in tests if test.remark))
    sweep = [entry_of(run) for run in runs] if len(runs) > 1 else None
    return RunRecord(
        task=config.task,
        splits=splits,
        seed=config.seed,
        method=config.method,
        objective=config.objective,
        hyperparameters={**config.hyperparameters, **swept(chosen.point)},
        steps=max(entry["step"] for entry in best.validations),
        seconds=round(sum(run.reached.elapsed for run in runs), 3),
        metric=setup.environment.metric,
        scores=scores,
        git_commit=git_commit(),
        comparison=comparison,
        chosen_step=best.best_step,
        trainable_parameters=sum(parameter.numel() for parameter in setup.trainable.parameters().values()),
        base_model=setup.identity,
        sweep=sweep,
        versions=versions(),
        remarks=remarks,
    )
