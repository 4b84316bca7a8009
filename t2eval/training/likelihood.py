"""Likelihood: the log-probability of each token of an answer, and the divergence from the base model at it, in little memory.

With V the vocabulary and n tokens, the plain form holds several float32 tensors (n, V) until the backward pass. Here `_Scores` takes the
tokens in chunks of at most `CHUNK_BYTES` a tensor. What it returns is one number a token, so the gradient in a token's hidden state is
that number's own gradient times what comes from behind: it is computed with the chunk, and kept as (n, hidden). Nothing is computed again.

Log-probabilities are those of the policy that was sampled from: its logits are divided by the temperature, and so are the base's for the
divergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from t2eval.training.readout import Readout
from t2eval.vision.features import Features

Direction = Literal["new_to_base", "base_to_new"]
CHUNK_BYTES = 64 * 2**20
"""Of one float32 tensor (tokens, vocabulary): 130 tokens of Llama 3's vocabulary. Some six of them exist at once."""
_IMPOSSIBLE = -1e9
"""A logit of what is never sampled; -inf would make 0 times inf of a divergence."""


def divergence(new: Tensor, base: Tensor, direction: Direction) -> Tensor:
    """The exact Kullback-Leibler divergence of categorical distributions.

    Args:
        new: (…, outcomes) logits of the policy; differentiable.
        base: (…, outcomes) logits of the base model.
        direction: `new_to_base`: D(new ‖ base), the paper's; `base_to_new`: D(base ‖ new).

    Returns:
        (…), in nats.
    """
    new, base = new.log_softmax(-1), base.log_softmax(-1)
    first, second = (new, base) if direction == "new_to_base" else (base, new)
    return (first.exp() * (first - second)).sum(-1)


@dataclass(frozen=True)
class PaddedBatch:
    """(prompt, answer) pairs as one batch, padded on the right. The last token of a pair is predicted and never read.

    Attributes:
        tokens: (sequences, tokens) ids, int64.
        targets: (n,) ids of all answer tokens, sequence by sequence, int64.
        places: (n,) where in the flattened `tokens` each of them is predicted, int64.
        owners: (n,) which sequence each of them is in, int64.
        features: of each sequence's images.
    """

    tokens: Tensor
    targets: Tensor
    places: Tensor
    owners: Tensor
    features: tuple[Features | None, ...] = ()

    def sums(self, values: Tensor) -> Tensor:
        """(n,) values of the answers' tokens as (sequences,) sums."""
        return values.new_zeros(len(self.tokens)).index_add(0, self.owners, values)


