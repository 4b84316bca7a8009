"""Card: what `expert.json` says about an expert, read with errors that name the field."""

from __future__ import annotations

import difflib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from t2eval.errors import T2Error
from t2eval.svf.bases import Side
from t2eval.svf.fingerprint import PROBES

FORMAT_VERSION = 1
TENSORS, CARD, README = "expert.safetensors", "expert.json", "README.md"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Record):
    """A score on n examples with its standard error, None where it cannot be had (n = 1)."""

    score: float
    stderr: float | None = None
    n: int

    @field_validator("stderr")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None


class BaseModelCard(_Record):
    """The base model that an expert was trained on."""

    id: str
    revision: str | None = None
    architecture: str


class ModuleCard(_Record):
    """One adapted matrix: its (out, in) shape, the side that z scales, and the length of z."""

    shape: tuple[int, int]
    side: Side
    rank: int

    @model_validator(mode="after")
    def _consistent(self) -> ModuleCard:
        side = "output" if self.shape[0] <= self.shape[1] else "input"
        if self.side != side or self.rank != min(self.shape):
            raise ValueError(f"a matrix of shape {self.shape} has side {side} and rank {min(self.shape)}, not {self.side} and {self.rank}")
        return self


class TrainingRecord(_Record):
    """How an expert or a baseline was trained. `scores` is {"before" | "after": {"validation" | "test": Score}}."""

    task: str
    splits: dict[str, Any] = {}
    seed: int
    method: str = "svf"
    objective: str
    hyperparameters: dict[str, Any] = {}
    steps: int
    seconds: float
    metric: str | None = None
    scores: dict[Literal["before", "after"], dict[Literal["validation", "test"], Score]] = {}
    git_commit: str | None = None


class ExpertCard(_Record):
    """`expert.json`."""

    format_version: int = FORMAT_VERSION
    name: str
    label: str
    description: str
    base_model: BaseModelCard
    modules: dict[str, ModuleCard]
    parameterisation: Literal["direct", "sigmoid-renorm"]
    basis_fingerprint: dict[str, list[float]]
    training: TrainingRecord | None = None
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> ExpertCard:
        if not self.modules:
            raise ValueError("modules is empty")
        if differing := sorted(set(self.modules) ^ set(self.basis_fingerprint)):
            raise ValueError(f"{differing[0]} is in only one of modules and basis_fingerprint")
        for path, numbers in self.basis_fingerprint.items():
            if len(numbers) != PROBES or not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"the basis_fingerprint of {path} is not {PROBES} finite numbers")
        return self


def read_card(folder: Path) -> ExpertCard:
    if not folder.is_dir():
        raise T2Error(no_directory(folder))
    try:
        content = json.loads(read_part(folder, CARD))
    except ValueError as error:
        raise T2Error(f"{folder / CARD} is not valid JSON ({error}).") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise T2Error(f"{folder / CARD} has no format_version: this is not an expert's card.")
    if version > FORMAT_VERSION:
        raise T2Error(
            f"{folder / CARD} has format version {version}; this t2eval reads up to {FORMAT_VERSION}. Upgrade: pip install -U t2eval."
        )
    try:
        return ExpertCard.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the card"
        raise T2Error(f"{folder / CARD}: {where}: {first['msg']} ({error.error_count()} problems in all).") from error


def read_part(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise T2Error(f"{folder} has no {name}: it is not an expert, or was not finished. An expert is {TENSORS} and {CARD}.") from error
    except OSError as error:
        raise T2Error(f"Cannot read {folder / name}: {error}.") from error


def no_directory(path: Path) -> str:
    if path.exists():
        return f"{path} is not a directory."
    siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""
    return f"There is no directory {path}.{hint}"
