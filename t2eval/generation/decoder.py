"""Decoder: one transformers model as a function from token ids and cache to logits, and what may be asked of it.

The engine's own loop serves a model whose generation is the ordinary one of transformers: a `Cache` object, and a mask or equal lengths.
`Decoder.reason` names what stands against that; such a model answers through its own `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from t2eval.generation.cache import new_cache
from t2eval.generation.packing import packs
from t2eval.vision.features import Features, image_arguments

_BY_MASK = ("bloom", "mpt")
"""Model types that take no positions, but learn from the mask (ALiBi) where a padded sequence begins."""
_CAUSAL = ("gpt_neox", "gpt_neox_japanese")
"""Model types whose config says `is_decoder=False`, and which are decoders all the same."""
_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that change when the longest sequence of a batch passes a length."""


class Decoder:
    """A causal model, called step by step.

    Args:
        model: a transformers causal model or a PEFT model of one.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = self.base.config
        accepted = inspect.signature(self.base.forward).parameters
        self.cache_name = next((name for name in ("cache", "past_key_values") if name in accepted), None)
        self.takes_mask, self.takes_positions = "attention_mask" in accepted, "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        prepare = getattr(type(self.base), "prepare_inputs_for_generation", None)
        self._prepares = prepare is not GenerationMixin.prepare_inputs_for_generation

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @cached_property
    def reason(self) -> str | None:
        """Why this model has to answer through its own `generate`; None where the engine's loop serves it."""
        kind = type(self.base)
        if self.encoder:
            return "it is of a family of encoders, with positions and masks of their own"
        if self.cache_name is None or not self.takes_mask:
            return "its forward takes no cache object"
        if not kind._supports_default_dynamic_cache():
            return "its cache is of a kind of its own"
        if kind._update_model_kwargs_for_generation is not GenerationMixin._update_model_kwargs_for_generation:
            return "it carries more than a cache from token to token"
        if kind._sample is not GenerationMixin._sample or kind.generate is not GenerationMixin.generate:
            return "it has a loop of its own"
        if hasattr(self.base.base_model, "_setup_cache"):
            return "it keeps its state in its modules"
        if self._rotary_by_length:
            return "its positions depend on the length of the longest sequence"
        return None

    @cached_property
    def encoder(self) -> bool:
        """Whether it is an encoder (BERT and its kin) that was loaded as a language model: there a token may see those behind it.

        A config's `is_decoder` alone does not say it: GPT-NeoX's is false too.
        """
        kind = self.config.model_type
        return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or (getattr(self.config, "is_decoder", True) is False and kind not in _CAUSAL)

    @cached_property
    def _rotary_by_length(self) -> bool:
        text = self.config.get_text_config(decoder=True)
        found = [getattr(text, name, None) or {} for name in ("rope_scaling", "rope_parameters")]
        nested = [value for each in found for value in each.values() if isinstance(value, dict)]
        return any(each.get("rope_type", each.get("type")) in _BY_LENGTH for each in [*found, *nested])

    @cached_property
    def recurrent(self) -> bool:
        """Whether any layer folds the past into a state, which padding would enter."""
        return self.reason is not None or any(hasattr(layer, "recurrent_states") for layer in new_cache(self.config).layers)

    @cached_property
    def paddable(self) -> bool:
        """Whether sequences of unlike lengths may share a batch, shorter ones padded on the left."""
        return not self.recurrent and (self.takes_positions or self.config.model_type in _BY_MASK)

    @cached_property
    def packs(self) -> bool:
        """Whether continuations of one prompt may stand side by side behind it (`packing`)."""
        return packs(self)

    def new_cache(self) -> Cache:
        return new_cache(self.config)

    def step(
        self,
        ids: Tensor,
        cache: Cache,
        mask: Tensor | None,
        positions: Tensor,
        *,
        images: Sequence[Features | None] = (),
        history: Tensor | None = None,
    ) -> Tensor:
        """The logits behind the last of `ids`, (sequences, vocabulary) float32.

        Args:
            ids: (sequences, new) token ids that follow what the cache holds.
            cache: read, and extended by `ids`.
            mask: (sequences, held + new), 0 on padding; None where there is none.
            positions: (sequences, new) of `ids`.
            images: the features of each sequence's images; only with a prompt.
            history: (sequences, held + new): all ids, for a model that prepares its inputs itself.
        """
        arguments: dict[str, Any] = {self.cache_name or "": cache, "attention_mask": mask, "use_cache": True, **self._last_only}
        if self.takes_positions:
            arguments["position_ids"] = positions
        if self._prepares:
            first = history is None or history.shape[1] == ids.shape[1]
            whole = ids if history is None else history
            arguments = self.base.prepare_inputs_for_generation(
                whole, next_sequence_length=ids.shape[1], is_first_iteration=first, **arguments, **image_arguments(images)
            )
        else:
            arguments = {"input_ids": ids, **arguments, **image_arguments(images)}
        logits: Tensor = self.model(**arguments).logits  # (sequences, 1 or new, vocabulary)
        return logits[:, -1].float()

    @property
    def prepares_inputs(self) -> bool:
        """Whether the model's class overrides `prepare_inputs_for_generation`, and so wants to see all ids."""
        return self._prepares

    def behind(self, ids: Tensor, cache: Cache, mask: Tensor, positions: Tensor) -> Tensor:
        """The logits behind each of `ids`, (sequences, new, vocabulary) float32, where the cache holds what stands before.

        `mask`: (sequences, held + new), 0 on padding; or (sequences, 1, new, held + new), added to the attention's scores.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, self.cache_name or "": cache, "use_cache": True}
        if self.takes_positions:
            arguments["position_ids"] = positions
        logits: Tensor = self.model(**arguments).logits
        return logits.float()

    def whole(self, ids: Tensor, last: int, images: Sequence[Features | None] = ()) -> Tensor:
        """The logits behind each of the last `last` ids, (sequences, last, vocabulary) float32, without a cache.

        Padding may stand on the right only, where a causal model does not look.
        """
        few = {"logits_to_keep": last} if self._last_only else {}
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **few, **image_arguments(images)).logits
        return logits[:, -last:].float()
