"""`t2eval.grading.pass_at_k` as a metric of `evaluate`.

It stands in a file of its own because `evaluate` brings much of transformers with it, which a task that grades programs does without.
"""

# Never `import a, b`: `evaluate` finds out by regular expressions what a metric's file needs, and takes that for a package named `a,`.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from t2eval.grading.pass_at_k import pass_at_k

_DESCRIPTION = "The chance that one of k programs passes its problem's tests, from n sampled programs a problem, run in a sandbox."
_CITATION = "Chen et al., 2021: Evaluating Large Language Models Trained on Code. https://arxiv.org/abs/2107.03374"
_INPUTS = "predictions: a list of programs for each problem. references: each problem's tests, run after the program."


class PassAtK(evaluate.Metric):  # type: ignore[misc]
    """`pass_at_k` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": datasets.Sequence(text), "references": text}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[str], **options: Any) -> Mapping[str, float]:
        return pass_at_k(references, predictions, **options)
