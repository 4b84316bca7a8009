"""Reading: a prompt with images as token ids and image features, each image through the vision tower once.

Experts and adapters change the language backbone only, so what the vision tower and the projector make of an image is a constant: it is
computed once an example, on its own (so that the numbers do not depend on which other examples came with it), and shared by the
candidates of a search, the rollouts of a prompt, and the passes of a training step. The features go into `forward` as
`mm_encoder_outputs`, transformers' own door for what is encoded already.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from t2eval.errors import T2Error, UsageError
from t2eval.vision.images import PLACEHOLDER

_KEPT_BYTES = 256 * 2**20
"""Features that are kept at once: all of a small model's, some dozen examples' of a large one."""


@dataclass(frozen=True, eq=False)
class Features:
    """The images of one prompt behind the projector.

    Attributes:
        rows: (image tokens of the prompt, hidden), in the model's dtype.
        stacked: whether this family takes one tensor for all images instead of a list of them.
    """

    rows: Tensor
    stacked: bool = False


def image_arguments(features: Sequence[Features | None]) -> dict[str, Any]:
    """What `forward` needs for a batch's images beside its ids; nothing where no row has an image.

    Args:
        features: one a row of the batch, in order.
    """
    found = [each for each in features if each is not None]
    if not found:
        return {}
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    rows = torch.cat([each.rows for each in found])
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=rows[None] if found[0].stacked else [rows])}}


def within(ids: list[int], features: Features | None, room: int) -> list[int]:
    """The last `room` tokens of a prompt.

    Raises:
        T2Error: it has images and is longer: an image cannot be cut.
    """
    if features is not None and len(ids) > room:
        raise T2Error(
            f"A prompt with images has {len(ids)} tokens, and the model has room for {room} beside the answer: a prompt with images "
            "cannot be shortened. Use fewer or smaller images, a shorter answer, or a model with a longer context."
        )
    return ids[-room:]


class Reader:
    """Reads prompts with images for one model.

    Args:
        model: a vision-language model, or a PEFT model of one.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.processor = processor
        self._kept: OrderedDict[Hashable, tuple[list[int], Features | None]] = OrderedDict()
        self._bytes = 0

    @cached_property
    def _encode(self) -> Callable[..., Any]:
        """The vision tower and projector.

        Raises:
            UsageError: a family whose images cannot be encoded ahead, or whose image tokens have positions of their own.
        """
        config = self.model.config
        text = config.get_text_config(decoder=True)
        rotary = {**(getattr(text, "rope_scaling", None) or {}), **(getattr(text, "rope_parameters", None) or {})}
        reason = None
        if "mm_encoder_outputs" not in inspect.signature(self.model.forward).parameters:
            reason = "does not take images that are encoded already"
        elif not hasattr(self.model.base_model, "get_image_features"):
            reason = "has no get_image_features"
        elif "mrope_section" in rotary:
            reason = "gives image tokens positions in several dimensions"
        if reason:
            raise UsageError(
                f"{type(self.model).__name__} {reason}: training with images, t2-fewshot-vlm and dispatch_image=true do not work with it. "
                "LLaVA, LLaVA-NeXT and Idefics3 work; t2-expert-vlm works with every model that hf-multimodal loads."
            )
        encode: Callable[..., Any] = self.model.base_model.get_image_features
        return encode

    @cached_property
    def token(self) -> int:
        """The id that stands for a part of an image."""
        config = self.model.config
        token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        if token is None:
            raise UsageError(f"The configuration of this {type(self.model).__name__} has no image_token_id.")
        return int(token)

    def read(self, text: str, images: Callable[[], Sequence[Any]], key: Hashable) -> tuple[list[int], Features | None]:
        """One prompt's token ids, with as many image tokens as the model needs, and its images' features.

        Args:
            text: a prompt with a placeholder for each image, or with the model's own image tokens (from a chat template).
            images: gives the PIL images, when they are needed.
            key: names the images.

        Raises:
            T2Error: another number of placeholders than of images.
            UsageError: a family of models that this does not work with.
        """
        place = (key, text)
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        token = self.processor.tokenizer.decode([self.token], skip_special_tokens=False)
        found = self._read(text.replace(PLACEHOLDER, token), token, list(images()), key)
        self._kept[place] = found
        self._bytes += _size(found[1])
        while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, (_, old) = self._kept.popitem(last=False)
            self._bytes -= _size(old)
        return found

    @torch.no_grad()
    def _read(self, text: str, token: str, images: list[Any], key: Hashable) -> tuple[list[int], Features | None]:
        if (places := text.count(token)) != len(images):
            raise T2Error(
                f"The prompt of {key} has {places} places for images ({PLACEHOLDER}) and {len(images)} images. "
                "Give doc_to_text one placeholder for each image that doc_to_image returns."
            )
        if not images:
            return self.processor.tokenizer(text)["input_ids"], None
        nested = images if self.model.config.model_type == "llava" else [images]  # as hf-multimodal hands them over
        encoded = self.processor(images=nested, text=[text], return_tensors="pt").to(self.model.device, self.model.dtype)
        if unusual := {"token_type_ids", "mm_token_type_ids"} & set(encoded):
            raise UsageError(
                f"The processor of this {type(self.model).__name__} marks image tokens by {', '.join(sorted(unusual))}, which training "
                "with images, t2-fewshot-vlm and dispatch_image=true do not support. Use t2-expert-vlm."
            )
        ids: list[int] = encoded["input_ids"][0].tolist()
        accepted = inspect.signature(self._encode).parameters
        arguments = {name: value for name, value in encoded.items() if name in accepted}
        output = self._encode(**arguments, return_dict=True).pooler_output
        rows = torch.cat([each.reshape(-1, each.shape[-1]) for each in output])
        if rows.shape[0] != ids.count(self.token):
            raise T2Error(f"The images of {key} have {rows.shape[0]} features for {ids.count(self.token)} image tokens.")
        return ids, Features(rows, stacked=isinstance(output, Tensor))


def _size(features: Features | None) -> int:
    return 0 if features is None else features.rows.numel() * features.rows.element_size()
