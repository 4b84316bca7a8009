"""Cache: the model's own key-value cache, with room to grow in, and parts of it that share its storage until they are written to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """A growing cache layer that writes into spare room: concatenating for each token costs a third of a small model's time.

    Keys and values are (sequences, heads, length, head size) views of buffers that are up to `spare` positions longer.
    """

    spare = 64
    keys: Any
    values: Any
    _buffers: tuple[Tensor, Tensor] | None = None  # None: keys and values lie in storage that is not this layer's to write to

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < new:
            self._buffers = (self._grown(key_states, self.keys, old, new), self._grown(value_states, self.values, old, new))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, old:new] = states
        self.keys, self.values = self._buffers[0][:, :, :new], self._buffers[1][:, :, :new]
        return self.keys, self.values

    def _grown(self, states: Tensor, held: Tensor, old: int, new: int) -> Tensor:
        sequences, heads, _, size = states.shape
        buffer = states.new_empty(sequences, heads, new + self.spare, size)
        if old:
            buffer[:, :, :old] = held
        return buffer

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self._buffers is None:
            super().reorder_cache(beam_idx)
            return
        length = self.get_seq_length()
        self._buffers = (self._buffers[0][beam_idx], self._buffers[1][beam_idx])
        self.keys, self.values = self._buffers[0][:, :, :length], self._buffers[1][:, :, :length]


def new_cache(config: Any) -> Cache:
    """An empty cache of the kind that the model's layers need: full or sliding attention, or the states of a recurrent layer."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep(cache: Cache, sequences: Tensor) -> None:
    """Put the given sequences, (n,) int64, in the place of those that the cache holds; one may be named several times."""
    cache.reorder_cache(sequences)


def selected(cache: Cache, sequences: Sequence[int], device: Any) -> Cache:
    """A cache of the given sequences of an attention model's cache, which itself stays as it is.

    Where the cache holds one sequence, its storage is shared: what is appended later goes elsewhere.
    """
    part = copy.copy(cache)
    part.layers = [copy.copy(layer) for layer in cache.layers]
    index = torch.tensor(sequences, dtype=torch.long, device=device)
    for layer in part.layers:
        if not getattr(layer, "is_initialized", False):
            continue
        if layer.keys.shape[0] == 1:
            layer.keys = layer.keys.expand(len(sequences), -1, -1, -1)
            layer.values = layer.values.expand(len(sequences), -1, -1, -1)
        else:
            layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)
        if isinstance(layer, RoomyLayer):
            layer._buffers = None
    return part
