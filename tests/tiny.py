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

from t2eval.expert.expert import Expert
from t2eval.svf.attachment import attach

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


LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_TURNS = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "{% if message.role == 'assistant' %} {{ message.content | trim }}{{ eos_token }}{% else %}"
)
MISTRAL_CHAT = (  # as Instruct-v0.3: a system message stands in the last user turn, if that ends the chat, and nowhere otherwise
    "{% set system = messages[0].content if messages[0].role == 'system' %}{{ bos_token }}"
    "{% for message in messages if message.role != 'system' %}"
    + _TURNS
    + "[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ message.content }}[/INST]{% endif %}{% endfor %}"
)
STRICT_MISTRAL_CHAT = (  # as the first Instruct versions: a system message is an error
    "{{ bos_token }}{% for message in messages %}" + _TURNS + "[INST] {{ message.content }} [/INST]{% endif %}{% endfor %}"
)
_CHATS = {
    "llama3": (LLAMA3_CHAT, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": (MISTRAL_CHAT, "<s>", "</s>"),
    "strict-mistral": (STRICT_MISTRAL_CHAT, "<s>", "</s>"),
}


def chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template that makes the format of `llama3`, `mistral` (v0.3) or `strict-mistral`."""
    text, bos, eos = _CHATS[template]
    tokenizer = tiny_tokenizer(bos, eos)
    tokenizer.chat_template = text
    return tokenizer


def tiny_tokenizer(bos: str = "<bos>", eos: str = "<eos>") -> PreTrainedTokenizerFast:
    """One token a byte, `bos` = 256 and `eos` = 257 (also the padding), no token added by default."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)} | {bos: 256, eos: 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos, padding_side="left")


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


def save_tiny_gguf(path: Path, name: str = "tiny.gguf") -> Path:
    """The same model and tokenizer as `save_tiny` writes, as one GGUF file, float32, in the folder `path`."""
    import gguf

    model, tokenizer = tiny_model(), tiny_tokenizer()
    config = model.config
    path.mkdir(parents=True, exist_ok=True)
    file = gguf.GGUFWriter(path / name, "llama")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(10_000.0)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokenizer.convert_ids_to_tokens(range(VOCABULARY)))
    file.add_token_types([1] * 256 + [3, 3])  # ordinary, and control
    file.add_token_scores([0.0] * VOCABULARY)  # of which merges are made: none
    file.add_bos_token_id(256)
    file.add_eos_token_id(257)
    for key, values in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        if heads is not None:  # llama.cpp keeps the two halves of a rotation side by side
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        file.add_tensor(_gguf_name(key), values.contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def _gguf_name(key: str) -> str:
    for ours, theirs in (
        *(("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"), ("model.layers", "blk")),
        *(("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"), ("mlp.", "ffn_"), ("_proj", "")),
        *(("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")),
    ):
        key = key.replace(ours, theirs)
    return key


def save_library(path: Path, *labels: str) -> Path:
    """A library of random experts of `tiny_model()`, one a label and named after it, each of which changes the model's answers."""
    adapted = attach(tiny_model(), cache_dir=path.parent / "bases")
    for index, label in enumerate(labels):
        generator = torch.Generator().manual_seed(index)
        z = {module: 1 + 0.4 * torch.randn(basis.rank, generator=generator) for module, basis in adapted.bases.items()}
        expert = Expert.from_adapted(adapted, z, name=f"e-{label}", label=label, description=f"About {label}.", base_id="tiny")
        expert.save(path / f"e-{label}")
    return path
