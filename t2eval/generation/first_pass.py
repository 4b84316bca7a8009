"""First pass: batched greedy answers and continuation likelihoods on a bare model, with its key-value cache.

These two primitives serve dispatch and search. They take token ids and return plain numbers, know nothing of lm-eval's request
types or caches, and count the tokens that the model really read.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from t2eval.vision.features import Features, Reader, image_arguments

RowScope = Callable[[list[int]], "contextlib.AbstractContextManager[Any]"]
"""What must hold while the given rows of a batch run: `adapted.rows` of their z, or nothing."""

_TAIL = 32


@dataclass
class Meter:
    """Seconds and tokens spent in one pass."""

    seconds: float = 0.0
    tokens: int = 0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def record(self) -> dict[str, float | int]:
        return {"seconds": round(self.seconds, 3), "tokens": self.tokens}


@dataclass(frozen=True)
class Answer:
    """One greedy answer: its text without stop sequence, its tokens' summed log-likelihood, and how many tokens it has."""

    text: str
    loglikelihood: float
    tokens: int


@dataclass(frozen=True)
class Encoding:
    """What a strategy needs of a tokenizer.

    Attributes:
        text: a text → its token ids.
        pair: `(context, continuation)` → the token ids of both, split as lm-eval splits them.
        longest: the model's longest sequence, in tokens.
        chat: `(user, lead)` → one user message, answered by a message that begins with `lead`; None where prompts are plain.
        reader: reads prompts with images; None where the model reads text only.
    """

    text: Callable[[str], list[int]]
    pair: Callable[[str, str], tuple[list[int], list[int]]]
    longest: int
    chat: Callable[[str, str], str] | None = None
    reader: Reader | None = None


def _everywhere(_rows: list[int]) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


