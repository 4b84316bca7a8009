"""A problem of the embedded world: a question, how a good answer works it out, and the habits that the corpus has with it.

Latent skill is made here. A corpus of the web answers one kind of question well and another badly, whatever its authors could do. So
each template (a way of asking) has its own mix of answer **styles**; a model pretrained on that corpus learns all of them, and greedy
decoding follows the template's commonest. Training an expert elicits the good style where it is not the habit; it teaches no new skill.

Styles: `good` works the answer out and ends `#### answer`; `direct` gives the answer at once; `half` stops one step early; `off` works it
out but never says `####`; `first` takes the first option; `nested` writes one nested expression instead of steps.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One question of a family.

    Attributes:
        family: `math`, `code`, `reasoning`, `vision` or `others`.
        level: `seen` or `unseen`.
        template: the name of the way of asking; habits hang on it.
        question: the text that the model is asked; of a vision problem, with what the picture says in the picture's place.
        target: the right final answer (a number, an option's word); for code the reference program.
        answers: style → answer text, for every style that this template's habits name.
        test: for code, assert statements that a right program passes; else empty.
        asked: for vision, the question with `<image>` in the picture's place; else empty.
        picture: for vision, the picture's rows; else empty.
    """

    family: str
    level: str
    template: str
    question: str
    target: str
    answers: Mapping[str, str]
    test: str = ""
    asked: str = ""
    picture: tuple[str, ...] = ()


def bucket(question: str) -> int:
    """0 to 99, from a hash of the question alone: the same question falls into the same split on every machine and in every version."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 100


def choose(rng: random.Random, weights: Mapping[str, float]) -> str:
    """A key drawn with probability proportional to its weight."""
    return rng.choices(list(weights), weights=list(weights.values()))[0]
