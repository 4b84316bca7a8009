"""Record: what one finished training run was and reached, written once as `training.json` and read everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from t2eval.expert.card import BaseModelCard, Score, TrainingRecord
from t2eval.store.files import read_record, write_json
from t2eval.training.config import RECORD


class Comparison(BaseModel):
    """The exact sign test on the test split's outcomes before and after training (McNemar's for outcomes of 0 and 1).

    Attributes:
        n: documents that were compared. gained, lost: those that got better and worse. p_value: two-sided.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    gained: int
    lost: int
    p_value: float


class RunRecord(TrainingRecord):
    """`training.json`: the training record of an expert's card, and what only the run's own folder says.

    Attributes:
        comparison: of the test outcomes before and after; None where the test split was not scored.
        chosen_step: the checkpoint that validation chose; 0: the base model, which no checkpoint surpassed.
        trainable_parameters: how many.
        base_model: what was trained on.
        sweep: one entry a run of a sweep: `lr`, `clip`, `kl`, `validation`; None without a sweep.
        versions: of the packages that matter.
        remarks: what the user was told of this run, such as that nothing was learnt.
    """

    comparison: Comparison | None = None
    chosen_step: int
    trainable_parameters: int
    base_model: BaseModelCard
    sweep: list[dict[str, Any]] | None = None
    versions: dict[str, str] = {}
    remarks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _scored(self) -> RunRecord:
        missing = next((when for when in ("before", "after") if "validation" not in self.scores.get(when, {})), None)
        if missing is not None:
            raise ValueError(f"scores: there is no validation score {missing} training")
        return self

    def card(self) -> TrainingRecord:
        """The part of it that goes into an expert's card."""
        return TrainingRecord(**{name: getattr(self, name) for name in TrainingRecord.model_fields})

    @property
    def split(self) -> str:
        """The split that the result is judged by: `test`, or `validation` where the test split was not scored."""
        return "test" if "test" in self.scores.get("after", {}) else "validation"

    def score(self, when: str, split: str) -> Score | None:
        """The score of `before` or `after` training on a split; None where it was not scored."""
        found: Any = self.scores
        score: Score | None = found.get(when, {}).get(split)
        return score

    def write(self, folder: Path) -> None:
        """Write it, last of all: it says that the run is finished."""
        write_json(folder / RECORD, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path, remedy: str = "Train again with overwrite.") -> RunRecord:
        """The record of a finished run.

        Args:
            folder: the run's.
            remedy: what to do when it cannot be read.

        Raises:
            T2Error: there is none, or it is damaged.
        """
        return read_record(folder / RECORD, cls, what="training record", remedy=remedy)


class Results(BaseModel):
    """What others read of a finished run's `training.json`, whichever release wrote it.

    Attributes:
        seconds: of training.
        chosen_step: the checkpoint that validation chose, where it is stated.
        scores: before and after training, both on the split that the result is judged by.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    seconds: float
    chosen_step: int | None = None
    scores: dict[Literal["before", "after"], dict[Literal["validation", "test"], Score]]

    @model_validator(mode="after")
    def _scored(self) -> Results:
        missing = next((when for when in ("before", "after") if self.split not in self.scores.get(when, {})), None)
        if missing is not None:
            raise ValueError(f"scores: there is no {self.split} score {missing} training")
        return self

    @property
    def split(self) -> Literal["validation", "test"]:
        """`test`, or `validation` where the test split was not scored."""
        return "test" if "test" in self.scores.get("after", {}) else "validation"

    @classmethod
    def read(cls, folder: Path, remedy: str) -> Results:
        """Of a finished run.

        Args:
            folder: the run's.
            remedy: what to do when they cannot be read.

        Raises:
            T2Error: there are none, or their file is damaged.
        """
        return read_record(folder / RECORD, cls, what="record of a training", remedy=remedy)
