"""Reasoning problems: which of the options fits, in a little world of things, kinds and places; answered by the option's word after `####`.

Seen (one fact) stands for ARC-Easy, unseen (negation, two facts) for ARC-Challenge. Which thing is kept in which place is drawn once, from
a fixed seed. Things follow a Zipf law: the corpus says little about the rare ones, which keeps the best methods below 100%.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from t2eval.embedded.problem import Problem, choose

# kind → what one does with it, and its things. The order of the things within a kind decides how often the corpus names one.
KINDS: Mapping[str, tuple[str, str]] = {
    "fruit": ("grows on trees", "apple pear plum cherry peach lemon lime mango fig quince papaya lychee medlar"),
    "vehicle": ("carries people", "car truck bus train ship tram canoe sled wagon ferry glider rickshaw dinghy"),
    "tool": ("helps to build", "hammer saw drill wrench shovel rake pliers chisel file anvil trowel mallet awl"),
    "animal": ("eats and breathes", "dog cat horse wolf goat otter badger camel lynx heron ibex stoat tapir"),
    "garment": ("keeps you warm", "coat shirt scarf glove sock vest cloak jumper mitten shawl poncho kilt tunic"),
    "instrument": ("makes music", "drum piano flute violin harp horn banjo cello oboe lute zither viola fife"),
    "furniture": ("stands in a room", "table chair bed sofa desk shelf bench stool dresser cradle ottoman settee commode"),
    "vegetable": ("grows in soil", "carrot potato onion leek radish turnip beet celery kale chard fennel parsnip salsify"),
    "metal": ("melts in a furnace", "iron gold silver copper tin lead zinc nickel cobalt brass pewter bismuth indium"),
    "vessel": ("holds water", "cup bottle jug bucket bowl kettle flask barrel vase goblet beaker carafe ewer"),
}
PLACES = "cellar attic garden kitchen barn tower harbor market library chapel".split()
KIND_OF = {thing: kind for kind, (_, things) in KINDS.items() for thing in things.split()}
_WEIGHT = {thing: 1 / (rank + 2) ** 1.5 for _, things in KINDS.values() for rank, thing in enumerate(things.split())}
_world = random.Random(2501)
PLACE_OF = {thing: _world.choice(PLACES) for thing in KIND_OF}
RARE = {thing for _, things in KINDS.values() for thing in things.split()[5:]}

HABITS: Mapping[str, Mapping[str, float]] = {
    "kind": {"good": 0.6, "direct": 0.25, "off": 0.15},
    "use": {"off": 0.52, "good": 0.38, "direct": 0.1},
    "place": {"good": 0.58, "direct": 0.27, "off": 0.15},
    "where": {"first": 0.5, "good": 0.4, "off": 0.1},
    "same-kind": {"off": 0.5, "good": 0.4, "direct": 0.1},
    "not-kind": {"good": 0.55, "first": 0.3, "off": 0.15},
    "not-use": {"off": 0.5, "good": 0.4, "direct": 0.1},
    "kind-place": {"good": 0.55, "direct": 0.25, "off": 0.2},
    "same-place": {"first": 0.5, "good": 0.4, "off": 0.1},
}
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "seen": ("kind", "use", "place", "where", "same-kind"),
    "unseen": ("not-kind", "not-use", "kind-place", "same-place"),
}


def article(noun: str) -> str:
    """The noun behind `a` or `an`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


Draw = Callable[[], str]


def _draw(rng: random.Random, hard: bool, fits: Callable[[str], bool] | None = None) -> Draw:
    """Draws things for which `fits` holds, by their frequency; rare ones if the problem is hard."""
    pool = [thing for thing in KIND_OF if fits is None or fits(thing)]
    rare = [thing for thing in pool if thing in RARE] if hard else []
    pool = rare or pool
    weights = [_WEIGHT[thing] for thing in pool]
    return lambda: rng.choices(pool, weights=weights)[0]


