"""Rollouts: answers sampled from the policy in batches, and the likelihood of the answers that a choice task offers.

A lean loop instead of `model.generate`: rows that have ended leave the batch and its key-value cache, so a batch costs what its unfinished
rows cost; prompts are sorted by length, so padding is short. Prompts are tokenised, and answers cut, exactly as lm-eval's HFLM does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from t2eval.environment.environment import Environment, Example
from t2eval.vision.features import Features, Reader, image_arguments, within

_DEAD_ROWS = 0.25
"""The share of ended rows at which a batch is made smaller: doing it for each row costs more than it saves."""


@dataclass(frozen=True)
class Rollout:
    """One answer: the prompt's and the answer's token ids (with the tokens of the stop string), its text (without), the prompt's images."""

    prompt: list[int]
    answer: list[int]
    text: str
    images: Features | None = None


def read_prompts(
    environment: Environment, tokenizer: Any, examples: Sequence[Example], reader: Reader | None
) -> tuple[list[list[int]], list[Features | None]]:
    """The prompts of examples, as token ids and the features of their images.

    Args:
        environment: of the examples.
        tokenizer: the model's.
        examples: what is asked.
        reader: for a task with images; its features are those of an earlier call, where they are kept.
    """
    if reader is None:
        return [encode(tokenizer, example.prompt) for example in examples], [None] * len(examples)
    read = [read_example(environment, example, example.prompt, reader) for example in examples]
    return [ids for ids, _ in read], [features for _, features in read]


def read_example(environment: Environment, example: Example, text: str, reader: Reader) -> tuple[list[int], Features | None]:
    """A prompt with an example's images."""
    return reader.read(text, lambda: environment.images_of(example), (example.split, example.index))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that starts a sequence, with the special tokens that HFLM would add."""
    bos = getattr(tokenizer, "bos_token", None)
    extra = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
    ids: list[int] = tokenizer(text, **extra)["input_ids"]
    return ids


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of its continuation, split as HFLM splits them (spaces that end the context go to the continuation)."""
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    start = encode(tokenizer, context) if context else [_start_token(tokenizer)]
    whole = encode(tokenizer, context + continuation) if context else start + tokenizer(continuation, add_special_tokens=False)["input_ids"]
    return start, whole[len(start) :]


def _start_token(tokenizer: Any) -> int:
    return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)


class _RoomyLayer(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """A growing cache layer that writes into spare room: concatenating for each token costs a third of a small model's time."""

    spare = 64
    keys: Any
    values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        old = self.keys.shape[-2] if self.is_initialized else 0
        new = old + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (key_states.new_empty(0), value_states.new_empty(0))
        if old == 0 or self._buffers[0].shape[-2] < new:
            self._buffers = (self._grown(key_states, self.keys, old, new), self._grown(value_states, self.values, old, new))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, old:new] = states
        self.keys, self.values = self._buffers[0][:, :, :new], self._buffers[1][:, :, :new]
        return self.keys, self.values

    def _grown(self, states: Tensor, held: Tensor, old: int, new: int) -> Tensor:
        rows, heads, _, size = states.shape
        buffer = states.new_empty(rows, heads, new + self.spare, size)
        if old:
            buffer[:, :, :old] = held
        return buffer

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.keys.shape[-2]
        self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
        self.keys, self.values = self._buffers[0][:, :, :length], self._buffers[1][:, :, :length]


class Sampler:
    """Generates answers with one model and tokenizer.

    Args:
        model: a causal model (or PEFT model); it is put to no other use.
        tokenizer: its tokenizer.
        until: strings that end an answer, beside the end-of-sequence tokens.
        max_new_tokens: the most tokens of an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, until: Sequence[str], max_new_tokens: int) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.until = [text for text in until if text]
        config = getattr(model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])} - {None}
        self._last_letters = {text[-1] for text in self.until}
        self._may_end: dict[int, bool] = {}
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(base.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        *,
        batch_size: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        images: Sequence[Features | None] | None = None,
    ) -> list[Rollout]:
        """One answer to each prompt.

        Args:
            prompts: token ids; too long ones lose their beginning, as in HFLM.
            batch_size: rows at once.
            temperature: of sampling.
            generator: the source of randomness, on the CPU; None: greedy.
            images: the features of each prompt's images; None where no prompt has any.

        Returns:
            The answers, in the prompts' order.
        """
        room = self._room()
        seen = list(images) if images is not None else [None] * len(prompts)
        cut = [within(prompt, features, room) for prompt, features in zip(prompts, seen, strict=True)]
        order = sorted(range(len(cut)), key=lambda index: -len(cut[index]))
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found = self._batch([cut[row] for row in rows], [seen[row] for row in rows], temperature, generator)
            answers.update(zip(rows, found, strict=True))
        return [Rollout(cut[row], answers[row], self.text(answers[row]), seen[row]) for row in range(len(cut))]

    def _room(self) -> int:
        config = self.model.config.get_text_config(decoder=True)
        length = next(
            (getattr(config, name) for name in ("n_positions", "max_position_embeddings", "n_ctx") if hasattr(config, name)), 2048
        )
        return max(1, int(length) - self.max_new_tokens)

    def _batch(
        self, prompts: list[list[int]], images: list[Features | None], temperature: float, generator: torch.Generator | None
    ) -> list[list[int]]:
        device, pad = self.model.device, self.tokenizer.pad_token_id or 0
        width = max(map(len, prompts))
        tokens = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
        answers: list[list[int]] = [[] for _ in prompts]
        rows: list[int] = list(range(len(prompts)))  # which prompt each row of the batch belongs to
        going: set[int] = set(rows)
        cache = self._cache()
        first = image_arguments(images)
        for _ in range(self.max_new_tokens):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            past, first = {self._cache_name: cache, **first}, {}
            out = self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1, **past)
            chosen = _choose(out.logits[:, -1].float(), temperature, generator)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if row in going:
                    answers[row].append(token)
                    if self._ended(answers[row]):
                        going.remove(row)
            if not going:
                break
            if len(going) <= (1 - _DEAD_ROWS) * len(rows):
                places = [place for place, row in enumerate(rows) if row in going]
                kept = torch.tensor(places, device=device)
                cache.batch_select_indices(kept)
                chosen, mask, rows = chosen[kept], mask[kept], [rows[place] for place in places]
            tokens, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return answers

    def _cache(self) -> Any:
        cache: Any = DynamicCache(config=self.model.config)
        cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def _ended(self, answer: list[int]) -> bool:
        token = answer[-1]
        if token in self._ends:
            return True
        if token not in self._may_end:  # most tokens cannot complete a stop string: only the others are worth a decoding
            piece = self.tokenizer.decode([token])
            self._may_end[token] = any(letter in piece or letter.isspace() for letter in self._last_letters)
        if not self._may_end[token]:
            return False
        text = self.tokenizer.decode(answer)
        return any(stop in text for stop in self.until)

    def text(self, answer: list[int]) -> str:
        """An answer's text, cut before the first stop string, as HFLM hands it to the task."""
        text: str = self.tokenizer.decode(answer, skip_special_tokens=True)
        for stop in self.until:
            text = text.split(stop)[0]
        return text


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logits.device)


