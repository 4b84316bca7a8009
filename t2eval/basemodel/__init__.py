"""The base model: loaded from a Hub name, a folder or t2eval itself; what the Hub has of it; its chat template."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2eval.basemodel.load import base_identity as base_identity
    from t2eval.basemodel.load import load_base as load_base

_HOMES = {
    "base_identity": "t2eval.basemodel.load",
    "load_base": "t2eval.basemodel.load",
}
__all__ = ["base_identity", "load_base"]


def __getattr__(name: str) -> Any:
    # torch is imported only where it is needed: `t2 --help` and a plan do without
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
