"""Serving: the command lines of the servers that take one LoRA adapter a request."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from t2eval.basemodel.load import model_source

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank; an adapter may have any rank up to it."""


def vllm_command(base: str, adapters: Mapping[str, str | Path], rank: int) -> str | None:
    """`vllm serve …` for adapters of one base model; None where no rank that vLLM takes is as large.

    Args:
        base: what `load_base` takes.
        adapters: name of the model in a request → folder.
        rank: the largest.
    """
    allowed = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    if allowed is None:
        return None
    return shlex.join(
        ["vllm", "serve", model_source(base), "--enable-lora", "--lora-modules", *_pairs(adapters)]
        + ["--max-lora-rank", str(allowed), "--max-loras", str(len(adapters))]
    )


def sglang_command(base: str, adapters: Mapping[str, str | Path]) -> str:
    """`python -m sglang.launch_server …` for adapters of one base model. SGLang reads their ranks itself; in a batch the base model counts
    as one adapter more."""
    return shlex.join(
        ["python", "-m", "sglang.launch_server", "--model-path", model_source(base), "--enable-lora", "--lora-paths", *_pairs(adapters)]
        + ["--max-loras-per-batch", str(len(adapters) + 1)]
    )


def _pairs(adapters: Mapping[str, str | Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in adapters.items()]
