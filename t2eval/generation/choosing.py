"""Choosing: the next token from the logits, under transformers' own logits processors and the model's generation config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from t2eval.errors import UsageError
from t2eval.generation.decoder import Decoder
from t2eval.generation.draws import drawn
from t2eval.generation.settings import GenerationSettings

_OWN_MODES = ("greedy_search", "sample")
_WARPERS = frozenset(f"{name}LogitsWarper" for name in ("Temperature", "TopK", "TopP", "TopH", "MinP", "Typical", "Epsilon", "Eta")) | {
    "SuppressTokensLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
}
"""Processors that look at the logits alone."""
_BLIND_TO_PADDING = _WARPERS | {
    "RepetitionPenaltyLogitsProcessor",  # is told where the prompt begins
    "MinNewTokensLengthLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "ExponentialDecayLengthPenalty",
}
"""Processors whose result does not change when padding stands before the prompt."""


class Choosing:
    """How the next token is chosen under given settings.

    Args:
        decoder: the model.
        settings: what was asked.
        padding: the id that fills.

    Raises:
        UsageError: an option that transformers does not know.
    """

    def __init__(self, decoder: Decoder, settings: GenerationSettings, padding: int) -> None:
        self.decoder, self.settings, self.padding = decoder, settings, padding
        given: dict[str, Any] = {"do_sample": settings.do_sample, "max_new_tokens": settings.max_new_tokens, "pad_token_id": padding}
        if settings.do_sample:
            given["temperature"] = settings.temperature
        known = set(GenerationConfig().to_dict())
        # None switches an option off: one that this transformers does not have is off already.
        asked = {name: value for name, value in settings.options.items() if value is not None or name in known}
        self.options: Mapping[str, Any] = {**given, **asked}
        try:
            self.config, rest = decoder.base._prepare_generation_config(None, **self.options)
            decoder.base._prepare_special_tokens(self.config, True, device=decoder.device)
            self.config.max_length = 10**9  # as long as no prompt is known
            names = [type(each).__name__ for each in self.processors(2, None)]
        except (ValueError, TypeError) as error:
            raise UsageError(f"The generation settings {dict(settings.options)} cannot be used: {error}") from error
        self.rest = {name: value for name, value in rest.items() if name in settings.options}
        self.paddable = set(names) <= _BLIND_TO_PADDING
        self.needs_history = not set(names) <= _WARPERS

    @cached_property
    def reason(self) -> str | None:
        """Why these settings have to go through the model's own `generate`; None where the engine's loop serves them."""
        if not self.token_by_token:
            return f"{self.config.get_generation_mode().value} is asked for"
        if self.rest:
            return f"{', '.join(self.rest)} goes to the model itself"
        if self.config.use_cache is False or self.config.cache_implementation is not None:
            return "a cache of another kind is asked for"
        if self.config.guidance_scale not in (None, 1, 1.0) or self.config.token_healing or self.config.stop_strings:
            return "guidance, token healing or stop_strings are asked for"
        if self.config.encoder_repetition_penalty not in (None, 1, 1.0) or self.config.encoder_no_repeat_ngram_size:
            return "a penalty on the prompt's own tokens is asked for"
        if (self.config.num_return_sequences or 1) > 1:
            return "several sequences are asked for by num_return_sequences"
        return None

    @property
    def token_by_token(self) -> bool:
        """Whether each token is chosen by itself (no beams, no drafts)."""
        return self.config.get_generation_mode() in _OWN_MODES

    @property
    def ends(self) -> set[int]:
        """The end tokens of the model's generation config."""
        ends = self.config._eos_token_tensor
        return set() if ends is None else {int(token) for token in ends.tolist()}

    def processors(self, width: int, mask: Tensor | None) -> LogitsProcessorList:
        """The processors of a batch of prompts of `width` ids, padded on the left where `mask`, (sequences, ≥ width), is 0."""
        config: GenerationConfig = self.config
        config.max_length = width + self.settings.max_new_tokens
        if config.min_new_tokens:
            config.min_length = width + config.min_new_tokens
        return self.decoder.base._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=width,
            device=self.decoder.device,
            model_kwargs={"attention_mask": mask},
        )

    def warpers(self) -> LogitsProcessorList:
        """Those of them that only draws need: `generate` adds none where it is not asked to sample."""
        return LogitsProcessorList(each for each in self.processors(2, None) if type(each).__name__ in _WARPERS)


def choose(logits: Tensor, processors: LogitsProcessorList, history: Tensor | None, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """The next token of each sequence, and its log-probability.

    Args:
        logits: (sequences, vocabulary) float32.
        processors: what the settings do to them.
        history: (sequences, length) ids so far, padded on the left; None where no processor looks at them.
        uniform: (sequences,) float64 in [0, 1), one draw each; None: the likeliest token.

    Returns:
        (sequences,) int64 and (sequences,) float32.
    """
    scores = processors(history, logits) if processors else logits  # (sequences, vocabulary)
    log_probs = scores.log_softmax(-1)  # (sequences, vocabulary)
    token = scores.argmax(-1) if uniform is None else drawn(log_probs, uniform)  # (sequences,)
    return token, log_probs.gather(-1, token[:, None])[:, 0]