def pad(pairs: Sequence[tuple[list[int], list[int]]], device: Any, features: Sequence[Features | None] = ()) -> PaddedBatch:
    """One padded batch.

    Args:
        pairs: the token ids of prompts and answers, at least one of each.
        device: of the tensors.
        features: of each prompt's images.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    tokens = torch.tensor([(read := (prompt + answer)[:-1]) + [0] * (width - len(read)) for prompt, answer in pairs])
    targets = [token for _, answer in pairs for token in answer]
    places = [
        sequence * width + len(prompt) - 1 + number for sequence, (prompt, answer) in enumerate(pairs) for number in range(len(answer))
    ]
    owners = [sequence for sequence, (_, answer) in enumerate(pairs) for _ in answer]
    target, place, owner = (torch.tensor(values, dtype=torch.long, device=device) for values in (targets, places, owners))
    return PaddedBatch(tokens.to(device), target, place, owner, tuple(features))


@dataclass(frozen=True)
class Policy:
    """How the likelihood of answers is measured.

    Attributes:
        readout: the model's.
        temperature: of sampling.
        direction: of the divergence.
        never: ids that are never sampled, such as that of an image.
        chunk_bytes: of one float32 tensor (tokens, vocabulary).
    """

    readout: Readout
    temperature: float = 1.0
    direction: Direction = "new_to_base"
    never: tuple[int, ...] = ()
    chunk_bytes: int = CHUNK_BYTES

    def states(self, model: Any, batch: PaddedBatch) -> Tensor:
        """What predicts each answer token of a batch: (n, width), differentiable (`Readout.states`)."""
        return self.readout.states(model, self.readout.inputs(batch.tokens, batch.features), batch.places)

    def scores(self, states: Tensor, targets: Tensor, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and divergences.

        Args:
            states: (n, width) of `states`; differentiable.
            targets: (n,) the tokens that came.
            base: the base model's states, (n, width), or None where no divergence is asked for.

        Returns:
            The log-probability of each target and the divergence at its place, (n,) float32 each, in nats (zeros without `base`).
        """
        if self.readout.split:
            return _Scores.apply(states, targets, base, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.plain(states, targets, base)

    def plain(self, states: Tensor, targets: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
        """`scores` in one piece."""
        logits = self._logits(states)  # (n, vocabulary)
        log_probs = logits.log_softmax(-1).gather(-1, targets[:, None].to(logits.device))[:, 0]  # (n,)
        if base is None:
            return log_probs, torch.zeros_like(log_probs)
        return log_probs, divergence(logits, self._logits(base), self.direction)

    def _logits(self, states: Tensor) -> Tensor:
        """(n, vocabulary) float32: of the distribution that answers are drawn from."""
        logits = self.readout.logits(states) / self.temperature
        return logits.index_fill(-1, torch.tensor(self.never, device=logits.device), _IMPOSSIBLE) if self.never else logits

    def tokens_at_once(self, vocabulary: int) -> int:
        """How many tokens a chunk has."""
        return max(1, self.chunk_bytes // (4 * vocabulary))


class _Scores(torch.autograd.Function):
    """`Policy.plain`, a chunk of tokens at a time, forward and backward."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, base: Tensor | None, policy: Policy) -> tuple[Tensor, Tensor]:
        # states (n, hidden), targets (n,), base (n, hidden)
        differentiable = ctx.needs_input_grad[0]
        size = policy.tokens_at_once(policy.readout.vocabulary)
        log_probs = torch.empty(len(states), dtype=torch.float32, device=states.device)
        divergences = torch.zeros_like(log_probs)
        slopes = [torch.empty_like(states) for _ in range(1 if base is None else 2)] if differentiable else []  # (n, hidden) each
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            with torch.set_grad_enabled(differentiable):
                chunk = states[part].detach().requires_grad_(differentiable)  # (chunk, hidden)
                found = policy.plain(chunk, targets[part], None if base is None else base[part])  # (chunk,) each
                sums = [values.sum() for values in found]
            log_probs[part], divergences[part] = found[0].detach(), found[1].detach()
            for number, slope in enumerate(slopes):
                last = number == len(slopes) - 1
                slope[part] = torch.autograd.grad(sums[number], chunk, retain_graph=not last)[0]
            del found, sums
        ctx.save_for_backward(*slopes)
        return log_probs, divergences

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_probs: Tensor, of_divergences: Tensor) -> tuple[Tensor | None, None, None, None]:
        slopes = ctx.saved_tensors
        gradient = slopes[0] * of_log_probs[:, None].to(slopes[0].dtype)  # (n, hidden)
        if len(slopes) > 1:
            gradient += slopes[1] * of_divergences[:, None].to(slopes[1].dtype)
        return gradient, None, None, None


def cut_left(pairs: Sequence[tuple[list[int], list[int]]], max_length: int) -> list[tuple[list[int], list[int]]]:
    """Pairs without the beginning of what a model has no room for. As with HFLM, all but the last token are read, `max_length` of them.

    Args:
        pairs: token ids of contexts and continuations.
        max_length: the most tokens that the model reads.
    """
    cut = []
    for context, continuation in pairs:
        extra = max(0, len(context) + len(continuation) - max_length - 1)
        whole = (context + continuation)[extra:]
        first = max(1, len(context) - extra)  # an answer that fills the window is predicted from its own first token on
        cut.append((whole[:first], whole[first:]))
    return cut


def shared_prefix(pairs: Sequence[tuple[list[int], list[int]]]) -> int:
    """How many tokens the contexts of all pairs begin with in common."""
    shortest = min((context for context, _ in pairs), key=len)
    return next((place for place, token in enumerate(shortest) if any(context[place] != token for context, _ in pairs)), len(shortest))
