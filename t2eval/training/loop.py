"""Training loop: sample, reward, backward, step, validate, save, in the order in which it is read.

A killed run resumes to the same result bit for bit, because nothing is hidden: the data order is a function of (seed, position), a
step's randomness of (seed, step, example), and checkpoints are written whole. Several processes (torchrun) give the result of one, up to
the order of sums: each takes a share of the step's prompts, rewards are gathered before a baseline is taken, gradients are summed, the
first process's clock counts, and it alone writes.
"""

from __future__ import annotations

import json
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2eval.environment.environment import Example
from t2eval.errors import T2Error
from t2eval.expert.card import Score
from t2eval.store.files import append_line, write_text
from t2eval.training import checkpoints
from t2eval.training.checkpoints import Progress, room_for
from t2eval.training.config import TrainConfig
from t2eval.training.log import LOG, read_log
from t2eval.training.objective import Objective
from t2eval.training.processes import Processes
from t2eval.training.progress import Report, Say, log_remark
from t2eval.training.trainable import Trainable

_EARLY = 3
"""Steps after which equal rewards are worth a word."""


def _silent(_: str) -> None:
    return None


@dataclass
class Start:
    """What the runs of a sweep have in common, as all begin as the base model with one seed; the first run fills it in.

    Attributes:
        validation: of the base model.
        plays: what the objective sampled in the first step, and its rewards.
    """

    validation: Score | None = None
    plays: Any = None


