"""Training: how experts and baselines are made. `train_expert(config)` is the one entry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2eval.training.config import TrainConfig
    from t2eval.training.train import TrainResult, train_expert

__all__ = ["TrainConfig", "TrainResult", "train_expert"]


def __getattr__(name: str) -> Any:
    # torch is imported only when something is trained, pydantic only for a configuration: the command line reads the methods' names
    if name in __all__:
        module = "config" if name == "TrainConfig" else "train"
        return getattr(importlib.import_module(f"t2eval.training.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
