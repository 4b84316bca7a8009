"""Sweep: LoRA over its learning rates, chosen by validation, and (as the paper did on unseen tasks) by the best test score.

1. The paper takes, for each test task, the best of all checkpoints of all training tasks. Here the candidates are the checkpoints that
   validation chose, one for each learning rate and training task.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2eval.errors import T2Error
from t2eval.paper.lab import Cells, Lab
from t2eval.training.config import RECORD
from t2eval.training.record import Results

SHIPPED_RATE = 2e-3
"""The learning rate of the shipped LoRA adapters (`training.config`, preset `embedded`, supervised)."""


@dataclass(frozen=True)
class Candidate:
    """LoRA adapters of one learning rate and training task, evaluated on one task.

    Attributes:
        rate: learning rate. source: the skill that they were trained on. task: the test task.
        cells: where their scores are (method `lora`).
    """

    rate: float
    source: str
    task: str
    cells: Cells

    @property
    def score(self) -> float:
        """The mean over the seeds."""
        return float(self.cells.summary("lora", self.task)["score"])


class Sweep:
    """LoRA adapters of all of the preset's learning rates, skills and seeds, trained where they are not shipped.

    Args:
        lab: whose preset.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.rates, self.skills, self.seeds = lab.preset.rates, lab.preset.skills, lab.preset.seeds
        own = [rate for rate in self.rates if not self._shipped(rate)]
        options = {"method": "lora", "objective": "supervised"}
        lab.train(
            [lab.training(_name(rate), skill, seed, lr=rate, **options) for rate in own for seed in self.seeds for skill in self.skills]
        )

    @property
    def single(self) -> bool:
        """Whether there is one adapter for each seed, and so nothing to choose."""
        return len(self.rates) * len(self.skills) == 1

    def _shipped(self, rate: float) -> bool:
        return self.lab.preset.shipped and rate == SHIPPED_RATE

    def adapter(self, rate: float, skill: str, seed: int | str = "{seed}") -> Path:
        """The folder of one adapter; with the seed left open, the pattern of a benchmark file."""
        if self._shipped(rate):
            return Path(self.lab.adapters(["lora"], ()).format(seed=seed, method="lora", label=skill))
        return self.lab.folder(_name(rate), seed) / skill

    def validation(self, rate: float, skill: str) -> float:
        """The validation score of a rate on a training task, averaged over the seeds."""
        scores = []
        for seed in self.seeds:
            scores.append(self._validation(self.adapter(rate, skill, seed)))
        return sum(scores) / len(scores)

    @staticmethod
    def _validation(folder: Path) -> float:
        found = Results.read(folder, "Train it again.").scores["after"].get("validation")
        if found is None:
            raise T2Error(f"{folder / RECORD} has no validation score after training. Train it again.")
        return found.score

    def by_validation(self, skill: str, task: str) -> Candidate:
        """The skill's own adapters, with the rate that did best on its validation examples (the first of equals)."""
        rate = max(self.rates, key=lambda rate: self.validation(rate, skill))
        return self._evaluated(rate, skill, task)

    def by_test(self, task: str) -> Candidate:
        """The best on the test items of the task: on a seen task over rates, on an unseen one over rates and training tasks."""
        skill = self.lab.preset.labels[task]
        sources = self.skills if task in self.lab.preset.unseen.values() else (skill,)
        return max((self._evaluated(rate, source, task) for rate in self.rates for source in sources), key=lambda found: found.score)

    def _evaluated(self, rate: float, source: str, task: str) -> Candidate:
        """All cells of a rate and training task are run at once: its own skill's tasks, and the unseen tasks of the others."""
        preset = self.lab.preset
        own = [preset.seen[source], preset.unseen[source]]
        others = [other for skill, other in preset.unseen.items() if skill != source]
        if task in own and self._shipped(rate):
            return Candidate(rate, source, task, self.lab.cells(["lora"], preset.tasks, seeds=self.seeds))
        tasks = others if self._shipped(rate) else [*own, *others]
        labels = dict.fromkeys(tasks, source)
        pattern = str(self.adapter(rate, source))
        study = f"{_name(rate)}-{source}"
        return Candidate(
            rate, source, task, self.lab.cells(["lora"], tasks, study=study, seeds=self.seeds, baselines=pattern, labels=labels)
        )


def _name(rate: float) -> str:
    return f"lora-{rate:.0e}"
