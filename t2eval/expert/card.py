"""Card: what `expert.json` says about an expert, read with errors that name the field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from t2eval.errors import T2Error, shown
from t2eval.expert.folder import CARD, README, TENSORS, is_plain, no_directory
from t2eval.store.files import inside, read_bytes, read_json, read_record
from t2eval.svf.bases import Side
from t2eval.svf.fingerprint import PROBES

FORMAT_VERSION = 1
_LARGEST_CARD, _LARGEST = 64 * 2**20, 2**30  # bytes: far beyond a mixture of experts with thousands of matrices
_REMEDY = "Copy the expert again."

__all__ = ["CARD", "FORMAT_VERSION", "README", "TENSORS", "ExpertCard", "is_plain", "no_directory", "read_card", "read_part"]


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

    shape: tuple[Annotated[int, Field(gt=0, lt=2**31)], Annotated[int, Field(gt=0, lt=2**31)]]
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

    @field_validator("name")
    @classmethod
    def _file_name(cls, value: str) -> str:
        if not is_plain(value):
            raise ValueError("a name is a plain file name: letters, digits, '.', '_' and '-'")
        return value

    @field_validator("label")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("a label is one line of text")
        return value

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
    refuse_adapter(folder)
    content = read_json(_part(folder, CARD), what="expert's card", remedy=_REMEDY, limit=_LARGEST_CARD)
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
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
    """One file of an expert.

    Raises:
        T2Error: it is missing, is no regular file, or is larger than any expert.
    """
    return read_bytes(_part(folder, name), what="expert's file", remedy=_REMEDY, limit=_LARGEST_CARD if name == CARD else _LARGEST)


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).exists():
        raise T2Error(f"{folder} has no {name}: it is not an expert, or was not finished. An expert is {TENSORS} and {CARD}.")
    return inside(folder, name, what="expert's file", remedy=_REMEDY)


def refuse_adapter(folder: Path) -> None:
    """Name a PEFT adapter that is given for an expert.

    Raises:
        T2Error: the folder is one.
    """
    if (folder / CARD).exists() or not (folder / "adapter_config.json").exists():
        return
    try:
        kind = shown(read_record(folder / "adapter_config.json", dict[str, Any], what="adapter").get("peft_type", "PEFT")).strip("'")
    except T2Error:
        kind = "PEFT"
    raise T2Error(
        f"{folder} is a {kind} adapter, not an expert: it has weights of its own, and no z. the lm-eval classes take it in "
        f"experts=, and here an expert is needed. Or evaluate it with lm_eval's own class "
        f"(lm_eval --model hf --model_args pretrained=BASE,peft={folder}), or name it under `baselines:` in a benchmark file."
    )
