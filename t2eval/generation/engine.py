"""Engine: prompts in, completions and likelihoods out. Rollouts, validation, search and dispatch all read a model through it.

A prompt's result depends on the prompt, the settings and the seed: not on its neighbours in the batch, the batch's size, or the
device's kind, but for the rounding of sums (some 1e-5 in a log-probability in float32).

    complete ── fit ── batches ── prefill ── decode (loop.py, or static.py on a GPU)
                           └───── generated (through_generate.py), where `Decoder.reason` or `Choosing.reason` says why
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from t2eval.errors import T2Error
from t2eval.generation import likelihoods, static
from t2eval.generation.choosing import Choosing
from t2eval.generation.completion import Completion, Likelihood
from t2eval.generation.decoder import Decoder
from t2eval.generation.draws import uniforms
from t2eval.generation.encoding import Encoding, context_length
from t2eval.generation.loop import Batch, SequenceScope, Written, decode, everywhere, prefill
from t2eval.generation.settings import GenerationSettings
from t2eval.generation.stopping import Stopping
from t2eval.generation.through_generate import generated
from t2eval.generation.usage import Usage
from t2eval.vision.features import Features, Reader, within

__all__ = ["Engine", "SequenceScope", "everywhere"]

_log = logging.getLogger(__name__)


def room_for_prompt(max_length: int, max_new_tokens: int) -> int:
    """The tokens that an answer's limit leaves for the prompt.

    Args:
        max_length: the model's longest sequence in tokens.
        max_new_tokens: the longest answer.

    Raises:
        T2Error: none are left.
    """
    if max_new_tokens >= max_length:
        raise T2Error(
            f"An answer may have {max_new_tokens} tokens, and the model's longest sequence has {max_length}: no room is left for the "
            "prompt. Give a smaller max_gen_toks (--gen_kwargs, or generation_kwargs of the task), or a model with a longer context."
        )
    return max_length - max_new_tokens


class Engine:
    """One model and its tokenizer.

    Args:
        model: a transformers causal model, or a PEFT model of one, in eval mode while it is used here.
        tokenizer: its tokenizer.
        batch_size: the most sequences that the model sees in one call.
        usage: where tokens are counted.
        max_length: the model's longest sequence in tokens; by default where HFLM finds it.
        add_bos_token: HFLM's argument.
        reader: reads prompts with images; None where the model reads text only.
        static: whether to decode in static buffers (`static.py`); by default on a GPU, for the models that can.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        usage: Usage | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        reader: Reader | None = None,
        static: bool | None = None,
    ) -> None:
        if batch_size < 1:
            raise T2Error(f"batch_size is {batch_size}: a batch has at least 1 sequence.")
        self.decoder, self.encoding = Decoder(model), Encoding(tokenizer, add_bos_token)
        self.model, self.tokenizer, self.batch_size, self.reader = model, tokenizer, batch_size, reader
        self.usage = usage if usage is not None else Usage()
        self.max_length = max_length or context_length(self.decoder.config, tokenizer)
        self._static = static
        self._warned: set[str] = set()

    # ------------------------------------------------------------------ token ids
    def encode(self, text: str) -> list[int]:
        """The token ids of a text that begins a sequence, as HFLM encodes it."""
        return self.encoding.text(text)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The token ids of a context and of its continuation, as HFLM splits them."""
        return self.encoding.pair(context, continuation)

    def fit(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, features: Sequence[Features | None] | None = None
    ) -> list[list[int]]:
        """The prompts, cut from the left as HFLM cuts them where they leave no room for the answer; one warning counts them.

        Raises:
            T2Error: no prompt would have room; or a prompt with images, which cannot be cut, is too long.
        """
        room = room_for_prompt(self.max_length, settings.max_new_tokens)
        seen = features if features is not None else [None] * len(prompts)
        long = sum(len(prompt) > room for prompt in prompts)
        if long and "prompts" not in self._warned:
            self._warned.add("prompts")
            _log.warning(
                "%d of %d prompts are longer than the %d tokens that %d new tokens leave of the model's %d: their beginnings are cut off.",
                long,
                len(prompts),
                room,
                settings.max_new_tokens,
                self.max_length,
            )
        return [within(list(prompt) or [self.encoding.first_token], each, room) for prompt, each in zip(prompts, seen, strict=True)]

    # ------------------------------------------------------------------ completions
    @torch.no_grad()
    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        *,
        samples: int = 1,
        seed: int | None = None,
        scope: SequenceScope = everywhere,
        features: Sequence[Features | None] | None = None,
        first: int | Sequence[int] = 0,
    ) -> list[Completion]:
        """Completions of each prompt.

        Args:
            prompts: token ids.
            settings: how they are made.
            samples: completions of each prompt; they share its prefill, and so its z.
            seed: of the draws; needed where `settings.do_sample`.
            scope: called with the sequences that run, as the completions are numbered (`prompt * samples + sample`).
            features: the features of each prompt's images; None where no prompt has any.
            first: the number of the first prompt, where these prompts are part of more, or the number of each: sample s of prompt
                number n has the draws of sequence `n * samples + s`, so processes that share the prompts draw what one would.

        Returns:
            The completions in the prompts' order, the samples of one prompt side by side.

        Raises:
            T2Error: no room for the prompts; logits that are not finite.
            UsageError: settings that cannot be used.
        """
        if settings.do_sample and seed is None:
            raise T2Error("Sampling needs a seed.")
        fitted = self.fit(prompts, settings, features)
        seen = list(features) if features is not None else []
        count = len(fitted) * samples
        choosing = Choosing(self.decoder, settings, self.encoding.padding)
        stopping = Stopping(self.tokenizer, settings, choosing.ends | {self.tokenizer.eos_token_id} - {None})
        numbers = range(first, first + len(fitted)) if isinstance(first, int) else first
        found: dict[int, Written] = {}
        for sequences in self._batches([len(prompt) for prompt in fitted for _ in range(samples)], self._paddable(choosing)):
            distinct = list(dict.fromkeys(sequence // samples for sequence in sequences))
            batch = Batch(
                prompts=[fitted[prompt] for prompt in distinct],
                images=[seen[prompt] for prompt in distinct] if seen else [],
                owners=[distinct.index(sequence // samples) for sequence in sequences],
                sequences=sequences,
                uniforms=self._uniforms(settings, seed, [numbers[each // samples] * samples + each % samples for each in sequences]),
            )
            found.update(zip(sequences, self._written(batch, choosing, stopping, scope), strict=True))
            self.usage.tokens += sum(map(len, batch.prompts)) + sum(len(found[sequence].ids) for sequence in sequences)
        return [self._completion(fitted, seen, sequence // samples, found[sequence], stopping) for sequence in range(count)]

    def _paddable(self, choosing: Choosing) -> bool:
        return self.decoder.paddable and choosing.paddable and choosing.reason is None

    def _batches(self, lengths: Sequence[int], paddable: bool) -> Iterator[list[int]]:
        """Sequences, by falling length, as many as a batch may hold; of one length where they cannot be padded."""
        order = sorted(range(len(lengths)), key=lambda sequence: (-lengths[sequence], sequence))
        start = 0
        while start < len(order):
            end = min(start + self.batch_size, len(order))
            if not paddable:
                end = next((place for place in range(start, end) if lengths[order[place]] != lengths[order[start]]), end)
            yield order[start:end]
            start = end

    def _uniforms(self, settings: GenerationSettings, seed: int | None, names: list[int]) -> torch.Tensor | None:
        if not settings.do_sample or seed is None:
            return None
        made = uniforms(seed, names, settings.max_new_tokens)  # (sequences, new tokens) float64
        return made.float().to(self.decoder.device) if self.decoder.device.type == "mps" else made.to(self.decoder.device)

    def _written(self, batch: Batch, choosing: Choosing, stopping: Stopping, scope: SequenceScope) -> list[Written]:
        if self.decoder.reason or choosing.reason:
            return self._through_generate(batch, choosing, stopping, scope)
        start = prefill(self.decoder, batch, self.encoding.padding, scope)
        wanted = self.decoder.device.type == "cuda" if self._static is None else self._static
        still = wanted and static.reason(self.decoder, choosing, static.length_of(start, choosing)) is None
        return (static.decode if still else decode)(self.decoder, choosing, stopping, batch, start, scope)

    def _through_generate(self, batch: Batch, choosing: Choosing, stopping: Stopping, scope: SequenceScope) -> list[Written]:
        why = self.decoder.reason or choosing.reason or ""
        if why not in self._warned:
            self._warned.add(why)
            _log.info("%s answers through its own generate: %s.", type(self.decoder.base).__name__, why)
        written = []  # one at a time: not all of these models are right in a batch, even of equal lengths
        for place, (sequence, owner) in enumerate(zip(batch.sequences, batch.owners, strict=True)):
            images = [batch.images[owner]] if batch.images else []
            own = None if batch.uniforms is None else batch.uniforms[place : place + 1]
            written += generated(self.decoder, choosing, stopping, Batch([batch.prompts[owner]], images, [0], [sequence], own), scope)
        return written

    def _completion(
        self, prompts: list[list[int]], seen: list[Features | None], prompt: int, written: Written, stopping: Stopping
    ) -> Completion:
        if not all(map(math.isfinite, written.log_probs)):
            raise self.not_finite(prompts[prompt])
        assert written.stopped is not None
        text, images = stopping.text(written.ids), seen[prompt] if seen else None
        return Completion(prompts[prompt], written.ids, text, written.log_probs, written.stopped, images)

    def not_finite(self, prompt: Sequence[int]) -> T2Error:
        """The error for a prompt (token ids) behind which logits are no numbers."""
        end = str(self.tokenizer.decode(list(prompt[-32:])))
        return T2Error(
            f"{type(self.decoder.base).__name__} gave logits that are not finite behind a prompt of {len(prompt)} tokens that ends in "
            f"{end!r}. Load it in float32 or bfloat16, or lower the learning rate of what was trained."
        )

    # ------------------------------------------------------------------ likelihoods
    @torch.no_grad()
    def loglikelihoods(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Sequence[int]]],
        *,
        prefix: Sequence[int] | None = None,
        scope: SequenceScope = everywhere,
        features: Sequence[Features | None] | None = None,
    ) -> list[list[Likelihood]]:
        """The likelihood of each continuation behind its prompt; a prompt is read once for all of its continuations.

        Args:
            prompts: token ids, none empty. Too long ones lose their beginning, as in HFLM.
            continuations: for each prompt, the token ids of its continuations, none empty.
            prefix: ids with which many of the prompts begin; they are read once for all of these.
            scope: called with the prompts that run, one a place of the batch (a prompt may take several, for its continuations).
            features: the features of each prompt's images; None where no prompt has any.
        """
        return likelihoods.loglikelihoods(self, prompts, continuations, prefix or (), scope, features)

    def warn_of_cuts(self, count: int, total: int) -> None:
        """Say once that contexts were cut before their continuations."""
        if count and "contexts" not in self._warned:
            self._warned.add("contexts")
            message = "%d of %d contexts are too long for the model's %d tokens with their continuation: their beginnings are cut off."
            _log.warning(message, count, total, self.max_length)
