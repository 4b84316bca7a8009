"""`t2eval.grading.vqa_accuracy` as a metric of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from t2eval.grading.vqa_accuracy import NAME, accuracy

_DESCRIPTION = "The mean over people of min(matches among the other people's answers / 3, 1), after the VQA challenge's normalisation."
_CITATION = "Antol et al., 2015: VQA: Visual Question Answering. https://arxiv.org/abs/1505.00468"
_INPUTS = "predictions: one answer a question. references: the answers that people gave, a list a question."


class VqaAccuracy(evaluate.Metric):  # type: ignore[misc, unused-ignore]
    """`vqa_accuracy`, the mean over questions."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        values = [accuracy(prediction, answers) for prediction, answers in zip(predictions, references, strict=True)]
        return {NAME: sum(values) / len(values)}
