"""Completion: what a model wrote behind a prompt; and likelihood: how probable it finds a given text there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t2eval.vision.features import Features

Stopped = Literal["end", "stop", "length"]
"""Why a completion ends: an end-of-sequence token, a stop string, or the limit of new tokens."""


@dataclass(frozen=True)
class Completion:
    """One completion.

    Attributes:
        prompt: the token ids that the model read (cut from the left where they were too many).
        ids: the token ids that it wrote, up to and with the end token, or the token that completes a stop string.
        text: what a task grades: without stop string, special tokens and thoughts.
        log_probs: of each id under the distribution that it was drawn from (greedy: under the processed logits), in nats.
        stopped: why it ends.
        features: the features of the prompt's images.
    """

    prompt: list[int]
    ids: list[int]
    text: str
    log_probs: list[float]
    stopped: Stopped
    features: Features | None = None


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of a continuation, in nats; whether greedy decoding would say it; its number of tokens."""

    value: float
    greedy: bool
    tokens: int
