"""Nearest: the strategy `t2-nearest`, for each document the expert whose training prompts lie nearest to its question."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from t2eval.basemodel.load import base_identity
from t2eval.environment.runs import Run
from t2eval.expert.prompts import PROBES, PromptVectors
from t2eval.generation.usage import Usage
from t2eval.generation.vectors import prompt_vectors
from t2eval.models.options import NearestOptions, Options
from t2eval.models.per_document import PerDocument
from t2eval.models.questions import question_text
from t2eval.strategies.dispatch import Decision, Question
from t2eval.strategies.nearest import Nearest as Router


class Nearest(PerDocument):
    """One expert for each document, by the base model's hidden states of its question; with `mix=soft`, α for each document."""

    SOFT_NOTE = "soft: the softmax of the scores are the alphas, a step beyond the paper"
    OPTIONS: ClassVar[type[Options]] = NearestOptions
    options: NearestOptions

    def check_library(self) -> None:
        super().check_library()
        names = {name: label for label, name in self._experts_of.items()}
        chosen = [expert for expert in self.experts if expert.name in names]
        self._vectors = {names[expert.name]: PromptVectors.load(Path(str(expert.folder)), expert.name) for expert in chosen}

    def prepare(self) -> None:
        super().prepare()
        here = prompt_vectors(self.engine(Usage()), PROBES)
        base = str(base_identity(self.model)["id"])
        for label, vectors in self._vectors.items():
            vectors.check(here, self._experts_of[label], base, allow=self.options.allow_basis_mismatch)
        self._router: Router | None = None

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "prompts": {label: vectors.sha256 for label, vectors in self._vectors.items()}}

    def reads_of(self, run: Run) -> Any:
        return [run.name, [[int(request.doc_id or 0), self.question(request).text] for request in run.requests]]

    def question(self, request: Any) -> Question:
        return Question(question_text(request, plain=False))

    def decide(self, questions: list[Question], *, chat: bool) -> list[Decision]:
        if self._router is None:
            options = self.options
            self._router = Router(self.engine(), self._vectors, options.neighbours, options.floor, options.others_label)
        self._router.count_in(self.first_pass)
        return self._router.decide(questions)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "neighbours": self.options.neighbours}
