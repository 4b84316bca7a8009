"""Loop: the engine's own decoding loop. Prompts are read once, then one token a step is chosen for every sequence that goes on.

Sequences that have ended leave the batch and its cache, so a batch costs what its unfinished sequences cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from t2eval.generation.cache import keep
from t2eval.generation.choosing import Choosing, choose
from t2eval.generation.completion import Stopped
from t2eval.generation.decoder import Decoder
from t2eval.generation.stopping import Stopping
from t2eval.vision.features import Features

SequenceScope = Callable[[list[int]], "contextlib.AbstractContextManager[Any]"]
"""What must hold while the named sequences run, one a place of the batch: a z for each of them, or nothing."""

_LEAVING = 0.25
"""The share of ended sequences at which a batch is made smaller: doing it for each one costs more than it saves."""


def everywhere(_sequences: list[int]) -> contextlib.AbstractContextManager[Any]:
    """The scope that changes nothing."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Batch:
    """What goes through the model together.

    Attributes:
        prompts: the distinct prompts' token ids.
        images: the features of each prompt's images; empty where none has any.
        owners: for each sequence, which of the prompts it continues.
        sequences: for each sequence, what the scope calls it.
        uniforms: (sequences, new tokens) float64, the draws of each; None: greedy.
    """

    prompts: list[list[int]]
    images: list[Features | None]
    owners: list[int]
    sequences: list[int]
    uniforms: Tensor | None

    @property
    def firsts(self) -> list[int]:
        """For each prompt, the first sequence that continues it."""
        return [self.sequences[self.owners.index(prompt)] for prompt in range(len(self.prompts))]


@dataclass
class Written:
    """What one sequence has so far."""

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stopped: Stopped | None = None


@dataclass
class Prefilled:
    """The prompts of a batch, read: one place a sequence.

    Attributes:
        cache: of the prompts.
        logits: (sequences, vocabulary) float32, behind each prompt.
        ids: (sequences, width) the prompts, padded on the left.
        mask: (sequences, width) 0 on padding; None where no prompt is padded.
        lengths: (sequences,) of the prompts.
    """

    cache: Cache
    logits: Tensor
    ids: Tensor
    mask: Tensor | None
    lengths: Tensor


def padded(prompts: Sequence[Sequence[int]], padding: int, side: str, device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (sequences, longest) int64, padded on `side`."""
    longest = max(map(len, prompts))
    fill = [longest - len(prompt) for prompt in prompts]
    if side == "left":
        ids = [[padding] * gap + list(prompt) for gap, prompt in zip(fill, prompts, strict=True)]
        mask = [[0] * gap + [1] * (longest - gap) for gap in fill]
    else:
        ids = [list(prompt) + [padding] * gap for gap, prompt in zip(fill, prompts, strict=True)]
        mask = [[1] * (longest - gap) + [0] * gap for gap in fill]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def prefill(decoder: Decoder, batch: Batch, padding: int, scope: SequenceScope) -> Prefilled:
    """Read the prompts of a batch, each once, however many sequences continue it."""
    ids, mask = padded(batch.prompts, padding, "left", decoder.device)  # (prompts, width)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (prompts, width)
    lengths = mask.sum(-1)  # (prompts,)
    needed = mask if len({len(prompt) for prompt in batch.prompts}) > 1 else None
    cache = decoder.new_cache()
    with scope(batch.firsts):
        logits = decoder.step(ids, cache, needed, positions, images=batch.images)  # (prompts, vocabulary)
    if batch.owners != list(range(len(batch.prompts))):
        owners = torch.tensor(batch.owners, device=decoder.device)  # (sequences,)
        keep(cache, owners)
        ids, logits, lengths = ids[owners], logits[owners], lengths[owners]
        needed = None if needed is None else needed[owners]
    return Prefilled(cache, logits, ids, needed, lengths)


def decode(decoder: Decoder, choosing: Choosing, stopping: Stopping, batch: Batch, start: Prefilled, scope: SequenceScope) -> list[Written]:
    """Continue the prompts of a batch until every sequence has ended. One small transfer to the host a token."""
    limit, width = choosing.settings.max_new_tokens, start.ids.shape[1]
    written = [Written() for _ in batch.sequences]
    places = list(range(len(written)))  # which sequence each place of the batch holds
    cache, logits, positions, uniforms = start.cache, start.logits, start.lengths[:, None], batch.uniforms
    # Room for all tokens at once: growing by one a token would copy everything each time.
    mask = None if start.mask is None else torch.cat([start.mask, start.mask.new_ones(len(places), limit)], dim=1)
    kept = choosing.needs_history or decoder.prepares_inputs
    history = torch.cat([start.ids, start.ids.new_zeros(len(places), limit)], dim=1) if kept else None
    processors = choosing.processors(width, start.mask)
    with contextlib.ExitStack() as inside:
        inside.enter_context(scope([batch.sequences[place] for place in places]))
        for step in range(limit):
            seen = None if history is None else history[:, : width + step]  # (sequences, width + step)
            uniform = None if uniforms is None else uniforms[:, step]  # (sequences,)
            token, log_prob = choose(logits, processors, seen, uniform)  # (sequences,) each
            going = _note(written, places, token, log_prob, stopping)
            if not going:
                break
            if len(going) <= (1 - _LEAVING) * len(places):
                index = torch.tensor(going, device=token.device)  # the places that go on
                keep(cache, index)
                places, token, positions = [places[place] for place in going], token[index], positions[index]
                mask, history, uniforms = (None if each is None else each[index] for each in (mask, history, uniforms))
                processors = choosing.processors(width, None if mask is None else mask[:, :width])
                inside.close()
                inside.enter_context(scope([batch.sequences[place] for place in places]))
            if history is not None:
                history[:, width + step] = token
            logits = decoder.step(
                token[:, None],  # (sequences, 1)
                cache,
                None if mask is None else mask[:, : width + step + 1],
                positions,
                history=None if history is None else history[:, : width + step + 1],
            )
            positions = positions + 1
    return written


def _note(written: list[Written], places: list[int], token: Tensor, log_prob: Tensor, stopping: Stopping) -> list[int]:
    """Append a step's tokens to the sequences that have not ended; the places of those that go on."""
    tokens, log_probs = torch.stack([token.float(), log_prob]).tolist()  # one transfer; float32 holds every id exactly
    going = []
    for place, (number, token_id, value) in enumerate(zip(places, tokens, log_probs, strict=True)):
        sequence = written[number]
        if sequence.stopped is None:
            sequence.ids.append(int(token_id))
            sequence.log_probs.append(value)
            sequence.stopped = stopping.stopped(sequence.ids)
            if sequence.stopped is None:
                going.append(place)
    return going
