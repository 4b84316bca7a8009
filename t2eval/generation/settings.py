"""Generation settings: when an answer ends, and how its tokens are chosen; read from lm-eval's `generation_kwargs` as HFLM does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from t2eval.errors import UsageError

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names that lm-eval knows for the limit of new tokens; the first that is given counts."""

_AS_IT_IS: dict[str, Any] = {
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "min_p": None,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": None,
    "min_new_tokens": None,
    "min_length": 0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "watermarking_config": None,
}
"""Options under which nothing but the temperature stands between the model's distribution and the draws."""


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are made.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        until: strings that end an answer, beside the end tokens; empty ones are ignored.
        do_sample: draw each token; otherwise take the likeliest.
        temperature: of the draws; above 0.
        think_end_token: what ends the thoughts of a reasoning model, as a string or a token id: what stands before it is not graded.
        options: everything else that transformers' `generate` takes (top_k, repetition_penalty, ...). What is not named here comes
            from the model's generation config.
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    think_end_token: str | int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}: an answer has at least 1 token.")
        if self.do_sample and not self.temperature > 0:
            raise UsageError(f"do_sample=true with temperature={self.temperature}: give a temperature above 0, or do_sample=false.")

    @classmethod
    def from_gen_kwargs(
        cls, gen_kwargs: Mapping[str, Any], default_max_new_tokens: int, think_end_token: str | int | None = None
    ) -> GenerationSettings:
        """Settings from what lm-eval hands to a model's `generate_until`.

        Args:
            gen_kwargs: the second argument of a `generate_until` request.
            default_max_new_tokens: the limit where `gen_kwargs` has none (HFLM's `max_gen_toks`).
            think_end_token: HFLM's; a string of digits is a token id.

        Raises:
            UsageError: values that cannot be used.
        """
        rest = dict(gen_kwargs)
        until = rest.pop("until", None) or ()
        lengths = [value for value in [rest.pop(name, None) for name in _LENGTHS] if value is not None]
        if "max_length" in rest:
            raise UsageError(f"max_length={rest['max_length']} counts the prompt too, and prompts differ: give max_gen_toks instead.")
        temperature = float(rest.pop("temperature", None) or 0.0)
        asked = rest.pop("do_sample", None)
        sample = temperature > 0 if asked is None else bool(asked)
        return cls(
            max_new_tokens=int(lengths[0] if lengths else default_max_new_tokens),
            until=(until,) if isinstance(until, str) else tuple(until),
            do_sample=sample,
            temperature=temperature if sample else 1.0,
            think_end_token=_token(think_end_token),
            options=rest,
        )

    def from_the_model_itself(self, temperature: float = 1.0) -> GenerationSettings:
        """These settings, sampled from softmax(logits / temperature) and nothing else: the policy that a policy gradient is of.

        What the model's generation config says of top_k, top_p and penalties is left aside, as the loss knows nothing of it.
        """
        return replace(self, do_sample=True, temperature=temperature, options={**self.options, **_AS_IT_IS})


def _token(token: str | int | None) -> str | int | None:
    return int(token) if isinstance(token, str) and token.isdigit() else token
