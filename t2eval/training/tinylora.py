"""TinyLoRA (arXiv 2602.04118) and LoRA-XS (arXiv 2405.17604), both by PEFT's TinyLoRA tuner: W + U √S R √S Vᵀ with a small R.

U, S and V are the largest r singular directions of the frozen W, and R is (r, r). TinyLoRA trains u numbers v and has R = Σ v_i P_i with
fixed random P_i; LoRA-XS trains R itself. PEFT has no tuner for LoRA-XS: here it is TinyLoRA with u = r² and, in the place of the random
P_i, the r² matrices that are one in a single place, which are saved with the adapter.

Deviation from LoRA-XS: it has U S R Vᵀ; with √S on either side the same matrices can be reached, and R's entries are scaled otherwise.
"""

from __future__ import annotations

from typing import Any

import torch

from t2eval.training.adapters import PeftTrainable, target_modules
from t2eval.training.config import TrainConfig

_VECTOR = 64
"""u of TinyLoRA, the trained numbers a matrix: PEFT's default."""


def tinylora(model: Any, config: TrainConfig) -> PeftTrainable:
    """TinyLoRA where LoRA would be, or on the modules that are given; r is the paper's 2 unless `lora_rank` is given."""
    return PeftTrainable(model, config, _adapter(model, config, _VECTOR))


def loraxs(model: Any, config: TrainConfig) -> PeftTrainable:
    """LoRA-XS where LoRA would be, or on the modules that are given: an (r, r) matrix each."""
    trainable = PeftTrainable(model, config, _adapter(model, config, config.lora_rank**2))
    for module in trainable.model.modules():
        projections = getattr(module, "tinylora_P", None)
        if projections is not None and "default" in projections:
            own = projections["default"]  # (r², r, r), of a matrix with a side below r: (r², side, side)
            rank = own.shape[1]
            single = torch.zeros_like(own)
            single[: rank**2] = torch.eye(rank**2, dtype=own.dtype, device=own.device).view(-1, rank, rank)
            projections["default"] = single
    return trainable


def _adapter(model: Any, config: TrainConfig, size: int) -> Any:
    from peft import TinyLoraConfig

    paths, transposed = target_modules(model, config, "lora")
    return TinyLoraConfig(
        r=config.lora_rank,
        u=size,
        target_modules=paths,
        fan_in_fan_out=transposed,
        projection_seed=config.seed,
        save_projection=True,
        task_type="CAUSAL_LM",
    )
