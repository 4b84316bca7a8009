"""Checkpoints: all that a run needs to go on as if it had not been cut off, whole or not there at all.

checkpoints/checkpoint-<step>/
    trainable.safetensors   the parameters that are trained
    best.safetensors        the same at the best validation so far
    optimizer.safetensors   AdamW's two moments and its count of steps, by parameter: `<name>|exp_avg`, …
    progress.json           step, seconds, learning rate, validations, and the SHA-256 of the three files

Nothing else is kept, because nothing else is hidden state: the data order is a function of (seed, position), and a step's randomness of
(seed, step, example).
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from t2eval.errors import T2Error
from t2eval.store.digests import file_digest
from t2eval.store.files import of_shape, read_record, write_json
from t2eval.store.folders import staged_folder
from t2eval.store.tensors import read_tensors

FOLDER, STATE, BEST, OPTIMIZER, PROGRESS = (
    "checkpoints",
    "trainable.safetensors",
    "best.safetensors",
    "optimizer.safetensors",
    "progress.json",
)
_NAME = "checkpoint-"
_UNUSED = "It is not used."
_LARGEST = 2**34  # bytes: AdamW's moments of an adapter of high rank on a large model


class _Validation(BaseModel):
    model_config = ConfigDict(extra="allow")

    step: int
    score: float
    stderr: float | None
    n: int


class _Reached(BaseModel):
    """`Progress` as its file has it."""

    model_config = ConfigDict(extra="forbid")

    step: int
    elapsed: float
    validations: list[_Validation] = Field(min_length=1)
    best_step: int
    best_score: float
    rewarded: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None


class NoWholeCheckpoint(T2Error):
    """There are checkpoints of a run, and all are damaged."""


@dataclass
class Progress:
    """What a run has reached; part of each checkpoint.

    Attributes:
        step: optimiser steps done. elapsed: seconds of training so far, over all sessions, without the base model's validation.
        validations: {step, score, stderr, n}; step 0 is the base model.
        best_step, best_score: of the first best validation; step 0, the base model, where no later one is better.
        rewarded: the least and the greatest share of right answers of a step, None before the first one and without rewards.
        best: the trainable parameters at the best step.
    """

    step: int = 0
    elapsed: float = 0.0
    validations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_score: float = -math.inf
    rewarded: list[float] | None = None
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def uniform(self) -> float | None:
        """The share of right answers, 0 or 1, where every reward so far was the same; else None."""
        least, most = self.rewarded or [0.0, 1.0]
        return least if least == most and least in (0.0, 1.0) else None

    def rewarded_now(self, accuracy: float | None) -> None:
        """Count a step's share of right answers."""
        if accuracy is not None:
            least, most = self.rewarded or [accuracy, accuracy]
            self.rewarded = [min(least, accuracy), max(most, accuracy)]


def save(folder: Path, progress: Progress, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, names: list[str]) -> None:
    """Write the checkpoint of a step.

    Args:
        folder: of all checkpoints.
        progress: what is reached.
        state: the trainable parameters.
        optimizer: AdamW over them. names: theirs, in its order.

    Raises:
        T2Error: the disk is full or cannot be written. Earlier checkpoints are left as they are.
    """
    with room_for(f"the checkpoint of step {progress.step}", folder), staged_folder(folder / f"{_NAME}{progress.step}") as staging:
        save_file(dict(state), staging / STATE)
        save_file(progress.best, staging / BEST)
        save_file(_moments(optimizer, names), staging / OPTIMIZER)
        content = {key: value for key, value in vars(progress).items() if key != "best"}
        digests = {name: file_digest(staging / name) for name in (STATE, BEST, OPTIMIZER)}
        write_json(staging / PROGRESS, {**content, "lr": optimizer.param_groups[0]["lr"], "sha256": digests})


def _moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    kept = optimizer.state_dict()["state"]
    return {f"{names[place]}|{key}": torch.as_tensor(value).cpu().contiguous() for place, of in kept.items() for key, value in of.items()}


def prune(folder: Path, keep: int) -> None:
    """Remove all but the latest checkpoints."""
    for path in found(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the one of the most steps last. Unfinished ones have another name."""
    paths = [path for path in folder.glob(f"{_NAME}*") if re.fullmatch(rf"{_NAME}[0-9]{{1,15}}", path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix(_NAME)))


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in a folder, or None."""
    return next(reversed(found(folder)), None)


@dataclass
class Checkpoint:
    """A checkpoint as it was read: `progress`, the trainable parameters' `state`, and the optimiser's `moments`."""

    progress: Progress
    state: dict[str, Tensor]
    moments: dict[str, Tensor]

    def restore(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        """Give the optimiser its moments back; the parameters in its order."""
        state: dict[int, dict[str, Tensor]] = {}
        for place, name in enumerate(parameters):
            own = {key.rpartition("|")[2]: value for key, value in self.moments.items() if key.rpartition("|")[0] == name}
            if own:
                state[place] = own
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def read_last(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The last whole checkpoint; a damaged one is named, and the one before it is taken.

    Args:
        folder: of all checkpoints.
        say: gets a line for each damaged one.

    Returns:
        None where there is no checkpoint.

    Raises:
        NoWholeCheckpoint: there are checkpoints, and all are damaged.
    """
    damaged: list[str] = []
    for path in reversed(found(folder)):
        try:
            checkpoint = _read(path)
        except T2Error as error:
            damaged.append(f"{path}: {error}")
            continue
        for line in damaged:
            say(f"Damaged checkpoint {line} Going on from step {checkpoint.progress.step}.")
        return checkpoint
    if damaged:
        raise NoWholeCheckpoint(f"No checkpoint of this run is whole. {' '.join(damaged)} Train again with overwrite.")
    return None


def _read(path: Path) -> Checkpoint:
    content = read_record(path / PROGRESS, dict[str, Any], what="checkpoint's progress", remedy=_UNUSED)
    try:
        digests, _ = content.pop("sha256"), content.pop("lr")
        for name in (STATE, BEST, OPTIMIZER):
            if not (path / name).is_file():
                raise T2Error(f"{name} is missing.")
            if file_digest(path / name) != digests[name]:
                raise T2Error(f"{name} is not what was written.")
        read = {name: read_tensors(path / name, what="checkpoint", remedy=_UNUSED, limit=_LARGEST) for name in (STATE, BEST, OPTIMIZER)}
        reached = of_shape(content, _Reached, path / PROGRESS, what="checkpoint's progress", remedy=_UNUSED)
        return Checkpoint(Progress(**reached.model_dump(), best=read[BEST]), read[STATE], read[OPTIMIZER])
    except (KeyError, TypeError, AttributeError) as error:
        raise T2Error(f"it cannot be read ({type(error).__name__}: {error}).") from error


@contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """A failed write as one message."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, T2Error) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise T2Error(
            f"Could not write {what} to {folder}: {reason}. Earlier checkpoints are intact: make room, then run again with resume."
        ) from error
