"""Small talk: questions of no expert's skill, so that dispatch has something to send to `others`."""

from __future__ import annotations

import random

from t2eval.embedded.arithmetic import NAMES, THINGS
from t2eval.embedded.facts import KIND_OF, PLACES
from t2eval.embedded.problem import Problem

_MOODS = "happy sad short long funny strange quiet loud kind brave".split()
_TONGUES = "french latin greek welsh dutch polish swahili thai hindi finnish".split()


def sample(rng: random.Random) -> Problem:
    """One question of small talk with its only answer."""
    mood, thing, place, name = rng.choice(_MOODS), rng.choice(list(KIND_OF)), rng.choice(PLACES), rng.choice(NAMES)
    forms = {
        "story": (f"tell me a {mood} story about a {thing} in the {place}", f"once a {thing} was {mood} in the {place} . the end"),
        "translate": (f"how do you say {thing} and {rng.choice(THINGS)} in {rng.choice(_TONGUES)} ?", "i do not know that tongue"),
        "weather": (f"will it rain near the {place} when {name} brings {rng.choice(THINGS)} ?", "maybe it will rain"),
        "letter": (f"write a {mood} letter to {name} about the {thing}", f"dear {name} , the {thing} is {mood} . yours"),
    }
    template = rng.choice(list(forms))
    question, reply = forms[template]
    return Problem("others", "seen", template, question, "others", {"good": reply})
