"""Training loop: transformers' Trainer around an objective, with validation, the best state so far, and checkpoints that resume exactly.

Trainer gives AdamW, the schedule, clipping, data parallelism, logging and the skeleton of a checkpoint. Exactness comes from having no
hidden state: the data order is a function of (seed, position), a step's randomness of (seed, step, process).
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from t2eval.environment.environment import Example
from t2eval.errors import T2Error
from t2eval.expert.card import Score
from t2eval.training.config import TrainConfig
from t2eval.training.methods import Trainable
from t2eval.training.progress import Report

STATE, BEST, PROGRESS = "trainable.safetensors", "best.safetensors", "progress.json"
LOG = "log.jsonl"


class Objective(Protocol):
    """What a step learns: `Reinforce` or `Supervised`."""

    @property
    def prompts(self) -> int: ...

    def step(self, trainable: Trainable, examples: Sequence[Example], seed: int, backward: Callable[[Tensor], Any]) -> dict[str, float]: ...


@dataclass
class Progress:
    """What a run has reached; part of each checkpoint.

    Attributes:
        step: optimiser steps done. elapsed: seconds of training so far, over all sessions.
        validations: {step, score, stderr, n}; step 0 is the base model.
        best_step, best_score: of the first best validation after step 0.
        best: the trainable parameters at that step.
    """

    step: int = 0
    elapsed: float = 0.0
    validations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_score: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put it into a folder."""
        save_file(self.best, folder / BEST)
        content = {key: value for key, value in vars(self).items() if key != "best"}
        (folder / PROGRESS).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """The inverse of `write`."""
        return cls(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")), best=load_file(folder / BEST))


class _Order(Dataset[int]):
    """Which example comes at each position of a run: one seeded permutation after the other."""

    def __init__(self, examples: int, length: int, seed: int) -> None:
        self._examples, self._length, self._seed = examples, length, seed
        self._held: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._examples)
        if self._held[0] != epoch:
            order = list(range(self._examples))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._held = (epoch, order)
        return self._held[1][place]


def _collate(indices: list[int]) -> dict[str, Tensor]:
    return {"index": torch.tensor(indices)}


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in a folder, or None. Unfinished ones have another name."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


