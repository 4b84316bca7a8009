"""Tiny random models of many architectures, made on the fly: what the engine has to serve."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_V = {"vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257, "tie_word_embeddings": False}
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 4,
}
_PLAIN = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
_FULL = {**_PLAIN, "num_key_value_heads": 4}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 24}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_MLA = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_SSM = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
_LONG = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # rotary positions, full attention
    "llama": ("llama", _PLAIN),
    "llama-grouped-bias": ("llama", {**_PLAIN, "attention_bias": True, "num_key_value_heads": 1}),
    "llama-dynamic-rope": ("llama", {**_PLAIN, "max_position_embeddings": 16, "rope_parameters": _LONG}),
    "qwen2": ("qwen2", _PLAIN),
    "qwen3": ("qwen3", _LLAMA),
    "gemma": ("gemma", _LLAMA),
    "phi": ("phi", _FULL),
    "phi3": ("phi3", _PLAIN),
    "stablelm": ("stablelm", _FULL),
    "cohere": ("cohere", _PLAIN),
    "olmo": ("olmo", _PLAIN),
    "olmo2": ("olmo2", _PLAIN),
    "granite": ("granite", _PLAIN),
    "starcoder2": ("starcoder2", _PLAIN),
    "persimmon": ("persimmon", _FULL),
    "glm": ("glm", _LLAMA),
    "helium": ("helium", _LLAMA),
    "smollm3": ("smollm3", _PLAIN),
    "ernie4_5": ("ernie4_5", _LLAMA),
    "nemotron": ("nemotron", _LLAMA),
    "gpt_neox": ("gpt_neox", _FULL),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "codegen": ("codegen", {**_GPT, "rotary_dim": 4}),
    # a sliding window
    "mistral-window": ("mistral", {**_PLAIN, "sliding_window": 8}),
    "qwen2-window": ("qwen2", {**_PLAIN, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "gemma2": ("gemma2", {**_LLAMA, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {**_LLAMA, "sliding_window": 8, "num_hidden_layers": 3, "sliding_window_pattern": 3}),
    "cohere2": ("cohere2", {**_LLAMA, "sliding_window": 8, "num_hidden_layers": 4}),
    "gpt_neo-local": (
        "gpt_neo",
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 128,
            "intermediate_size": 24,
        },
    ),
    "starcoder2-window": ("starcoder2", {**_PLAIN, "sliding_window": 8}),
    "gpt_oss": ("gpt_oss", {**_LLAMA, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    # learned, sinusoidal or linear positions
    "gpt2": ("gpt2", _GPT),
    "opt": (
        "opt",
        {
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 16,
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", _GPT),
    "xglm": (
        "xglm",
        {"pad_token_id": 1, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 128},
    ),
    "biogpt": (
        "biogpt",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128},
    ),
    "ctrl": ("ctrl", {"n_embd": 16, "dff": 24, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "openai-gpt": ("openai-gpt", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2}),
    "falcon": ("falcon", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "falcon-alibi": (
        "falcon",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, "new_decoder_architecture": False},
    ),
    "falcon-new": (
        "falcon",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    # experts
    "mixtral": ("mixtral", {**_PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**_PLAIN, **_MOE, "shared_expert_intermediate_size": 8}),
    "qwen3_moe": ("qwen3_moe", {**_LLAMA, **_MOE}),
    "olmoe": ("olmoe", {**_PLAIN, "num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("granitemoe", {**_PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": ("deepseek_v2", {**_FULL, **_MLA}),
    "deepseek_v3": ("deepseek_v3", {**_FULL, **_MLA}),
    "dbrx": (
        "dbrx",
        {
            "d_model": 16,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 16},
        },
    ),
    # states instead of, or beside, attention
    "mamba": ("mamba", _SSM),
    "mamba2": ("mamba2", {**_SSM, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("falcon_mamba", _SSM),
    "rwkv": ("rwkv", {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16, "intermediate_size": 24}),
    "jamba": (
        "jamba",
        {
            **_PLAIN,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "zamba": (
        "zamba",
        {
            **_FULL,
            "attention_hidden_size": 32,
            "attention_head_dim": 8,
            "mamba_d_state": 4,
            "n_mamba_heads": 2,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **_FULL,
            "attention_hidden_size": 32,
            "attention_head_dim": 8,
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 8,
            "mamba_ngroups": 1,
            "use_mamba_kernels": False,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "chunk_size": 8,
            "adapter_rank": 4,
        },
    ),
    "bamba": (
        "bamba",
        {
            **_PLAIN,
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**_LLAMA, "num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 16, "num_key_value_heads": 1},
    ),
    "lfm2": ("lfm2", {**_PLAIN, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "minimax": ("minimax", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8}),
}


def architecture(name: str) -> PreTrainedModel:
    """A random model, its weights large enough for its answers to vary."""
    kind, settings = ARCHITECTURES[name]
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_V, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return model
