"""Choices: the log-likelihoods of the answers that a choice task offers, each prompt read once for all of them.

The choices of one prompt lie behind it in one sequence:

    prompt  p0 p1 p2 | a0 a1 | b0 b1 b2 | c0            each letter's tokens see the prompt and their own choice, nothing else
    position 0  1  2 | 3  4  | 3  4  5  | 3

so a pass, forward and backward, costs the prompt once instead of once a choice. This needs a model that takes a mask of queries by keys
and the tokens' positions; whether it does is tried once. Others (state-space models, ALiBi), and prompts longer than a sliding window,
get one sequence a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from t2eval.generation.packing import REFUSALS, WINDOWS
from t2eval.training.likelihood import PaddedBatch, Policy, pad

Pairs = Sequence[tuple[list[int], list[int]]]
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_WASTE = 1 / 8
"""On a CPU, the most padding of a batch beside the tokens that it holds."""
_REST: Pairs = [([3, 1, 4, 1, 5], [5, 3]), ([3, 1, 4, 1, 5, 8], [9, 7])]
_TRIALS: tuple[Pairs, Pairs] = ([([3, 1, 4, 1, 5], [9, 2, 6, 11]), *_REST], [([3, 1, 4, 1, 5], [7, 8, 2, 10]), *_REST])
"""Choices of one prompt; in the second the first choice is another."""


class ChoicePolicy:
    """Log-likelihoods of choices under one model.

    Args:
        policy: how likelihoods are measured.
        model: tried on a tiny input, to find out whether a prompt can be read once for all its choices.
    """

    def __init__(self, policy: Policy, model: Any) -> None:
        self.policy = policy
        self._window = _window(model)
        self.packs = self._packs(model)

    @torch.no_grad()
    def _packs(self, model: Any) -> bool:
        if not self.policy.readout.takes("position_ids") or not _attends_only(model):
            return False
        vocabulary = model.get_input_embeddings().weight.shape[0]
        trial, changed = ([(_within(context, vocabulary), _within(more, vocabulary)) for context, more in pairs] for pairs in _TRIALS)
        near = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
        apart = self._apart(model, [trial])  # (choices,)
        try:
            together, beside_another = self._together(model, [trial]), self._together(model, [changed])  # (choices,) each
        except REFUSALS:
            return False
        alone = torch.allclose(together[1:], beside_another[1:], rtol=near / 100, atol=near / 100)  # whatever the first choice says
        return alone and torch.allclose(together, apart, rtol=near, atol=near)

    def sequences(self, choices: Pairs) -> int:
        """How many sequences the model reads for one example."""
        return 1 if self._may_pack(choices) else len(choices)

    def longest(self, choices: Pairs) -> int:
        """How many tokens the longest of these sequences has."""
        return _read(choices) if self._may_pack(choices) else max(len(context) + len(continuation) for context, continuation in choices)

    def likelihoods(self, model: Any, examples: Sequence[Pairs], at_once: int | None = None) -> list[Tensor]:
        """The log-likelihood of each choice of each example; differentiable.

        Args:
            model: what is called.
            examples: of each, the (context, continuation) token ids of its choices.
            at_once: the most sequences of a call; what needs more is called several times, and computed again on the way back.

        Returns:
            One tensor (choices,) an example, float32, in nats.
        """
        parts: list[Tensor | None] = [None] * len(examples)
        packed = [place for place, choices in enumerate(examples) if self._may_pack(choices)]
        others = [place for place in range(len(examples)) if place not in set(packed)]
        for places, run in ((packed, self._together), (others, self._apart)):
            if places:
                counts = [len(examples[place]) for place in places]
                items = [examples[place] for place in places]
                if run == self._apart:
                    items = [[pair] for choices in items for pair in choices]
                values = torch.split(_in_calls(partial(_by_length, run), model, items, at_once), counts)
                for place, value in zip(places, values, strict=True):
                    parts[place] = value
        return [part for part in parts if part is not None]

    def _may_pack(self, choices: Pairs) -> bool:
        longest = max(len(context) + len(continuation) for context, continuation in choices)
        return self.packs and shared_prefix(choices) > 0 and longest <= self._window

    def _apart(self, model: Any, examples: Sequence[Pairs]) -> Tensor:
        """(choices of all examples,): each choice in a sequence of its own."""
        batch = pad([pair for choices in examples for pair in choices], model.device)
        log_probs, _ = self.policy.scores(self.policy.states(model, batch), batch.targets)
        return batch.sums(log_probs)

    def _together(self, model: Any, examples: Sequence[Pairs]) -> Tensor:
        """(choices of all examples,): each prompt in one sequence with its choices."""
        readout = self.policy.readout
        batch, positions, branches = pack(examples, model.device)
        arguments = readout.inputs(batch.tokens) | {"attention_mask": branch_mask(branches, model.dtype), "position_ids": positions}
        states = readout.states(model, arguments, batch.places)
        log_probs, _ = self.policy.scores(states, batch.targets)
        count = sum(map(len, examples))
        return log_probs.new_zeros(count).index_add(0, batch.owners, log_probs)


def _in_calls(run: Callable[[Any, Sequence[Pairs]], Tensor], model: Any, items: Sequence[Pairs], at_once: int | None) -> Tensor:
    """`run` on all items, each of which is one sequence, in calls of at most `at_once`."""
    size = at_once or len(items)
    if len(items) <= size:
        return run(model, items)
    calls = [items[start : start + size] for start in range(0, len(items), size)]
    if not torch.is_grad_enabled():
        return torch.cat([run(model, call) for call in calls])
    return torch.cat([checkpoint(run, model, call, use_reentrant=False) for call in calls])


def _by_length(run: Callable[[Any, Sequence[Pairs]], Tensor], model: Any, items: Sequence[Pairs]) -> Tensor:
    """`run` on all items, (choices of all items,): on a CPU, where padding takes as long as text, those of like lengths at a time."""
    found: dict[int, Tensor] = {}
    for places in alike([_read(choices) for choices in items], model.device):
        part = [items[place] for place in places]
        found |= zip(places, torch.split(run(model, part), [len(choices) for choices in part]), strict=True)
    return torch.cat([found[place] for place in range(len(items))])


def alike(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """The places of some lengths in groups to read at a time: on a CPU, the longest first, groups whose padding is at most an eighth of
    what they hold; elsewhere all of them."""
    if device.type != "cpu":
        return [list(range(len(lengths)))]
    groups: list[list[int]] = []
    held = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        held += lengths[place]
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= (1 + _WASTE) * held:
            groups[-1].append(place)
        else:
            groups.append([place])
            held = lengths[place]
    return groups


def _read(choices: Pairs) -> int:
    """How many tokens a sequence of these choices has."""
    shared = shared_prefix(choices)
    return shared + sum(len(context) + len(continuation) - shared - 1 for context, continuation in choices)


def shared_prefix(pairs: Pairs) -> int:
    """How many tokens the contexts of all pairs begin with in common."""
    shortest = min((context for context, _ in pairs), key=len)
    differs = (place for place, token in enumerate(shortest) if any(context[place] != token for context, _ in pairs))
    return next(differs, len(shortest))


def pack(examples: Sequence[Pairs], device: Any) -> tuple[PaddedBatch, Tensor, Tensor]:
    """Examples with what their choices share written once.

    Args:
        examples: of each, the (context, continuation) token ids of its choices.
        device: of the tensors.

    Returns:
        The batch, whose `owners` are the choices of all examples, counted through; the positions of its tokens; and which choice each token
        belongs to: 0 is all of them, -1 none. (sequences, tokens) int64 both.
    """
    tokens: list[list[int]] = []
    positions: list[list[int]] = []
    branches: list[list[int]] = []
    found: list[tuple[int, int, int, int]] = []  # of each predicted token: sequence, place in it, id, choice
    choice = 0
    for sequence, pairs in enumerate(examples):
        shared = shared_prefix(pairs)
        tokens.append(pairs[0][0][:shared])
        positions.append(list(range(shared)))
        branches.append([0] * shared)
        for number, (context, continuation) in enumerate(pairs, start=1):
            own = (context + continuation)[shared:]
            begin = len(tokens[-1]) - shared  # where the choice's tokens would begin if its sequence began at 0
            for place in range(len(context), len(context) + len(continuation)):
                before = place - 1 if place <= shared else begin + place - 1
                found.append((sequence, before, own[place - shared], choice))
            tokens[-1] += own[:-1]
            positions[-1] += range(shared, shared + len(own) - 1)
            branches[-1] += [number] * (len(own) - 1)
            choice += 1
    width = max(map(len, tokens))

    def square(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)

    targets = torch.tensor([token for _, _, token, _ in found], device=device)
    places = torch.tensor([sequence * width + place for sequence, place, _, _ in found], device=device)
    owners = torch.tensor([owner for _, _, _, owner in found], device=device)
    return PaddedBatch(square(tokens, 0), targets, places, owners), square(positions, 0), square(branches, -1)


def branch_mask(branches: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token sees: what came before it and is shared or of its own choice.

    Args:
        branches: (sequences, tokens) of `pack`.
        dtype: of the model.

    Returns:
        (sequences, 1, tokens, tokens): 0 where it sees, the lowest number where not; added to the attention's scores.
    """
    queries, keys = branches[:, :, None], branches[:, None, :]
    order = torch.ones(branches.shape[1], branches.shape[1], dtype=torch.bool, device=branches.device).tril()  # (tokens, tokens)
    seen = order & ((keys == 0) | (keys == queries))  # (sequences, tokens, tokens)
    mask = torch.zeros(seen.shape, dtype=dtype, device=branches.device).masked_fill(~seen, torch.finfo(dtype).min)
    return mask[:, None]


def _within(ids: list[int], vocabulary: int) -> list[int]:
    return [token % vocabulary for token in ids]


def _attends_only(model: Any) -> bool:
    """Whether tokens see each other by attention alone, with a mask that is added to its scores."""
    config = model.config.get_text_config(decoder=True)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = set(getattr(config, "layer_types", None) or ())
    stateful = getattr(base, "_is_stateful", False)
    return not stateful and kinds <= _ATTENTION and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def _window(model: Any) -> float:
    """The longest sequence all of whose tokens see its beginning."""
    config = model.config.get_text_config(decoder=True)
    found = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int) and size > 0]
    return min(found, default=float("inf"))
