"""Random models of a few thousand weights and a byte-level tokenizer, made on the fly: tests download nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 256 + 2
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
_FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, `<bos>` = 256 and `<eos>` = 257 (also the padding), no token added by default."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)} | {"<bos>": 256, "<eos>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", padding_side="left")


def tiny_model(family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: int) -> PreTrainedModel:
    """A random model of a family (`llama`, `mistral`, `qwen2`, `gemma`, `gpt2`) with weights large enough for z to matter."""
    torch.manual_seed(seed)
    if family == "gpt2":
        settings = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
        ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**settings, **ends, **changes))
    else:
        config, architecture, extra = _FAMILIES[family]
        model = architecture(config(**{**_DECODER, **extra, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim == 2 else parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def save_tiny(path: Path, family: str = "llama", **changes: int) -> Path:
    """A tiny model and its tokenizer in the Hub layout under `path`."""
    tiny_model(family, **changes).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