@dataclass(frozen=True)
class Rows:
    """A padded batch of (prompt, answer) rows: prompts flush right, answers flush left, so that one slice of the logits has all answers.

    Attributes:
        tokens, attention, positions: (rows, prompt + answer), int64.
        answers: (rows, answer) token ids. mask: the same shape, float32, 1 on an answer's tokens.
        images: the features of each row's images.
    """

    tokens: Tensor
    attention: Tensor
    positions: Tensor
    answers: Tensor
    mask: Tensor
    images: tuple[Features | None, ...] = ()


def pad_rows(pairs: Sequence[tuple[list[int], list[int]]], device: Any, pad: int = 0, images: Sequence[Features | None] = ()) -> Rows:
    """(prompt, answer) token ids as one padded batch.

    Args:
        pairs: each answer has at least one token, each prompt too.
        device: of the tensors.
        pad: the id that fills.
        images: the features of each prompt's images.
    """
    left, right = max(len(prompt) for prompt, _ in pairs), max(len(answer) for _, answer in pairs)
    tokens = torch.full((len(pairs), left + right), pad, dtype=torch.long)
    attention = torch.zeros_like(tokens)
    for row, (prompt, answer) in enumerate(pairs):
        tokens[row, left - len(prompt) : left + len(answer)] = torch.tensor(prompt + answer)
        attention[row, left - len(prompt) : left + len(answer)] = 1
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    tokens, attention, positions = tokens.to(device), attention.to(device), positions.to(device)
    return Rows(tokens, attention, positions, tokens[:, left:], attention[:, left:].float(), tuple(images))


def answer_logits(model: Callable[..., Any], rows: Rows) -> Tensor:
    """The float32 logits (rows, answer, vocabulary) that predict each answer token. Differentiable."""
    length = rows.answers.shape[1]
    out = model(
        input_ids=rows.tokens,
        attention_mask=rows.attention,
        position_ids=rows.positions,
        use_cache=False,
        logits_to_keep=length + 1,
        **image_arguments(rows.images),
    )
    logits: Tensor = out.logits[:, -length - 1 : -1].float()
    return logits


def token_log_probs(logits: Tensor, rows: Rows) -> Tensor:
    """Log-probability of each answer token, (rows, answer), 0 on the padding."""
    return logits.log_softmax(-1).gather(-1, rows.answers[..., None])[..., 0] * rows.mask


def choice_pairs(tokenizer: Any, example: Example) -> list[tuple[list[int], list[int]]]:
    """The (context, continuation) token ids of a choice example, one a request."""
    return [encode_pair(tokenizer, context, continuation) for context, continuation in example.requests]


@torch.no_grad()
def choice_likelihoods(
    model: Callable[..., Any], tokenizer: Any, examples: Sequence[Example], *, device: Any, batch_size: int
) -> list[list[tuple[float, bool]]]:
    """For each example the log-likelihood of each of its requests, in nats, and whether greedy decoding would say it."""
    flat = [(index, pair) for index, example in enumerate(examples) for pair in choice_pairs(tokenizer, example)]
    order = sorted(range(len(flat)), key=lambda place: -sum(map(len, flat[place][1])))
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = pad_rows([flat[place][1] for place in places], device)
        logits = answer_logits(model, rows)
        sums = token_log_probs(logits, rows).sum(-1).tolist()
        greedy = ((logits.argmax(-1) == rows.answers) | (rows.mask == 0)).all(-1).tolist()
        found.update(zip(places, zip(sums, greedy, strict=True), strict=True))
    result: list[list[tuple[float, bool]]] = [[] for _ in examples]
    for place, (index, _) in enumerate(flat):
        result[index].append(found[place])
    return result
