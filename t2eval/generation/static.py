"""Static: decoding in buffers of fixed size, so that a step can be captured once as a CUDA graph and replayed for every token.

On a GPU a step of a small batch is bound by the launches of its kernels: replaying a graph launches all of them at once. The captured step
chooses the token too, so nothing has to come back to the host before the next one; the host looks for ends some tokens later, a
block at a time. Sequences that have ended stay until half of the batch has. On a CPU the same steps run without a graph.

Attention reads a window of the buffers that is widened some hundred positions at a time, with a graph for each width: over the whole
length it would cost a long answer's first tokens as much as its last.

What a graph holds are addresses, so it lives no longer than one batch under one z: weights may be merged and hooks may change between.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from t2eval.generation.cache import RoomyLayer
from t2eval.generation.choosing import Choosing, choose
from t2eval.generation.decoder import Decoder
from t2eval.generation.loop import Batch, Prefilled, SequenceScope, Written, _note
from t2eval.generation.stopping import Stopping

_BLOCK = 4
"""Tokens between two looks of the host."""
_WARM = 2
"""Steps before a capture: kernels and their workspaces are chosen in them."""
_WORTH = 6
"""The fewest steps for which a capture, which costs some three of them, is made."""
_WINDOW = 128
"""Positions by which the window that attention reads is widened. A capture costs as much as some ten steps."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def reason(decoder: Decoder, choosing: Choosing, length: int) -> str | None:
    """Why a model cannot decode in static buffers of `length` positions; None where it can.

    It can where all that a step depends on is in tensors: full attention by transformers' own functions over a mask that is handed in.
    """
    kind, text = type(decoder.base), decoder.config.get_text_config(decoder=True)
    if not (getattr(kind, "_can_compile_fullgraph", False) and getattr(kind, "_supports_attention_backend", False)):
        return f"{kind.__name__} cannot be captured"
    if getattr(text, "_attn_implementation", None) not in ("sdpa", "eager"):
        return "its attention takes no mask of its own"
    if any(getattr(text, name, None) for name in _EXPERTS):
        return "its experts' sizes are read on the host"
    if decoder.prepares_inputs or not decoder.takes_positions or choosing.needs_history:
        return "a step looks at all ids"
    for layer in decoder.new_cache().layers:
        whole = type(layer) in (RoomyLayer, DynamicLayer)
        if not whole and not (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > length):
            return "not all of its layers attend to everything"
    return None


def length_of(start: Prefilled, choosing: Choosing) -> int:
    """How many positions the buffers of a batch have: prompt, answer, and the steps that come before a capture."""
    return start.ids.shape[1] + choosing.settings.max_new_tokens + _WARM


class _Windowed(StaticLayer):  # type: ignore[misc, unused-ignore]
    """Keys and values in buffers of fixed size, of which attention reads the first `window` positions."""

    window = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)  # (sequences, heads, length, head size) each
        return keys[:, :, : self.window], values[:, :, : self.window]


