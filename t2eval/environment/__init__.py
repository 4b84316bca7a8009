"""Environment: one lm-eval task as examples, prompts, splits and rewards."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2eval.environment.environment import Environment as Environment
    from t2eval.environment.example import Example as Example
    from t2eval.environment.example import Split as Split

_HOMES = {
    "Environment": "t2eval.environment.environment",
    "Example": "t2eval.environment.example",
    "Split": "t2eval.environment.example",
}
__all__ = ["Environment", "Example", "Split"]


def __getattr__(name: str) -> Any:
    # torch is imported only where it is needed: `t2 --help` and a plan do without
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
