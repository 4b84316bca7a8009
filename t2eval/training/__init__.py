"""Training: how experts and baselines are made. `train_expert(config)` is the one entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2eval.training.config import TrainConfig

if TYPE_CHECKING:
    from t2eval.training.train import TrainResult, train_expert

__all__ = ["TrainConfig", "TrainResult", "train_expert"]


def __getattr__(name: str) -> Any:
    # torch is imported only when something is trained: the command line reads TrainConfig for its --help
    if name in ("TrainResult", "train_expert"):
        from t2eval.training import train

        return getattr(train, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
