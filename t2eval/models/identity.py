"""Identity: what decides an answer besides the request, as one name for lm-eval's response cache (`--use_cache`).

lm-eval looks an answer up by the request alone, so that two models, dtypes or sets of experts in one file would answer for each other.
Here each identity has a table of its own. Everything that a model was given is part of it, unless `HARMLESS` says why it cannot change an
answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

HARMLESS = {
    # lm-eval's
    "pretrained": "the weights, the configuration and the tokenizer that it stands for are in the identity themselves",
    "tokenizer": "as pretrained",
    "revision": "as pretrained",
    "subfolder": "as pretrained",
    "gguf_file": "as pretrained",
    "trust_remote_code": "as pretrained",
    "use_fast_tokenizer": "as pretrained",
    "device": "where a sum is made: it changes rounding only",
    "batch_size": "how many sequences share a step: it changes rounding only",
    "max_batch_size": "as batch_size",
    "logits_cache": "whether equal contexts are read once: the same numbers",
    "parallelize": "where the layers lie",
    "tp_plan": "where the layers lie",
    "device_map": "where the layers lie",
    "max_memory_per_gpu": "where the layers lie",
    "max_cpu_memory": "where the layers lie",
    "offload_folder": "where the layers lie",
    "peft": "refused beside experts",
    "delta": "refused beside experts",
    "max_images": "of requests with images, of which lm-eval's key holds the images themselves",
    # t2eval's
    "experts": "each expert's z, name, label and description are in the identity themselves",
    "keep_base": "where the base weights wait while z' is merged: the same numbers",
    "include_path": "where tasks are looked for before a model is loaded",
    "allow_basis_mismatch": "whether an expert is refused: those that are used are in the identity themselves",
}
"""Argument of a model → why two values of it cannot give two answers to one request."""


def digest(value: Any) -> str:
    """sha256 of a value's sorted JSON, 16 digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(model: Any, without: set[int]) -> str:
    """sha256 of every weight and buffer of a model, its name and its dtype, except those parameters whose ids are in `without`."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in without or not isinstance(tensor, torch.Tensor):
            continue
        found.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """What decides how a tokenizer, or a processor, reads a text."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    backend = getattr(inner, "backend_tokenizer", None)
    images = getattr(tokenizer, "image_processor", None)
    settings = {
        name: str(value) for name, value in inner.init_kwargs.items() if name not in ("name_or_path", "vocab_file", "tokenizer_file")
    }
    return {
        "class": type(inner).__name__,
        "vocabulary": backend.to_str() if backend is not None else sorted(inner.get_vocab().items()),
        "special": {name: str(value) for name, value in inner.special_tokens_map.items()},
        "template": str(getattr(tokenizer, "chat_template", None)),
        "truncation": inner.truncation_side,
        "settings": settings,
        "images": images.to_dict() if images is not None else None,
    }


def model_facts(model: Any, without: set[int]) -> dict[str, Any]:
    """What decides what a transformers model computes: weights, configuration, generation settings."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in ("_name_or_path", "transformers_version")}
    generation = getattr(model, "generation_config", None)
    settings = generation.to_dict() if generation is not None else {}
    return {
        "weights": weights_digest(model, without),
        "config": config,
        "generation": {name: value for name, value in settings.items() if name not in ("_from_model_config", "transformers_version")},
    }


def given_facts(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The arguments that lm-eval's class was given, less what is harmless."""
    return {name: str(value) for name, value in arguments.items() if name not in HARMLESS}
