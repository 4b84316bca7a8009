"""Record: what one finished training run was and reached, written once as `training.json` and read everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from t2eval.errors import T2Error
from t2eval.expert.card import BaseModelCard, Score, TrainingRecord
from t2eval.store.files import read_json, write_json
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
    def read(cls, folder: Path) -> RunRecord:
        """The record of a finished run.

        Raises:
            T2Error: there is none, or it is damaged.
        """
        path = folder / RECORD
        content = read_json(path, what="training record", remedy="Train again with overwrite.")
        try:
            return cls(**content)
        except (TypeError, ValidationError) as error:
            raise T2Error(f"{path} is not a training record: {str(error).splitlines()[0]}. Train again with overwrite.") from error