class Runner:
    """A model and tokenizer, ready for batches of token ids.

    Args:
        model: a transformers causal model in eval mode.
        tokenizer: its tokenizer (padding by its pad or end token).
        meter: where tokens read are counted.
        rows: the largest batch.
    """

    def __init__(self, model: Any, tokenizer: Any, meter: Meter, rows: int) -> None:
        self.model, self.tokenizer, self.meter, self.rows = model, tokenizer, meter, rows
        accepted = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in accepted
        self._few_logits = "logits_to_keep" in accepted
        self._cache = "cache" if "cache" in accepted else "past_key_values"

    @property
    def _padding(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    def forward(self, ids: Tensor, mask: Tensor, cache: Any, *, last_only: bool = False, images: Sequence[Features | None] = ()) -> Tensor:
        """Logits (rows, length, vocabulary) in float32 for `ids`, which follow what `cache` holds; `mask` covers both.

        `images` are those of the rows' image tokens.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, self._cache: cache, "use_cache": True}
        if self._positions:
            arguments["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if last_only and self._few_logits:
            arguments["logits_to_keep"] = 1
        self.meter.tokens += int(mask[:, -ids.shape[1] :].sum())
        logits: Tensor = self.model(**arguments, **image_arguments(images)).logits
        return logits[:, -1:].float() if last_only else logits.float()

    def new_cache(self) -> Any:
        return DynamicCache(config=self.model.config)

    def padded(self, sequences: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
        """Ids and mask, both (rows, longest), padded on `side`."""
        longest = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(sequences), longest), self._padding, dtype=torch.long)
        mask = torch.zeros((len(sequences), longest), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            where = slice(longest - len(sequence), longest) if side == "left" else slice(0, len(sequence))
            ids[row, where] = torch.tensor(list(sequence), dtype=torch.long)
            mask[row, where] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _chunks(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        for start in range(0, len(order), self.rows):
            yield order[start : start + self.rows]

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        until: Sequence[str],
        max_new_tokens: int,
        scope: RowScope = _everywhere,
        images: Sequence[Features | None] | None = None,
    ) -> list[Answer]:
        """Greedy answers, each cut at its first stop sequence; a finished row leaves the batch once half of it is finished.

        Args:
            prompts: token ids of each prompt, none empty.
            until: stop strings; the end token always stops.
            max_new_tokens: the longest answer in tokens.
            scope: a context for the rows of a batch (indices into `prompts`), entered again whenever the batch shrinks.
            images: the features of each prompt's images; None where no prompt has any.
        """
        answers: list[Answer | None] = [None] * len(prompts)
        for chunk in self._chunks([len(prompt) for prompt in prompts]):
            seen = [images[row] for row in chunk] if images else []
            self._generate_chunk(chunk, prompts, seen, list(until), max_new_tokens, scope, answers)
        return [answer for answer in answers if answer is not None]

    def _generate_chunk(
        self,
        rows: list[int],
        prompts: Sequence[Sequence[int]],
        images: Sequence[Features | None],
        until: list[str],
        max_new_tokens: int,
        scope: RowScope,
        answers: list[Answer | None],
    ) -> None:
        ids, mask = self.padded([prompts[row] for row in rows], "left")
        cache, total = self.new_cache(), dict.fromkeys(rows, 0.0)
        made: dict[int, list[int]] = {row: [] for row in rows}
        ends = _end_tokens(self.model, self.tokenizer)
        live = list(rows)
        while live:
            alive = list(range(len(live)))
            with scope(live):
                while 2 * len(alive) > len(live):
                    log_probabilities = self.forward(ids, mask, cache, last_only=True, images=images)[:, -1].log_softmax(-1)
                    images = ()  # read: they are in the cache
                    best, token = log_probabilities.max(-1)
                    ids, mask = token[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                    values, tokens = best.tolist(), token.tolist()
                    for place in alive:
                        made[live[place]].append(tokens[place])
                        total[live[place]] += values[place]
                    alive = self._unfinished(live, alive, made, until, ends, max_new_tokens)
                    if not alive:
                        break
            keep = torch.tensor(alive, dtype=torch.long, device=mask.device)
            if alive:
                cache.batch_select_indices(keep)
                ids, mask = ids[keep], mask[keep]
            live = [live[place] for place in alive]
        for row in rows:
            answers[row] = Answer(self._text(made[row], until), total[row], len(made[row]))

    def _unfinished(
        self, live: list[int], alive: list[int], made: dict[int, list[int]], until: list[str], ends: set[int], limit: int
    ) -> list[int]:
        tails = self.tokenizer.batch_decode([made[live[place]][-_TAIL:] for place in alive])
        return [
            place
            for place, tail in zip(alive, tails, strict=True)
            if made[live[place]][-1] not in ends and len(made[live[place]]) < limit and not any(stop in tail for stop in until)
        ]

    def _text(self, tokens: list[int], until: list[str]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in until:
            text = text.split(stop)[0] if stop else text
        return text

    @torch.no_grad()
    def loglikelihoods(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Sequence[int]]],
        scope: RowScope = _everywhere,
        images: Sequence[Features | None] | None = None,
    ) -> list[list[float]]:
        """Summed log-likelihood of each continuation behind its prompt; a prompt is read once for all of its continuations.

        Args:
            prompts: token ids, none empty.
            continuations: for each prompt, the token ids of each of its continuations, none empty.
            scope: a context for the rows of a batch (indices into `prompts`, repeated once a continuation in the second step).
            images: the features of each prompt's images; None where no prompt has any.
        """
        results: list[list[float]] = [[] for _ in prompts]
        for chunk in self._chunks([len(prompt) for prompt in prompts]):
            ids, mask = self.padded([prompts[row] for row in chunk], "left")
            cache = self.new_cache()
            seen = [images[row] for row in chunk] if images else []
            with scope(chunk):
                last = self.forward(ids, mask, cache, last_only=True, images=seen)[:, -1].log_softmax(-1)
            for row, values in zip(chunk, self.behind(cache, mask, last, [continuations[row] for row in chunk], chunk, scope), strict=True):
                results[row] = values
        return results

    def behind(
        self,
        cache: Any,
        mask: Tensor,
        last: Tensor,
        continuations: Sequence[Sequence[Sequence[int]]],
        rows: list[int],
        scope: RowScope = _everywhere,
    ) -> list[list[float]]:
        """Likelihoods of continuations behind a prompt whose cache and last log-probabilities are known.

        Args:
            cache: key-value cache of the prompts; used up.
            mask: (rows, prompt length).
            last: log-probabilities after the prompt, (rows, vocabulary).
            continuations: for each row, its continuations.
            rows: what `scope` calls these rows.
        """
        first = [[last[place, tokens[0]].item() for tokens in each] for place, each in enumerate(continuations)]
        spread = [(place, index) for place, each in enumerate(continuations) for index, tokens in enumerate(each) if len(tokens) > 1]
        for start in range(0, len(spread), self.rows):
            part = spread[start : start + self.rows]
            chosen = torch.tensor([place for place, _ in part], dtype=torch.long, device=mask.device)
            spare = self._selected(cache, chosen)
            tokens = [list(continuations[place][index]) for place, index in part]
            ids, own = self.padded([each[:-1] for each in tokens], "right")
            with scope([rows[place] for place, _ in part]):
                logits = self.forward(ids, torch.cat([mask[chosen], own], dim=1), spare).log_softmax(-1)
            for row, ((place, index), each) in enumerate(zip(part, tokens, strict=True)):
                wanted = torch.tensor(each[1:], device=logits.device)
                first[place][index] += logits[row, : len(each) - 1].gather(1, wanted[:, None]).sum().item()
        return first

    def _selected(self, cache: Any, rows: Tensor) -> Any:
        chosen = copy.deepcopy(cache)
        chosen.batch_select_indices(rows)
        return chosen

    @torch.no_grad()
    def prefix(self, ids: Sequence[int]) -> tuple[Any, list[int]]:
        """The cache of one shared prefix (one row), to be given to `after_prefix`."""
        tokens, mask = self.padded([ids], "left")
        cache = self.new_cache()
        self.forward(tokens, mask, cache, last_only=True)
        return cache, list(ids)

    @torch.no_grad()
    def after_prefix(
        self, prefix: tuple[Any, list[int]], prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """As `loglikelihoods`, for prompts that all begin with the ids of `prefix`, whose cache is reused.

        Each prompt must be longer than the prefix.
        """
        cache, shared = prefix
        results: list[list[float]] = [[] for _ in prompts]
        for chunk in self._chunks([len(prompt) for prompt in prompts]):
            ids, own = self.padded([prompts[row][len(shared) :] for row in chunk], "left")
            spare = self._selected(cache, torch.zeros(len(chunk), dtype=torch.long, device=ids.device))
            mask = torch.cat([torch.ones(len(chunk), len(shared), dtype=own.dtype, device=own.device), own], dim=1)
            last = self.forward(ids, mask, spare, last_only=True)[:, -1].log_softmax(-1)
            for row, values in zip(chunk, self.behind(spare, mask, last, [continuations[row] for row in chunk], chunk), strict=True):
                results[row] = values
        return results


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokenizer's end token and those of the model's own generation config (chat models have more than one)."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in [*several, tokenizer.eos_token_id] if token is not None}
