"""Packing: the continuations of a prompt side by side behind it in one sequence, so that its cache is read once for all of them.

    in the cache  p0 p1 p2 | a0 a1 | b0 | c0 c1      each letter's tokens see the prompt and their own continuation, nothing else
    position      0  1  2  | 3  4  | 3  | 3  4

Spread over sequences of their own, short continuations cost a copy of the prompt's cache each, and a call for every batch of them. This
needs a model that takes a mask of queries by keys, and the tokens' positions; whether one does is tried once (`packs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2eval.generation.cache import RoomyLayer

if TYPE_CHECKING:
    from t2eval.generation.decoder import Decoder

REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError)
"""What families raise that cannot take such a mask."""
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
"""Where a config says how far back a token sees: counted in places, of which other continuations would take some."""
_PROMPT, _TRIAL, _OTHER = [3, 1, 4, 1, 5], [[9, 2, 6], [5, 3]], [[8, 7, 10], [5, 3]]


@dataclass(frozen=True)
class Packed:
    """The continuations of some prompts, as a model reads them behind the prompts' cache.

    Attributes:
        ids: (prompts, width) all tokens of a prompt's continuations but each one's last, padded on the right.
        positions: (prompts, width).
        mask: (prompts, 1, width, held + width) what each token sees, 0 or the lowest number; added to the attention's scores.
        rows, columns, targets, owners: (predicted tokens,) each: behind which token it stands, its id, and of which continuation it is,
            counted through. A continuation's first token stands behind the prompt, and is not here.
        lengths: the tokens that each prompt reads.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    owners: Tensor
    lengths: list[int]


def pack(continuations: Sequence[Sequence[Sequence[int]]], context: Tensor, padding: int, dtype: torch.dtype) -> Packed:
    """Put the continuations of each prompt side by side.

    Args:
        continuations: of each prompt, token ids.
        context: (prompts, held) 1 where the cache holds a token of the prompt, 0 on padding.
        padding: the id that fills.
        dtype: of the mask.
    """
    ids: list[list[int]] = []
    branches: list[list[int]] = []  # which continuation of its prompt a token is of
    offsets: list[list[int]] = []
    found: list[tuple[int, int, int, int]] = []
    owner = 0
    for row, each in enumerate(continuations):
        for lists in (ids, branches, offsets):
            lists.append([])
        for number, tokens in enumerate(each):
            found += [(row, len(ids[-1]) + place, token, owner) for place, token in enumerate(tokens[1:])]
            ids[-1] += tokens[:-1]
            branches[-1] += [number] * (len(tokens) - 1)
            offsets[-1] += range(len(tokens) - 1)
            owner += 1
    width = max(map(len, ids))

    def square(lists: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([one + [fill] * (width - len(one)) for one in lists], dtype=torch.long, device=context.device)

    of = square(branches, -1)  # (prompts, width)
    order = torch.ones(width, width, dtype=torch.bool, device=context.device).tril()
    own = order & (of[:, :, None] == of[:, None, :])  # (prompts, width, width)
    seen = torch.cat([context.bool()[:, None].expand(-1, width, -1), own], dim=-1)  # (prompts, width, held + width)
    mask = torch.zeros(seen.shape, dtype=dtype, device=context.device).masked_fill(~seen, torch.finfo(dtype).min)
    tokens_of = torch.tensor(found, dtype=torch.long, device=context.device).reshape(-1, 4)  # (predicted tokens, 4)
    rows, columns, targets, owners = tokens_of.unbind(1)  # (predicted tokens,) each
    # Padding behind a prompt that fills the window would stand beyond it, which learned positions do not have.
    positions = (square(offsets, 0) + context.sum(-1, keepdim=True)).masked_fill(of < 0, 0)  # (prompts, width)
    return Packed(square(ids, padding), positions, mask[:, None], rows, columns, targets, owners, [len(one) for one in ids])


def packs(decoder: Decoder) -> bool:
    """Whether a model sees what `Packed.mask` shows and nothing else. Tried on a few tokens."""
    text = decoder.config.get_text_config(decoder=True)
    if not (decoder.paddable and decoder.takes_positions and getattr(text, "_attn_implementation", None) in ("sdpa", "eager")):
        return False
    if decoder.prepares_inputs or not all(type(layer) is RoomyLayer for layer in decoder.new_cache().layers):
        return False
    if any(getattr(text, name, None) for name in WINDOWS):
        return False
    vocabulary: int = decoder.base.get_input_embeddings().weight.shape[0]
    near = 1e-4 if decoder.model.dtype in (torch.float32, torch.float64) else 5e-2
    try:
        with torch.no_grad():
            one, other = _tried(decoder, _TRIAL, vocabulary), _tried(decoder, _OTHER, vocabulary)  # (predicted tokens, vocabulary)
            apart = torch.cat([_tried(decoder, [each], vocabulary) for each in _TRIAL])  # (predicted tokens, vocabulary)
    except REFUSALS:
        return False
    alone = torch.allclose(one[2:], other[2:], rtol=near / 100, atol=near / 100)  # whatever the first continuation says
    return alone and torch.allclose(one, apart, rtol=near, atol=near)


def _tried(decoder: Decoder, continuations: list[list[int]], vocabulary: int) -> Tensor:
    """(predicted tokens, vocabulary) log-probabilities of some continuations behind the trial's prompt."""
    cache: Any = decoder.new_cache()
    ids = torch.tensor([_PROMPT], device=decoder.device) % vocabulary  # (1, 5)
    decoder.step(ids, cache, None, torch.arange(len(_PROMPT), device=decoder.device)[None])
    kept = [[token % vocabulary for token in each] for each in continuations]
    packed = pack([kept], torch.ones_like(ids), 0, decoder.model.dtype)
    logits = decoder.behind(packed.ids, cache, packed.mask, packed.positions)  # (1, width, vocabulary)
    return logits[packed.rows, packed.columns].log_softmax(-1)
