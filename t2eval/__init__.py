"""t2eval: self-adaptive language models (Transformer-squared, arXiv 2501.06252) for lm-evaluation-harness.

The names below are imported on first use, so that `import t2eval` needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from t2eval.basemodel.load import load_base as load_base
    from t2eval.errors import T2Error as T2Error
    from t2eval.expert.expert import Expert as Expert
    from t2eval.svf.attachment import attach as attach
    from t2eval.training.config import TrainConfig as TrainConfig
    from t2eval.training.train import train_expert as train_expert

_HOMES = {
    "Expert": "t2eval.expert.expert",
    "T2Error": "t2eval.errors",
    "TrainConfig": "t2eval.training.config",
    "attach": "t2eval.svf.attachment",
    "load_base": "t2eval.basemodel.load",
    "train_expert": "t2eval.training.train",
}

__all__ = ["Expert", "T2Error", "TrainConfig", "__version__", "attach", "load_base", "train_expert"]


def _no_telemetry() -> None:
    """Switch off what huggingface_hub reports of its use by itself, whichever of the two is imported first, unless a user has chosen."""
    if "HF_HUB_DISABLE_TELEMETRY" in os.environ:
        return
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        vars(constants)["HF_HUB_DISABLE_TELEMETRY"] = True


_no_telemetry()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
