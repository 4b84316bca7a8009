"""Multimodal: the classes `t2-expert-vlm`, `t2-prompt-vlm`, `t2-cls-vlm`, `t2-nearest-vlm` and `t2-fewshot-vlm`, over hf-multimodal.

The strategies are those of the text classes; `WithImages` holds what differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model
from torch import Tensor

from t2eval.basemodel.folders import embedded_libraries
from t2eval.environment.environment import Environment
from t2eval.environment.multimodal import MultimodalLM
from t2eval.environment.runs import Run
from t2eval.errors import UsageError
from t2eval.models.adapting import Adapting
from t2eval.models.dispatching import Classifying, Dispatching
from t2eval.models.fixed import Fixed
from t2eval.models.nearest import Nearest
from t2eval.models.options import ClsVlmOptions, NearestVlmOptions, PromptVlmOptions
from t2eval.models.strategy import Strategy
from t2eval.paths import EMBEDDED_VLM, experts_in
from t2eval.vision.features import Reader

__all__ = ["T2ClsVlm", "T2ExpertVlm", "T2FewshotVlm", "T2NearestVlm", "T2PromptVlm"]


class WithImages(Strategy):
    """What a strategy does differently over `MultimodalLM`; stands first among a class's bases."""

    EMBEDDED = EMBEDDED_VLM
    rows_by_tokens = False  # two prompts of the same tokens may have different images

    processor: Any
    interleave: bool

    def embedded_library(self) -> list[Path]:
        """The experts of the language model, which is the embedded base, and those that were made for this one."""
        return experts_in(embedded_libraries(EMBEDDED_VLM))

    def image_reader(self) -> Reader:
        return Reader(self.model, self.processor)

    def _model_multimodal_generate(self, inputs: Any, *arguments: Any, **named: Any) -> Tensor:
        mask = inputs["attention_mask"]
        made: Tensor = super()._model_multimodal_generate(inputs, *arguments, **named)  # type: ignore[misc]
        self._count(mask, made)
        return made


@register_model("t2-expert-vlm")
class T2ExpertVlm(WithImages, Fixed, MultimodalLM):
    """One expert, or fixed α over several, with images."""


@register_model("t2-prompt-vlm")
class T2PromptVlm(WithImages, Dispatching, MultimodalLM):
    """One expert for each document, chosen by the base model from its question, with images."""

    OPTIONS = PromptVlmOptions


@register_model("t2-cls-vlm")
class T2ClsVlm(WithImages, Classifying, MultimodalLM):
    """One expert for each document, chosen with the classification expert merged, with images."""

    OPTIONS = ClsVlmOptions


@register_model("t2-nearest-vlm")
class T2NearestVlm(WithImages, Nearest, MultimodalLM):
    """One expert for each document, whose training prompts lie nearest to the text of its question."""

    OPTIONS = NearestVlmOptions


@register_model("t2-fewshot-vlm")
class T2FewshotVlm(WithImages, Adapting, MultimodalLM):
    """α for each task, searched on adaptation examples with images."""

    def environment(self, run: Run) -> Environment:
        if run.chat_template is not None and not self.interleave:
            raise UsageError("interleave=false changes the prompts in a way that t2-fewshot-vlm's search does not follow: leave it out.")
        return super().environment(run)
