"""Nearest: one expert for one prompt, the one whose training prompts lie nearest to it in the base model's own hidden states.

No prompt lists the experts, so a library may be large: a question is read once, however many there are. After an idea of LoRAuter (arXiv
2601.21795), which compares tasks by a sentence encoder; here the frozen base model is the encoder. Not in the paper.

An expert's score is the mean cosine of the question with the nearest few of its prompts, around the mean of all experts' prompts: hidden
states of unlike texts point much the same way, and what they share says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from t2eval.expert.prompts import PromptVectors
from t2eval.generation.engine import Engine
from t2eval.generation.usage import Usage
from t2eval.generation.vectors import prompt_vectors
from t2eval.strategies.dispatch import Decision, Question

TEMPERATURE = 0.01
"""Of the softmax that makes probabilities of scores: on the embedded base's validation questions the likeliest of 0.01, 0.02, 0.05, 0.1."""
_AT_ONCE = 2**24  # numbers of one block of similarities


class Nearest:
    """Decides on labels for questions.

    Args:
        engine: the base model.
        experts: label → the vectors of its expert's prompts.
        neighbours: how many of an expert's prompts count, the nearest ones; 0: all of them, as one mean vector.
        floor: the least score of a question that any expert is chosen for; None: one always is.
        others_label: what means the base weights, below the floor.
    """

    def __init__(
        self,
        engine: Engine,
        experts: Mapping[str, PromptVectors],
        neighbours: int = 5,
        floor: float | None = None,
        others_label: str = "others",
    ) -> None:
        self._engine, self._neighbours, self._floor, self._others = engine, neighbours, floor, others_label
        self.labels = list(experts)
        each = [found.vectors for found in experts.values()]
        self._centre = torch.stack([vectors.mean(dim=0) for vectors in each]).mean(dim=0)  # (hidden,); experts count alike
        if not neighbours:
            each = [vectors.mean(dim=0, keepdim=True) for vectors in each]
        self._counts = [len(vectors) for vectors in each]
        self._prompts = _unit(torch.cat(each) - self._centre)  # (prompts of all, hidden)
        self._known: dict[str, Decision] = {}

    def count_in(self, usage: Usage) -> None:
        """Count the tokens and seconds of new questions here from now on."""
        self._engine.usage = usage

    def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """One decision a question; only questions not seen before cost anything."""
        new = list(dict.fromkeys(question.text for question in questions if question.text not in self._known))
        if new:
            with self._engine.usage.timed():
                vectors = prompt_vectors(self._engine, new)  # (questions, hidden)
                self._known.update(zip(new, self._decisions(self.scores(vectors)), strict=True))
        return [self._known[question.text] for question in questions]

    def scores(self, vectors: Tensor) -> Tensor:
        """Of each expert for each question, (questions, experts) float32, from the questions' vectors, (questions, hidden)."""
        asked = _unit(vectors - self._centre)
        rows = max(1, _AT_ONCE // max(1, len(self._prompts)))
        found = []
        for part in torch.split(asked, rows):
            cosines = torch.split(part @ self._prompts.T, self._counts, dim=1)  # an expert: (questions, its prompts)
            means = [each.topk(min(self._neighbours or 1, each.shape[1]), dim=1).values.mean(dim=1) for each in cosines]
            found.append(torch.stack(means, dim=1))
        return torch.cat(found)

    def _decisions(self, scores: Tensor) -> list[Decision]:
        if self._floor is not None:  # the base weights are one more outcome, with the floor as its score
            scores = torch.cat([scores, torch.full((len(scores), 1), self._floor)], dim=1)
        names = [*self.labels, self._others] if self._floor is not None else self.labels
        weights = (scores / TEMPERATURE).softmax(dim=1)
        return [
            Decision(names[int(row.argmax())], dict(zip(names, map(float, weight), strict=True)))
            for row, weight in zip(scores, weights, strict=True)
        ]


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)
