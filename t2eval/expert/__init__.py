"""Experts: one z a matrix, trained for one skill, as a folder that can be checked, shared and mixed.

`expert` is the object and its file, `card` what `expert.json` says, `library` several experts of one base model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2eval.expert.card import ExpertCard as ExpertCard
    from t2eval.expert.expert import Expert as Expert

_HOMES = {
    "Expert": "t2eval.expert.expert",
    "ExpertCard": "t2eval.expert.card",
}
__all__ = ["Expert", "ExpertCard"]


def __getattr__(name: str) -> Any:
    # torch is imported only where it is needed: `t2 --help` and a plan do without
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
