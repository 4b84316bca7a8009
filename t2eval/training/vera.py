"""VeRA (arXiv 2310.11454), PEFT's own: two random matrices that all layers share, and two trained vectors a layer."""

from __future__ import annotations

from typing import Any

from t2eval.training.adapters import PeftTrainable, target_modules
from t2eval.training.config import TrainConfig


def vera(model: Any, config: TrainConfig) -> PeftTrainable:
    """VeRA where LoRA would be, or on the modules that are given.

    The random matrices are saved with the vectors, so that an adapter does not depend on a generator's numbers.
    """
    from peft import VeraConfig

    paths, transposed = target_modules(model, config, "lora")
    adapter = VeraConfig(
        r=config.lora_rank,
        target_modules=paths,
        fan_in_fan_out=transposed,
        projection_prng_key=config.seed,
        save_projection=True,
        task_type="CAUSAL_LM",
    )
    return PeftTrainable(model, config, adapter)