class _Steps:
    """The buffers of one batch, and its step.

    Args:
        decoder, warpers: the model, and what stands between its logits and the choice.
        layers: keys and values of each layer, (sequences, heads, held, head size).
        held: positions that they hold.
        length: positions of the buffers.
        token: (sequences,) the ids that come next.
        position: (sequences,) theirs.
        visible: (sequences, held) bool: keys that are not padding.
        uniforms: (sequences, steps) draws; None: greedy.
        steps: the most that will be asked for.
    """

    def __init__(
        self,
        decoder: Decoder,
        warpers: LogitsProcessorList,
        layers: list[tuple[Tensor, Tensor]],
        held: int,
        length: int,
        token: Tensor,
        position: Tensor,
        visible: Tensor,
        uniforms: Tensor | None,
        steps: int,
    ) -> None:
        self.decoder, self.warpers, self.held = decoder, warpers, held
        device, sequences, room = token.device, len(token), steps + _WARM
        self.cache = Cache(layers=[_static(keys, values, held, length) for keys, values in layers])
        eager = decoder.config.get_text_config(decoder=True)._attn_implementation == "eager"
        self.shown = 0.0 if eager else True
        hidden = torch.finfo(decoder.base.dtype).min if eager else False
        kind = decoder.base.dtype if eager else torch.bool
        self.mask = torch.full((sequences, 1, 1, length), hidden, dtype=kind, device=device)  # (sequences, 1, 1, length)
        self.mask[:, 0, 0, :held][visible] = self.shown
        self.token, self.position = token[:, None].clone(), position[:, None].clone()  # (sequences, 1) each
        self.place = torch.zeros(1, dtype=torch.long, device=device)  # which step is next
        self.tokens = torch.zeros(sequences, room, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(sequences, room, device=device)
        self.uniforms = None
        if uniforms is not None:
            self.uniforms = torch.cat([uniforms, uniforms.new_zeros(sequences, room)], dim=1)[:, :room].contiguous()
        self.done, self.graph, self.captures = 0, None, device.type == "cuda" and steps >= _WORTH
        self.window = 0
        self._widen(1)

    graph: Any

    def _widen(self, count: int) -> None:
        """See to it that attention reads what the next `count` steps write."""
        needed = self.held + self.done + count
        if needed <= self.window:
            return
        length = self.mask.shape[3]
        self.window = min(length, -(-(needed + _WARM) // _WINDOW) * _WINDOW)
        for layer in self.cache.layers:
            layer.window = self.window
        if self.captures:
            torch.cuda.current_stream().synchronize()  # the graph that goes may still be running
            self.graph = None
            self._capture()

    def step(self) -> None:
        """Read one token of each sequence, and choose the next: all of it on the device, in place."""
        self.mask.index_fill_(3, self.held + self.place, self.shown)  # the token that is read now sees itself
        arguments: dict[str, Any] = {self.decoder.cache_name or "": self.cache, "use_cache": True, "logits_to_keep": 1}
        seen = self.mask[..., : self.window]  # (sequences, 1, 1, window)
        out = self.decoder.model(input_ids=self.token, attention_mask=seen, position_ids=self.position, **arguments)
        uniform = None if self.uniforms is None else self.uniforms.index_select(1, self.place)[:, 0]  # (sequences,)
        token, log_prob = choose(out.logits[:, -1].float(), self.warpers, None, uniform)  # (sequences,) each
        self.tokens.index_copy_(1, self.place, token[:, None])
        self.log_probs.index_copy_(1, self.place, log_prob[:, None])
        self.token.copy_(token[:, None])
        self.position.add_(1)
        self.place.add_(1)

    def _capture(self) -> None:
        before = [self.token.clone(), self.position.clone(), self.mask.clone(), self.place.clone()]
        side, own = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        side.wait_stream(own)
        with torch.cuda.stream(side):
            for _ in range(_WARM):
                self.step()
        own.wait_stream(side)
        self._rewind(before)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def _rewind(self, before: list[Tensor]) -> None:
        """As before some steps; what the cache holds beyond is hidden, and written over."""
        for buffer, value in zip((self.token, self.position, self.mask, self.place), before, strict=True):
            buffer.copy_(value)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.held + self.done)

    def block(self, count: int) -> tuple[Tensor, Any]:
        """Queue `count` steps.

        Returns:
            (2, sequences, count) float32 on the host: tokens and log-probabilities; and the event after which they are there.
        """
        self._widen(count)
        for _ in range(count):
            self.graph.replay() if self.graph is not None else self.step()
        part = slice(self.done, self.done + count)
        self.done += count
        both = torch.stack([self.tokens[:, part].float(), self.log_probs[:, part]])  # (2, sequences, count)
        if both.device.type != "cuda":
            return both.cpu(), None
        host = torch.empty(both.shape, pin_memory=True)
        host.copy_(both, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return host, event

    def layers(self, sequences: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of some sequences, as far as they are filled."""
        held = self.held + self.done
        return [(layer.keys[sequences, :, :held], layer.values[sequences, :, :held]) for layer in self.cache.layers]


def _static(keys: Tensor, values: Tensor, held: int, length: int) -> StaticLayer:
    layer = _Windowed(max_cache_len=length)
    layer.lazy_initialization(keys, values)
    layer.keys[:, :, :held], layer.values[:, :, :held] = keys, values
    layer.cumulative_length.fill_(held)
    return layer


def decode(decoder: Decoder, choosing: Choosing, stopping: Stopping, batch: Batch, start: Prefilled, scope: SequenceScope) -> list[Written]:
    """As `loop.decode`, for what `reason` has nothing against."""
    limit, width, length = choosing.settings.max_new_tokens, start.ids.shape[1], length_of(start, choosing)
    warpers = choosing.processors(width, None)
    written = [Written() for _ in batch.sequences]
    places = list(range(len(written)))
    uniforms, positions = batch.uniforms, start.lengths
    token, log_prob = choose(start.logits, warpers, None, None if uniforms is None else uniforms[:, 0])  # (sequences,) each
    going = _note(written, places, token, log_prob, stopping)
    visible = torch.ones_like(start.ids) if start.mask is None else start.mask  # (sequences, width)
    chosen = 1  # tokens that every sequence of the batch has
    index = torch.tensor(going, dtype=torch.long, device=token.device)
    layers = [(layer.keys[index], layer.values[index]) for layer in start.cache.layers] if going else []
    start.cache.layers = []
    while going:
        places, token, positions, visible = [places[place] for place in going], token[index], positions[index], visible[index]
        uniforms = None if uniforms is None else uniforms[index]
        with scope([batch.sequences[place] for place in places]):
            rest = None if uniforms is None else uniforms[:, chosen:]
            held = width + chosen - 1
            steps = _Steps(decoder, warpers, layers, held, length, token, positions, visible.bool(), rest, limit - chosen)
            layers = []
            going = _run(steps, written, places, stopping, limit - chosen)
        index = torch.tensor(going, dtype=torch.long, device=token.device)
        chosen += steps.done
        token, positions = steps.token[:, 0], steps.position[:, 0]
        visible = torch.cat([visible, visible.new_ones(len(places), steps.done)], dim=1)  # (sequences, held by now)
        layers = steps.layers(index) if going else []
        del steps  # its buffers and graph, before the next ones are made
    return written


def _run(steps: _Steps, written: list[Written], places: list[int], stopping: Stopping, most: int) -> list[int]:
    """Steps until half of the batch has ended; the places of the sequences that go on. The device is a block ahead of the host."""
    queue: deque[tuple[Tensor, Any]] = deque()
    going = list(range(len(places)))
    while queue or steps.done < most:
        enough = 2 * len(going) <= len(places)
        while not enough and steps.done < most and len(queue) < 2:
            queue.append(steps.block(min(_BLOCK, most - steps.done)))
        if not queue:
            break
        both, event = queue.popleft()
        if event is not None:
            event.synchronize()
        going = _note_block(written, places, both, stopping)
        if not going:
            break
    return going


def _note_block(written: list[Written], places: list[int], both: Tensor, stopping: Stopping) -> list[int]:
    """As `_note`, for (2, sequences, count) tokens and log-probabilities."""
    tokens, log_probs = both.tolist()
    for number, ids, values in zip(places, tokens, log_probs, strict=True):
        sequence = written[number]
        for token, value in zip(ids, values, strict=True):
            if sequence.stopped is not None:
                break
            sequence.ids.append(int(token))
            sequence.log_probs.append(value)
            sequence.stopped = stopping.stopped(sequence.ids)
    return [place for place, number in enumerate(places) if written[number].stopped is None]
