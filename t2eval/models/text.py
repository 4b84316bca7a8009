"""Models: the lm-eval classes `t2-expert`, `t2-prompt`, `t2-cls`, `t2-nearest` and `t2-fewshot`.

Each is lm-eval's HFLM with a first pass, takes HFLM's `model_args` and its own (`options.py`), and without `pretrained` uses the
embedded base model and its experts. What the first pass decided is reported under `config.t2` in lm-eval's results file.
"""

from __future__ import annotations

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from t2eval.models.adapting import Adapting
from t2eval.models.dispatching import Classifying, Dispatching
from t2eval.models.fixed import Fixed
from t2eval.models.nearest import Nearest

__all__ = ["T2Cls", "T2Expert", "T2Fewshot", "T2Nearest", "T2Prompt"]


@register_model("t2-expert")
class T2Expert(Fixed, HFLM):  # type: ignore[misc]
    """One expert, or fixed α over several."""


@register_model("t2-prompt")
class T2Prompt(Dispatching, HFLM):  # type: ignore[misc]
    """One expert for each document, chosen by the base model from the adaptation prompt."""


@register_model("t2-cls")
class T2Cls(Classifying, HFLM):  # type: ignore[misc]
    """One expert for each document, chosen with the classification expert merged."""


@register_model("t2-nearest")
class T2Nearest(Nearest, HFLM):  # type: ignore[misc]
    """One expert for each document, whose training prompts lie nearest to its question."""


@register_model("t2-fewshot")
class T2Fewshot(Adapting, HFLM):  # type: ignore[misc]
    """α for each task, searched on its adaptation examples."""