class Loop:
    """One run of one objective on one trainable model.

    Args:
        trainable: the model.
        objective: what a step learns.
        examples: the training examples.
        validate: scores the validation examples with the model as it is; the same score on all processes.
        config: a single point (no lists).
        folder: where checkpoints and the log go.
        report: gets each row of the log.
        say: gets remarks, a sentence each.
        processes: of this run; None: this one alone, or torchrun's.
        start: what other runs from the same start have done already, or are to be spared; None: there are none.
    """

    def __init__(
        self,
        trainable: Trainable,
        objective: Objective[Any],
        examples: Sequence[Example],
        validate: Callable[[], Score],
        config: TrainConfig,
        folder: Path,
        report: Report,
        say: Say = log_remark,
        processes: Processes | None = None,
        start: Start | None = None,
    ) -> None:
        self.trainable, self.objective, self.examples, self.config = trainable, objective, examples, config
        self.validate, self.report, self.folder = validate, report, folder
        self.processes = processes if processes is not None else Processes(trainable.device)
        self.say: Say = say if self.processes.first else _silent
        self.parameters = trainable.parameters()
        self.rate, self.clip = config.sweep_values("lr")[0], config.sweep_values("clip")[0]
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=self.rate, weight_decay=config.weight_decay)
        self.start = start
        self.progress = Progress()
        self.interrupted = False
        self._before, self._started = 0.0, time.monotonic()
        self._order: tuple[int, list[int]] = (-1, [])

    def run(self, resume: bool, until: int | None = None) -> Progress:
        """Train to the end of the steps or of the seconds.

        Args:
            resume: from the last whole checkpoint in the folder, if there is one.
            until: stop after this step, which is saved; a later call that resumes goes on as if there had been no stop.

        Returns:
            What was reached, with the best state.

        Raises:
            KeyboardInterrupt: at the first Ctrl-C, after the step in progress is saved.
            T2Error: a full disk, a loss that is not finite, a checkpoint of another run.
        """
        self._begin(resume)
        elapsed = self.processes.from_first(self.elapsed)
        over = self._fraction(elapsed) >= 1
        with self._finishing_on_interrupt():
            while not over and not self.interrupted and not self._stops(until):
                step = self.progress.step
                start, end = self.processes.span(self.prompts)
                mine = [self._example(step * self.prompts + place) for place in range(start, end)]
                seed = random.Random(f"{self.config.seed}/{step}").getrandbits(62)
                torch.manual_seed(seed + start)  # of dropout: for the same examples the same

                # sample and reward: no gradients
                plays = self._plays(mine, seed, start)

                # backward
                figures = self.objective.learn(self.trainable, plays, torch.Tensor.backward)
                self.processes.sum_gradients(self.parameters.values())
                self._check(figures)

                # step
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * self._share_of_rate(elapsed)
                self._clip_gradients()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.progress.step = step = step + 1

                # validate
                over = self._fraction(self.processes.from_first(self.elapsed)) >= 1
                validation = self._validated(step) if over or step % self.config.validate_every == 0 else None
                elapsed = self.progress.elapsed = self.processes.from_first(self.elapsed)
                over = over or (validation is not None and self._fraction(elapsed) >= 1)

                # save
                self._log(figures, validation, elapsed, over)
                self.interrupted = self.processes.any(self.interrupted)
                if over or self.interrupted or self._stops(until) or step % self.config.save_every == 0:
                    self._save()
        self._end(over)
        return self.progress

    def _stops(self, until: int | None) -> bool:
        return until is not None and self.progress.step >= until

    @property
    def prompts(self) -> int:
        """Examples a step, over all processes."""
        return min(self.objective.prompts, len(self.examples))

    def _plays(self, mine: Sequence[Example], seed: int, first: int) -> Any:
        """Sampled and rewarded; in the first step of a sweep's runs once for all, as they differ in nothing yet."""
        shared = self.start if self.progress.step == 0 else None
        if shared is not None and shared.plays is not None:
            return shared.plays
        plays = self.objective.sample(self.trainable, mine, seed, first)
        self.objective.reward(plays, self.processes.gather_tensor)
        if shared is not None:
            shared.plays = plays
        return plays

    # ------------------------------------------------------------------ begin and end
    def _begin(self, resume: bool) -> None:
        """Take up the last whole checkpoint; else validate the base model, which counts for no time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = checkpoints.read_last(self.folder / checkpoints.FOLDER, self.say) if resume else None
        if last is not None:
            self.progress = last.progress
            self.trainable.load(last.state)
            last.restore(self.optimizer, self.parameters)
        self._cut_log(self.progress.step)
        if not self.progress.validations:
            self._validated(0)
        self._before, self._started = self.progress.elapsed, time.monotonic()

    def _end(self, over: bool) -> None:
        self.progress.elapsed = self.processes.from_first(self.elapsed)
        self._before, self._started = self.progress.elapsed, time.monotonic()
        step = self.progress.step
        if self.interrupted and not over:
            raise KeyboardInterrupt(f"Stopped after step {step}, which is saved. Continue with resume.")
        if not over:
            return  # stopped before its end
        if step == 0:
            self.say(
                f"No step was taken: max_seconds ({self.config.max_seconds}) had passed. What is saved answers as the base model does."
            )
        elif self.progress.uniform is not None:
            self.say(f"Nothing was learnt: {self._all_alike()} in the whole run, up to step {step}.")
        elif self.progress.best_step == 0:
            score = self.progress.best_score
            self.say(
                f"No checkpoint was better in validation than the base model ({score:.3f}): what is saved answers as the base model does."
            )

    # ------------------------------------------------------------------ time and order
    @property
    def elapsed(self) -> float:
        """Seconds of training, over all sessions."""
        return self._before + time.monotonic() - self._started

    def _fraction(self, elapsed: float) -> float:
        """How much of the run is over: of its steps or of its seconds, whichever is more."""
        by_time = elapsed / self.config.max_seconds if self.config.max_seconds else 0.0
        return min(1.0, max(self.progress.step / self.config.steps, by_time))

    def _share_of_rate(self, elapsed: float) -> float:
        return 1.0 if self.config.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * self._fraction(elapsed)))

    def _example(self, position: int) -> Example:
        """The example at a position of the run: one seeded permutation comes after the other."""
        epoch, place = divmod(position, len(self.examples))
        if self._order[0] != epoch:
            order = list(range(len(self.examples)))
            random.Random(f"{self.config.seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self.examples[self._order[1][place]]

    # ------------------------------------------------------------------ what a step leaves
    def _check(self, figures: dict[str, float]) -> None:
        """Refuse to go on with a loss that is no number, and say early where there is nothing to learn from."""
        step = self.progress.step + 1
        if not math.isfinite(figures["loss"]):
            raise self._diverged("loss", figures["loss"])
        self.progress.rewarded_now(figures.get("accuracy"))
        if step == _EARLY and self.progress.uniform is not None:
            self.say(
                f"Nothing to learn so far: {self._all_alike()} in the first {step} steps. If that is not how hard the task is, look at "
                "its filter and metric: what the model writes must be able to be right, and to be wrong."
            )

    def _clip_gradients(self) -> None:
        """Shorten the gradient to `clip`, if there is one; refuse one that is no number, which would be in every weight after the step."""
        length = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip or math.inf))
        if not math.isfinite(length):
            raise self._diverged("gradient", length)

    def _diverged(self, what: str, value: float) -> T2Error:
        done = self.progress.step
        return T2Error(
            f"The {what} of step {done + 1} is {value}: training diverged. Lower lr (now {self.config.lr}) or raise kl; "
            f"checkpoints up to step {done} are in {self.folder / checkpoints.FOLDER}."
        )

    def _all_alike(self) -> str:
        return "every answer was right" if self.progress.uniform else "every answer was wrong"

    def _validated(self, step: int) -> float:
        """Validate, and keep the state if it is better than all before, the base model's among them."""
        known = self.start.validation if self.start is not None and step == 0 else None
        score = known if known is not None else self.validate()
        if self.start is not None and step == 0:
            self.start.validation = score
        self.progress.validations.append({"step": step, **score.model_dump()})
        if step == 0 or score.score > self.progress.best_score:
            self.progress.best_step, self.progress.best_score, self.progress.best = step, score.score, self.trainable.state()
        return score.score

    def _log(self, figures: dict[str, float], validation: float | None, elapsed: float, over: bool) -> None:
        """Append to `log.jsonl`, show, and hand to the trackers; the first process alone."""
        if not self.processes.first:
            return
        fraction = self._fraction(elapsed)
        left = 0.0 if over else elapsed * (1 - fraction) / fraction if fraction > 0 else None
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        row: dict[str, Any] = {"step": self.progress.step, **finite, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {} if validation is None else {"validation": validation}
        row |= {"progress": fraction, "seconds": elapsed, "seconds_left": left}
        with room_for("the log", self.folder):
            append_line(self.folder / LOG, json.dumps(row, allow_nan=False))
        self.report(row)
        self.processes.track(row, self.progress.step)

    def _cut_log(self, step: int) -> None:
        """Leave in the log what the checkpoint knows of."""
        path = self.folder / LOG
        if self.processes.first and path.is_file():
            write_text(path, "".join(f"{json.dumps(row)}\n" for row in read_log(path) if row["step"] <= step))
        self.processes.wait()

    def _save(self) -> None:
        """A whole checkpoint, written by the first process."""
        if self.processes.first:
            folder = self.folder / checkpoints.FOLDER
            checkpoints.save(folder, self.progress, self.trainable.state(), self.optimizer, list(self.parameters))
            checkpoints.prune(folder, self.config.keep_checkpoints)
        self.processes.wait()

    @contextmanager
    def _finishing_on_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C lets the step finish and saves it; the second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def finish(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = signal.signal(signal.SIGINT, finish)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
