"""Models: the lm-eval classes `t2-expert`, `t2-prompt`, `t2-cls`, `t2-nearest`, `t2-fewshot`, and the same with images (`-vlm`).

The classes are imported on first use: the plug-in (`plugin`) must be able to act before lm-eval is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2eval.models.images import T2ClsVlm as T2ClsVlm
    from t2eval.models.images import T2ExpertVlm as T2ExpertVlm
    from t2eval.models.images import T2FewshotVlm as T2FewshotVlm
    from t2eval.models.images import T2NearestVlm as T2NearestVlm
    from t2eval.models.images import T2PromptVlm as T2PromptVlm
    from t2eval.models.text import T2Cls as T2Cls
    from t2eval.models.text import T2Expert as T2Expert
    from t2eval.models.text import T2Fewshot as T2Fewshot
    from t2eval.models.text import T2Nearest as T2Nearest
    from t2eval.models.text import T2Prompt as T2Prompt

_TEXT = ("T2Cls", "T2Expert", "T2Fewshot", "T2Nearest", "T2Prompt")
_IMAGES = tuple(f"{name}Vlm" for name in _TEXT)
__all__ = [
    "T2Cls",
    "T2ClsVlm",
    "T2Expert",
    "T2ExpertVlm",
    "T2Fewshot",
    "T2FewshotVlm",
    "T2Nearest",
    "T2NearestVlm",
    "T2Prompt",
    "T2PromptVlm",
]


def __getattr__(name: str) -> Any:
    if name in _TEXT:
        return getattr(importlib.import_module("t2eval.models.text"), name)
    if name in _IMAGES:
        return getattr(importlib.import_module("t2eval.models.images"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
