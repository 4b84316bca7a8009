"""Sweep: all runs of one training, one after the other on one model, each as far as the sweep's rule takes it (`halving`).

All begin as the base model with the same seed, so they share what does not depend on what is swept: the model with its bases, the base's
validation, and the answers of the first step. A stopped sweep goes on where it was: each run from its last whole checkpoint, and the
validations that the checkpoints hold decide who goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.environment.environment import Environment, Example
from t2eval.expert.card import BaseModelCard, Score
from t2eval.training import claim
from t2eval.training.checkpoints import FOLDER, NoWholeCheckpoint, Progress
from t2eval.training.config import TrainConfig
from t2eval.training.halving import Rung, rungs, survivors
from t2eval.training.log import LOG
from t2eval.training.loop import Loop, Start
from t2eval.training.processes import Processes
from t2eval.training.progress import Report, Show, opening, show
from t2eval.training.reinforce import Reinforce
from t2eval.training.scores import Validator, nan_message, summarise
from t2eval.training.supervised import Supervised
from t2eval.training.trainable import Names, Trainable
from t2eval.vision.features import Reader


@dataclass(frozen=True)
class Setup:
    """What all runs of a sweep share."""

    environment: Environment
    trainable: Trainable
    tokenizer: Any
    processor: Any
    reader: Reader | None
    identity: BaseModelCard
    train: list[Example]
    validation: list[Example]
    processes: Processes
    names: Names


@dataclass(frozen=True)
class Run:
    """One run of a sweep: `point` in `folder`, what it `reached`, and what was said of it. `ended`: it went to its end."""

    point: TrainConfig
    folder: Path
    reached: Progress
    remarks: tuple[str, ...]
    ended: bool = True


def swept(point: TrainConfig) -> dict[str, Any]:
    """What tells the runs of a sweep apart."""
    return {name: getattr(point, name) for name in ("lr", "clip", "kl")}


def entry_of(run: Run) -> dict[str, Any]:
    """A run in the training record: what was swept, its best validation score, and the steps that it took."""
    return {**swept(run.point), "validation": run.reached.best_score, "steps": run.reached.step}


def best_of(runs: Sequence[Run]) -> Run:
    """The best by validation of those that went to their end; the first of equals."""
    return max((run for run in runs if run.ended), key=lambda run: run.reached.best_score)


class Sweep:
    """The runs of a configuration: one, or one for each combination of its lists.

    Args:
        setup: what they share.
        config: with the lists.
        progress: how they are shown.
    """

    def __init__(self, setup: Setup, config: TrainConfig, progress: bool | Report) -> None:
        self.setup, self.config, self.progress = setup, config, progress
        self.points = config.points
        self._initial = setup.trainable.state()
        self._remarks: dict[int, list[str]] = {place: [] for place in range(len(self.points))}
        self._start = Start() if len(self.points) > 1 else None

    def train(self) -> list[Run]:
        """All runs, in the sweep's order."""
        rounds = rungs(self.config)
        runs: dict[int, Run] = {}
        going = list(range(len(self.points)))
        for number, rung in enumerate(rounds):
            for place in going:
                runs[place] = self._run(place, rung, first=number == 0, last=number + 1 == len(rounds))
            if self._start is not None:
                self._start.plays = None  # all have begun
            if number + 1 < len(rounds):
                going = survivors({place: runs[place].reached.validations for place in going}, rung, rounds[number + 1].runs)
                self._tell(rung, going)
        return [runs[place] for place in range(len(self.points))]

    def _tell(self, rung: Rung, going: Sequence[int]) -> None:
        names = ", ".join(f"{place + 1} {swept(self.points[place])}" for place in going)
        opening(self.progress, f"After step {rung.until} of {self.config.steps}, {len(going)} of {rung.runs} runs go on: {names}")

    def _run(self, place: int, rung: Rung, first: bool, last: bool) -> Run:
        """One run as far as a round takes it."""
        config, point, alone = self.config, self.points[place], len(self.points) == 1
        folder = config.output if alone else config.output / claim.SWEEP / str(place)
        if config.max_seconds is not None:
            point = point.model_copy(update={"max_seconds": config.max_seconds / len(self.points)})
        title = f"{config.method} {config.task}" + ("" if alone else f" {place + 1}/{len(self.points)} {swept(point)}")
        shown = show(self.progress, title)
        resume, until = point.resume or not first, None if last else rung.until
        try:
            try:
                reached = self._loop(point, folder, shown).run(resume, until)
            except NoWholeCheckpoint as error:
                if alone:
                    raise
                if self.setup.processes.first:
                    shown.say(f"{str(error).partition(' Train again')[0]} Run {place + 1} of the sweep begins anew.")
                self._discard(folder)
                reached = self._loop(point, folder, shown).run(False, until)
        finally:
            shown.close()
        self._remarks[place] += shown.remarks
        if self._start is not None and self._start.validation is None:
            self._start.validation = Score(**{name: reached.validations[0][name] for name in ("score", "stderr", "n")})
        return Run(point, folder, reached, tuple(self._remarks[place]), ended=last)

    def _loop(self, point: TrainConfig, folder: Path, shown: Show) -> Loop:
        """A loop that begins as the base model does."""
        setup = self.setup
        setup.trainable.load(self._initial)
        objective = (Reinforce if point.objective == "reinforce" else Supervised)(setup.environment, setup.tokenizer, point, setup.reader)
        return Loop(
            setup.trainable,
            objective,
            setup.train,
            self._validator(point, shown),
            point,
            folder,
            shown.report,
            shown.say,
            setup.processes,
            self._start,
        )

    def _discard(self, folder: Path) -> None:
        """Take away a run that cannot be gone on with."""
        if self.setup.processes.first:
            shutil.rmtree(folder / FOLDER)
            (folder / LOG).unlink(missing_ok=True)
        self.setup.processes.wait()

    def _validator(self, point: TrainConfig, shown: Show) -> Callable[[], Score]:
        """Scores the validation examples, shared among the processes; documents without a number are named once."""
        setup = self.setup
        named: list[str] = []
        validator = Validator(setup.trainable, setup.environment, setup.tokenizer, point, setup.reader)

        def validated() -> Score:
            outcomes = setup.processes.gather(validator.outcomes(setup.processes.share(setup.validation)))
            message = nan_message(setup.environment, setup.validation, outcomes)
            if message is not None and not named:
                named.append(message)
                if setup.processes.first:
                    shown.say(message)
            return summarise(outcomes)

        return validated
