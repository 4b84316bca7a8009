"""Random vision-language models of a few thousand weights with their processors, made on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
)

from tests.tiny import _DECODER, VOCABULARY, tiny_tokenizer

FAMILIES = ("llava", "llava_next", "idefics3")
_IMAGE, _SIZE, _PATCH = "<image>", 32, 8
_MARKS = [_IMAGE, "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"]
CHAT = (
    "{% for message in messages %}{{ message.role }}: {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def tiny_processor(family: str = "llava") -> Any:
    """A byte-level tokenizer with `<image>` = 258 and an image processor of 32 pixels that needs no torchvision."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(mark, special=True, normalized=False) for mark in _MARKS]})
    if family == "idefics3":
        images = Idefics3ImageProcessorPil(do_image_splitting=False, size={"longest_edge": _SIZE}, max_image_size={"longest_edge": _SIZE})
        return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=CHAT)
    side = {"height": _SIZE, "width": _SIZE}
    shared = {"size": {"shortest_edge": _SIZE}, "crop_size": side}
    settings = {
        "tokenizer": tokenizer,
        "patch_size": _PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": CHAT,
    }
    if family == "llava_next":
        return LlavaNextProcessor(LlavaNextImageProcessorPil(**shared, image_grid_pinpoints=[[_SIZE, 2 * _SIZE]]), **settings)
    return LlavaProcessor(CLIPImageProcessorPil(**shared), **settings)


def tiny_vlm(family: str = "llava", *, seed: int = 0, backbone: Any = None, **changes: int) -> PreTrainedModel:
    """A random model of a family (`llava`, `llava_next`, `idefics3`) over a Llama backbone, whose images matter.

    Args:
        family: which.
        seed: of the weights.
        backbone: a Llama causal model whose weights the backbone takes.
        changes: of the backbone's configuration.
    """
    torch.manual_seed(seed)
    text = LlamaConfig(**{**_DECODER, "vocab_size": VOCABULARY + len(_MARKS), **changes})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**sizes, "image_size": _SIZE, "patch_size": _PATCH}
    ends = {"image_token_id": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    if family == "idefics3":
        config = Idefics3Config(text_config=text, vision_config={**vision, "model_type": "idefics3_vision"}, scale_factor=2, **ends)
        model: PreTrainedModel = Idefics3ForConditionalGeneration(config)
    else:
        settings = {"vision_config": CLIPVisionConfig(**vision), "text_config": text, "vision_feature_layer": -1, **ends}
        if family == "llava_next":
            model = LlavaNextForConditionalGeneration(LlavaNextConfig(**settings, image_grid_pinpoints=[[_SIZE, 2 * _SIZE]]))
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(**settings, image_seq_length=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim == 2 else parameter.add_(0.05 * torch.randn_like(parameter))
        if backbone is not None:
            model.get_decoder().layers.load_state_dict(backbone.model.layers.state_dict())
    return model.eval()


def save_tiny_vlm(path: Path, family: str = "llava", **changes: Any) -> Path:
    """A tiny model and its processor in the Hub layout under `path`."""
    tiny_vlm(family, **changes).save_pretrained(path)
    tiny_processor(family).save_pretrained(path)
    return path


def picture(shade: int, size: tuple[int, int] = (40, 30)) -> Any:
    """A picture with a coloured ramp that `shade` decides."""
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0])
    layers = [np.full_like(ramp, shade % 256), (ramp + 17 * shade) % 256, ramp[:, ::-1]]
    return Image.fromarray(np.stack(layers, axis=-1).astype("uint8"))
