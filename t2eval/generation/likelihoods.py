"""Likelihoods: how probable a model finds given continuations of prompts.

prompts with one cache ── read (behind a shared prefix) ── last logits: the first token of every continuation
                                                      └── the cache ── their other tokens, side by side behind it (`packing`)
                                                   └── or spread over the continuations, where a model takes no such mask
models without a usable cache: prompt and continuation as one sequence
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from t2eval.errors import T2Error
from t2eval.generation.cache import selected
from t2eval.generation.completion import Likelihood
from t2eval.generation.loop import SequenceScope, padded
from t2eval.generation.packing import pack
from t2eval.vision.features import Features, within

if TYPE_CHECKING:
    from t2eval.generation.engine import Engine

_WIDTH = 32
"""Tokens of continuations side by side, a sequence of the batch, whose logits are held at once."""


@dataclass(frozen=True)
class _Task:
    """One context as the model reads it, and the continuations behind it.

    Attributes:
        prompt: which of the prompts it is.
        context: its token ids, cut.
        places: which of the prompt's continuations.
        continuations: their token ids.
    """

    prompt: int
    context: tuple[int, ...]
    places: list[int]
    continuations: list[list[int]]


def loglikelihoods(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    prefix: Sequence[int],
    scope: SequenceScope,
    features: Sequence[Features | None] | None,
) -> list[list[Likelihood]]:
    """See `Engine.loglikelihoods`.

    Raises:
        T2Error: logits that are not finite.
    """
    found: list[dict[int, Likelihood]] = [{} for _ in prompts]
    seen = list(features) if features is not None else [None] * len(prompts)
    tasks = _tasks(engine, prompts, continuations, seen)
    if not engine.decoder.paddable:
        _whole(engine, tasks, scope, seen, found)
    else:
        shared = tuple(prefix)
        behind = [task for task in tasks if shared and seen[task.prompt] is None and _follows(task.context, shared)]
        if len(behind) > 1:
            _read(engine, behind, shared, scope, seen, found)
        else:
            behind = []
        alone = set(map(id, behind))
        _read(engine, [task for task in tasks if id(task) not in alone], (), scope, seen, found)
    for each, prompt in zip(found, prompts, strict=True):
        if any(math.isnan(likelihood.value) for likelihood in each.values()):
            raise engine.not_finite(prompt)
    return [[each[place] for place in range(len(each))] for each in found]


def _follows(context: tuple[int, ...], prefix: tuple[int, ...]) -> bool:
    return len(context) > len(prefix) and context[: len(prefix)] == prefix


def _tasks(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    seen: Sequence[Features | None],
) -> list[_Task]:
    """Contexts cut as HFLM cuts them: the last of context and continuation are kept, one more than the model's length (its last
    token is not read)."""
    tasks: list[_Task] = []
    cut = total = 0
    for prompt, (ids, each) in enumerate(zip(prompts, continuations, strict=True)):
        grouped: dict[tuple[int, ...], list[int]] = {}
        for place, tokens in enumerate(each):
            room = engine.max_length + 1 - len(tokens)
            if room < 1 or not tokens:
                raise T2Error(f"A continuation has {len(tokens)} tokens; the model can judge 1 to {engine.max_length}.")
            grouped.setdefault(tuple(within(list(ids), seen[prompt], room)), []).append(place)
            cut, total = cut + (len(ids) > room), total + 1
        for context, places in grouped.items():
            tasks.append(_Task(prompt, context, places, [list(each[place]) for place in places]))
    engine.warn_of_cuts(cut, total)
    return tasks


# ---------------------------------------------------------------------- with a cache
def _read(
    engine: Engine,
    tasks: list[_Task],
    prefix: tuple[int, ...],
    scope: SequenceScope,
    seen: Sequence[Features | None],
    found: list[dict[int, Likelihood]],
) -> None:
    decoder, held = engine.decoder, len(prefix)
    base: Cache | None = None
    order = sorted(range(len(tasks)), key=lambda task: (-len(tasks[task].context), task))
    for start in range(0, len(order), engine.batch_size):
        part = [tasks[place] for place in order[start : start + engine.batch_size]]
        names = [task.prompt for task in part]
        if prefix and base is None:  # under the z of the first prompt: a prefix is shared by prompts of one z
            with scope(names[:1]):
                base = _prefix(engine, prefix)
        ids, own = padded([task.context[held:] for task in part], engine.encoding.padding, "left", decoder.device)  # (prompts, rest)
        mask = torch.cat([own.new_ones(len(part), held), own], dim=1)  # (prompts, held + rest)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, held:]  # (prompts, rest)
        cache = decoder.new_cache() if base is None else selected(base, [0] * len(part), decoder.device)
        with scope(names):
            images = [seen[name] for name in names]
            last = decoder.step(ids, cache, mask, positions, images=images).log_softmax(-1)  # (prompts, vocabulary)
        engine.usage.tokens += int(own.sum())
        _continue(engine, part, cache, mask, last, scope, found)


def _prefix(engine: Engine, prefix: tuple[int, ...]) -> Cache:
    """The cache of one sequence that is shared."""
    decoder, cache = engine.decoder, engine.decoder.new_cache()
    ids = torch.tensor([prefix], device=decoder.device)  # (1, held)
    decoder.step(ids, cache, None, torch.arange(len(prefix), device=decoder.device)[None])
    engine.usage.tokens += len(prefix)
    return cache


def _continue(
    engine: Engine,
    tasks: list[_Task],
    cache: Cache,
    mask: Tensor,
    last: Tensor,
    scope: SequenceScope,
    found: list[dict[int, Likelihood]],
) -> None:
    """The continuations behind contexts that are in the cache. `last`: (prompts, vocabulary) log-probabilities behind each context."""
    best = last.argmax(-1).tolist()  # (prompts,)
    spread: list[tuple[int, int]] = []
    owners = [row for row, task in enumerate(tasks) for _ in task.continuations]
    firsts = [tokens[0] for task in tasks for tokens in task.continuations]
    values = last[owners, firsts].tolist()  # (continuations,)
    heads = iter(values)
    for row, task in enumerate(tasks):
        for index, (place, tokens) in enumerate(zip(task.places, task.continuations, strict=True)):
            found[task.prompt][place] = Likelihood(next(heads), best[row] == tokens[0], len(tokens))
            if len(tokens) > 1:
                spread.append((row, index))
    if len(spread) > 1 and engine.decoder.packs:
        _side_by_side(engine, tasks, cache, mask, scope, found)
        return
    spread.sort(key=lambda each: -len(tasks[each[0]].continuations[each[1]]))
    for start in range(0, len(spread), engine.batch_size):
        part = spread[start : start + engine.batch_size]
        rows = [row for row, _ in part]
        each = [tasks[row].continuations[index] for row, index in part]
        ids, own = padded([tokens[:-1] for tokens in each], engine.encoding.padding, "right", mask.device)  # (continuations, longest)
        whole = torch.cat([mask[rows], own], dim=1)  # (continuations, context + longest)
        positions = (whole.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # (continuations, longest)
        with scope([tasks[row].prompt for row in rows]):
            logits = engine.decoder.behind(ids, selected(cache, rows, mask.device), whole, positions)
        engine.usage.tokens += int(own.sum())
        for (row, index), (value, greedy) in zip(part, _sums(logits, [tokens[1:] for tokens in each]), strict=True):
            task = tasks[row]
            first = found[task.prompt][task.places[index]]
            found[task.prompt][task.places[index]] = Likelihood(first.value + value, first.greedy and greedy, first.tokens)


def _side_by_side(
    engine: Engine, tasks: list[_Task], cache: Cache, mask: Tensor, scope: SequenceScope, found: list[dict[int, Likelihood]]
) -> None:
    """What stands behind the continuations' first tokens, all continuations of a context in one sequence."""
    widest = max(sum(len(tokens) - 1 for tokens in task.continuations) for task in tasks)
    size = max(1, min(len(tasks), engine.batch_size * _WIDTH // widest))
    for start in range(0, len(tasks), size):
        rows = list(range(start, min(start + size, len(tasks))))
        part = [tasks[row] for row in rows]
        if all(len(tokens) == 1 for task in part for tokens in task.continuations):
            continue
        own = cache if len(part) == len(tasks) else selected(cache, rows, mask.device)
        packed = pack([task.continuations for task in part], mask[rows], engine.encoding.padding, engine.model.dtype)
        with scope([task.prompt for task in part]):
            logits = engine.decoder.behind(packed.ids, own, packed.mask, packed.positions)  # (contexts, width, vocabulary)
        engine.usage.tokens += sum(packed.lengths)
        logits = logits[packed.rows, packed.columns]  # (predicted tokens, vocabulary)
        log_probs = logits.gather(-1, packed.targets[:, None])[:, 0] - logits.logsumexp(-1)  # (predicted tokens,)
        count = sum(len(task.continuations) for task in part)
        values = log_probs.new_zeros(count).index_add(0, packed.owners, log_probs)  # (continuations,)
        missed = log_probs.new_zeros(count).index_add(0, packed.owners, (logits.argmax(-1) != packed.targets).float())
        each = zip(values.tolist(), missed.tolist(), strict=True)
        for task in part:
            for place in task.places:
                first, (value, wrong) = found[task.prompt][place], next(each)
                found[task.prompt][place] = Likelihood(first.value + value, first.greedy and not wrong, first.tokens)


def _sums(logits: Tensor, tokens: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """Summed log-probability of tokens, and whether each is the likeliest. `logits`: (sequences, longest, vocabulary), from the left."""
    wanted, mask = padded(tokens, 0, "right", logits.device)  # (sequences, longest)
    logits = logits[:, : wanted.shape[1]]
    log_probs = logits.gather(-1, wanted[..., None])[..., 0] - logits.logsumexp(-1)  # (sequences, longest)
    greedy = ((logits.argmax(-1) == wanted) | (mask == 0)).all(-1)  # (sequences,)
    # Not by a product: a token that is ruled out has -inf, of which nothing may come in behind the end.
    return list(zip(log_probs.masked_fill(mask == 0, 0.0).sum(-1).tolist(), greedy.tolist(), strict=True))


# ---------------------------------------------------------------------- without one
def _whole(
    engine: Engine,
    tasks: list[_Task],
    scope: SequenceScope,
    seen: Sequence[Features | None],
    found: list[dict[int, Likelihood]],
) -> None:
    """Context and continuation as one sequence, padded on the right, where a causal model does not look."""
    every: list[tuple[_Task, int]] = [(task, index) for task in tasks for index in range(len(task.continuations))]
    every.sort(key=lambda each: -len(each[0].context) - len(each[0].continuations[each[1]]))
    size = 1 if engine.decoder.encoder else engine.batch_size  # an encoder would see the padding
    for start in range(0, len(every), size):
        part = every[start : start + size]
        wanted: list[list[int]] = [task.continuations[index] for task, index in part]
        read = [[*task.context, *tokens[:-1]] for (task, _), tokens in zip(part, wanted, strict=True)]
        ids, mask = padded(read, engine.encoding.padding, "right", engine.decoder.device)  # (sequences, longest)
        first = min(len(task.context) for task, _ in part) - 1  # where the earliest continuation is predicted
        names: list[int] = [task.prompt for task, _ in part]
        with scope(names):
            images: list[Any] = [seen[name] for name in names]
            logits = engine.decoder.whole(ids, ids.shape[1] - first, images)  # (sequences, longest - first, vocabulary)
        engine.usage.tokens += int(mask.sum())
        aligned = [logits[row, len(task.context) - 1 - first :] for row, (task, _) in enumerate(part)]
        for (task, index), own, tokens in zip(part, aligned, wanted, strict=True):
            value, greedy = _sums(own[None], [tokens])[0]
            found[task.prompt][task.places[index]] = Likelihood(value, greedy, len(tokens))