class Loop(Trainer):  # type: ignore[misc, unused-ignore]
    """One run of one objective on one trainable model.

    Args:
        trainable: the model.
        objective: what a step learns.
        examples: the training examples.
        validate: scores the validation examples with the model as it is.
        config: a single point (no lists).
        folder: where checkpoints and the log go.
        report: gets each row of the log.
    """

    def __init__(
        self,
        trainable: Trainable,
        objective: Objective,
        examples: Sequence[Example],
        validate: Callable[[], Score],
        config: TrainConfig,
        folder: Path,
        report: Report,
    ) -> None:
        self.trainable, self.objective, self.examples, self.run_config = trainable, objective, examples, config
        self.validate, self.report, self.folder = validate, report, folder
        self.progress = Progress()
        self.last: dict[str, float] = {}
        self._staging: Path | None = None
        self._started = time.monotonic()
        self.interrupted = False
        world = int(os.environ.get("WORLD_SIZE", "1"))
        prompts = min(objective.prompts, len(examples))
        arguments = TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            per_device_train_batch_size=max(1, prompts // world),
            max_steps=config.steps,
            learning_rate=config.sweep_values("lr")[0],
            max_grad_norm=config.sweep_values("clip")[0],
            save_strategy="no",
            logging_strategy="no",
            report_to=list(config.report_to) or "none",
            seed=config.seed,
            data_seed=config.seed,
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=trainable.device.type == "cpu",
            dataloader_pin_memory=False,
        )
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # several GPUs are used by torchrun, one process each; DataParallel would copy the hooks of one
        optimizer = torch.optim.AdamW(trainable.parameters().values(), lr=config.sweep_values("lr")[0], weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        super().__init__(
            model=trainable.model,
            args=arguments,
            train_dataset=_Order(len(examples), config.steps * prompts, config.seed),
            data_collator=_collate,
            optimizers=(optimizer, schedule),
            callbacks=[_AfterStep(self)],
        )
        self.remove_callback(PrinterCallback)

    # ------------------------------------------------------------------ time
    @property
    def elapsed(self) -> float:
        """Seconds of training, over all sessions."""
        return self.progress.elapsed + time.monotonic() - self._started

    def fraction(self, step: int) -> float:
        """How much of the run is over: of its steps or of its seconds, whichever is more."""
        by_time = self.elapsed / self.run_config.max_seconds if self.run_config.max_seconds else 0.0
        return min(1.0, max(step / self.run_config.steps, by_time))

    def _rate(self, step: int) -> float:
        return 1.0 if self.run_config.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * self.fraction(step)))

    # ------------------------------------------------------------------ what Trainer calls
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: rollouts are not in Trainer's formula."""
        return 0

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Sample, reward, and accumulate the gradient of one whole batch."""
        step = self.state.global_step
        seed = random.Random(f"{self.run_config.seed}/{step}/{self.args.process_index}").getrandbits(62)
        torch.manual_seed(seed)  # dropout: a function of the step, so that a resumed run repeats it
        chosen = [self.examples[index] for index in inputs["index"].tolist()]
        self.last = self.objective.step(self.trainable, chosen, seed, self.accelerator.backward)
        if not math.isfinite(self.last["loss"]):
            raise T2Error(
                f"The loss of step {step + 1} is {self.last['loss']}: training diverged. Lower lr (now {self.run_config.lr}) or raise kl; "
                f"checkpoints up to step {self.progress.step} are in {self.folder / 'checkpoints'}."
            )
        return torch.tensor(self.last["loss"], device=self.args.device)

    # ------------------------------------------------------------------ checkpoints
    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        checkpoints = Path(self.args.output_dir)
        self._staging = checkpoints / ".unfinished"
        name = f"checkpoint-{self.state.global_step}"
        try:
            with _room_for(f"the checkpoint of step {self.state.global_step}", checkpoints, self._staging):
                shutil.rmtree(self._staging, ignore_errors=True)
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    shutil.rmtree(checkpoints / name, ignore_errors=True)
                    os.replace(self._staging / name, checkpoints / name)
                    shutil.rmtree(self._staging, ignore_errors=True)
        finally:
            self._staging = None
        self.progress.step = self.state.global_step
        if self.args.should_save:
            steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in checkpoints.glob("checkpoint-*"))
            for old in steps[: -self.run_config.keep_checkpoints]:
                shutil.rmtree(checkpoints / f"checkpoint-{old}", ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.trainable.state(), folder / STATE)
        now = Progress(**{**vars(self.progress), "elapsed": self.elapsed, "step": self.state.global_step})
        now.write(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.trainable.load(load_file(Path(resume_from_checkpoint) / STATE))

    # ------------------------------------------------------------------ the run
    def run(self, resume: bool) -> Progress:
        """Train to the end of the steps or of the seconds.

        Args:
            resume: from the last checkpoint in the folder, if there is one.

        Returns:
            What was reached, with the best state.

        Raises:
            KeyboardInterrupt: at the first Ctrl-C, after the step in progress is saved.
            T2Error: a full disk, a loss that is not finite, a checkpoint of another run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = last_checkpoint(Path(self.args.output_dir)) if resume else None
        if checkpoint is not None:
            self.progress = Progress.read(checkpoint)
        self._cut_log(self.progress.step)
        self._started = time.monotonic()
        if not self.progress.validations:
            self.validated(0)
        if self.progress.step < self.run_config.steps and self.fraction(self.progress.step) < 1:
            with self._finishing_on_interrupt():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.progress.elapsed, self._started = self.elapsed, time.monotonic()
        if self.interrupted:
            raise KeyboardInterrupt(f"Stopped after step {self.state.global_step}, which is saved. Continue with resume.")
        return self.progress

    def validated(self, step: int) -> float:
        """Validate, and keep the state if it is the first best one after step 0."""
        score = self.validate()
        self.progress.validations.append({"step": step, **score.model_dump()})
        if step > 0 and score.score > self.progress.best_score:
            self.progress.best_step, self.progress.best_score, self.progress.best = step, score.score, self.trainable.state()
        return score.score

    def write_row(self, row: dict[str, Any]) -> None:
        """Append to `log.jsonl`, show, and hand to Trainer's loggers."""
        if not self.args.should_save:
            return
        with _room_for("the log", self.folder), (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self.report(row)
        if self.run_config.report_to:
            self.log({key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "step"})

    def _cut_log(self, step: int) -> None:
        path = self.folder / LOG
        if path.is_file():
            rows = [line for line in path.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
            kept = [line for line in rows if json.loads(line)["step"] <= step] if step else []
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

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


class _AfterStep(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """What happens after each optimiser step: validation, the log, and whether to save and to stop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loop, step, config = self._loop, int(state.global_step), self._loop.run_config
        over = step >= config.steps or loop.fraction(step) >= 1
        due = step % config.validate_every == 0 or over
        validation = loop.validated(step) if due else None
        fraction = loop.fraction(step)
        row: dict[str, Any] = {"step": step, **loop.last, "lr": loop.optimizer.param_groups[0]["lr"]}
        row |= {"validation": validation} if due else {}
        left = loop.elapsed * (1 - fraction) / fraction if fraction > 0 else None
        loop.write_row({**row, "progress": fraction, "seconds": loop.elapsed, "seconds_left": 0.0 if over else left})
        control.should_save = over or loop.interrupted or step % config.save_every == 0
        control.should_training_stop = over or loop.interrupted
        loop.interrupted = loop.interrupted and not over


@contextmanager
def _room_for(what: str, folder: Path, staging: Path | None = None) -> Iterator[None]:
    """A failed write as one message, with nothing half-written left behind."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise T2Error(
            f"Could not write {what} to {folder}: {reason}. Earlier checkpoints are intact: make room, then run again with resume."
        ) from error
