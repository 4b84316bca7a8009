"""Random models of many families, a few thousand weights each: what training must work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GPT = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 1}
_STATES = {"state_size": 8, "num_heads": 8, "n_groups": 2, "head_dim": 8, "chunk_size": 4, "time_step_rank": 4}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3Moe", _EXPERTS),
    "mixtral": ("Mixtral", _EXPERTS),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 0.5, "sliding_window": 8}),
    "gemma3": ("Gemma3", {"sliding_window": 8}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "granite": ("Granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    "olmo2": ("Olmo2", {}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {}),
    "stablelm": ("StableLm", {}),
    "gpt2": ("GPT2LMHeadModel", _GPT),
    "gpt_neox": ("GPTNeoX", {}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("Falcon", {"new_decoder_architecture": False, "multi_query": True, "alibi": False, "head_dim": None}),
    "falcon_alibi": ("Falcon", {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "head_dim": None}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64}),
    "mamba": ("Mamba", {**_STATES, "head_dim": None}),
    "mamba2": ("Mamba2", {**_STATES, "expand": 2}),
    "falcon_mamba": ("FalconMamba", {**_STATES, "head_dim": None}),
    "rwkv": ("Rwkv", {"attention_hidden_size": 32, "context_length": 64}),
    "jamba": ("Jamba", {**_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}),
    "falcon_h1": ("FalconH1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "lm_head_multiplier": 0.5}),
}
"""Its class (less `ForCausalLM`) and what its configuration has beside the common sizes."""

SCALABLE = {
    "mamba": "in_proj",
    "mamba2": "in_proj",
    "falcon_mamba": "in_proj",
    "jamba": "attention,in_proj,up_proj,gate_proj,down_proj",
    "falcon_h1": "attention,gate_proj,in_proj,down_proj",
}
"""The modules that SVF can scale, where a kernel takes the weights of others."""


def family(name: str, seed: int = 0) -> Any:
    """A random frozen model of a family, in evaluation mode, with logits that are far from equal."""
    prefix, own = FAMILIES[name]
    whole = prefix if prefix.endswith("Model") else f"{prefix}ForCausalLM"
    model_class: Callable[..., Any] = getattr(transformers, whole)
    sizes = own if prefix.startswith("GPT2") else {**_SIZES, **own}
    config = model_class.config_class(**{key: value for key, value in sizes.items() if value is not None})
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model.requires_grad_(False)