def _thing(rng: random.Random, hard: bool, fits: Callable[[str], bool] | None = None) -> str:
    return _draw(rng, hard, fits)()


def _others(rng: random.Random, count: int, fits: Callable[[str], bool]) -> list[str]:
    draw = _draw(rng, False, fits)
    chosen: list[str] = []
    while len(chosen) < count:
        thing = draw()
        if thing not in chosen:
            chosen.append(thing)
    return chosen


def fact(thing: str, template: str) -> str:
    kind = KIND_OF[thing]
    if template in ("kind", "not-kind", "same-kind"):
        return f"{thing} is {article(kind)} ."
    if template in ("use", "not-use"):
        return f"{thing} is {article(kind)} and {KINDS[kind][0]} ."
    if template == "kind-place":
        return f"{thing} is {article(kind)} and is in the {PLACE_OF[thing]} ."
    return f"{thing} is in the {PLACE_OF[thing]} ."


def _pose(rng: random.Random, template: str, hard: bool) -> tuple[str, str, list[str], str]:
    """The question without its options, the right thing, the wrong options, and what to recall before the answer's own fact."""
    wrong = 4 if hard else 2
    thing = _thing(rng, hard)
    kind, place, use = KIND_OF[thing], PLACE_OF[thing], KINDS[KIND_OF[thing]][0]
    if template == "kind":
        return f"which of these is {article(kind)} ?", thing, _others(rng, wrong, lambda t: KIND_OF[t] != kind), ""
    if template == "use":
        return f"which one {use} ?", thing, _others(rng, wrong, lambda t: KIND_OF[t] != kind), ""
    if template == "place":
        return f"which of these is in the {place} ?", thing, _others(rng, wrong, lambda t: PLACE_OF[t] != place), ""
    if template == "where":
        return f"someone walks into the {place} . what do they find ?", thing, _others(rng, wrong, lambda t: PLACE_OF[t] != place), ""
    if template == "same-kind":
        peer = _thing(rng, False, lambda t: KIND_OF[t] == kind and t != thing)
        recall = f"{peer} is {article(kind)} . "
        return f"what is of the same kind as {article(peer)} ?", thing, _others(rng, wrong, lambda t: KIND_OF[t] != kind), recall
    if template in ("not-kind", "not-use"):
        other = rng.choice([k for k in KINDS if k != kind])
        clause = f"is not {article(other)}" if template == "not-kind" else f"never {KINDS[other][0]}"
        return f"which of these {clause} ?", thing, _others(rng, wrong, lambda t: KIND_OF[t] == other), ""
    if template == "kind-place":
        others = _others(rng, wrong, lambda t: (KIND_OF[t] == kind) != (PLACE_OF[t] == place))
        return f"which {kind} is in the {place} ?", thing, others, ""
    peer = _thing(rng, False, lambda t: PLACE_OF[t] == place and t != thing)
    recall = f"{peer} is in the {place} . "
    return f"what is kept where the {peer} is ?", thing, _others(rng, wrong, lambda t: PLACE_OF[t] != place), recall


def sample(rng: random.Random, level: str, hard_share: float) -> Problem:
    """One reasoning problem; with probability `hard_share` it asks for a rare thing among five options instead of three."""
    template = rng.choice(TEMPLATES[level])
    question, thing, wrong, recall = _pose(rng, template, rng.random() < hard_share)
    options = [thing, *wrong]
    rng.shuffle(options)
    answers = {
        "good": f"{recall}{fact(thing, template)} #### {thing}",
        "direct": f"#### {thing}",
        "off": f"{recall}{fact(thing, template)} so that one",
        "first": f"the first one . #### {options[0]}",
    }
    kept = {style: answers[style] for style in HABITS[template]}
    return Problem("reasoning", level, template, f"{question} {' , '.join(options)}", thing, kept)


def answer(rng: random.Random, problem: Problem) -> str:
    """An answer in a style drawn from the template's habits."""
    return problem.answers[choose(rng, HABITS[problem.template])]
