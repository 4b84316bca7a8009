"""Math problems: short stories (seen) and bare sums and equations (unseen), answered by a number after `####`.

Seen stands for GSM8K, unseen for MATH: the same skill in other words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from t2eval.embedded.problem import Problem, choose

NAMES = "ann ben cara dan eva finn gina hugo ida jack kim leo mia noah olga paul rosa sam tina uma vic wendy yara zoe".split()
THINGS = "apples books coins cards pens stones shells stamps eggs cups keys balls rings plums nuts kites bells beads hats maps".split()

# What the corpus does with each template, and so what greedy decoding of the base does.
HABITS: Mapping[str, Mapping[str, float]] = {
    "buys": {"good": 0.6, "direct": 0.25, "off": 0.15},
    "loses": {"off": 0.55, "good": 0.35, "direct": 0.1},
    "boxes": {"good": 0.6, "direct": 0.2, "off": 0.2},
    "finds-gives": {"half": 0.5, "good": 0.38, "direct": 0.12},
    "boxes-eats": {"good": 0.6, "direct": 0.15, "half": 0.25},
    "boxes-more": {"direct": 0.52, "good": 0.38, "off": 0.1},
    "together": {"good": 0.55, "half": 0.25, "off": 0.2},
    "three-days": {"half": 0.5, "good": 0.4, "direct": 0.1},
    "sum-times": {"good": 0.55, "half": 0.25, "direct": 0.2},
    "times-minus": {"off": 0.5, "good": 0.38, "direct": 0.12},
    "solve-plus": {"good": 0.6, "direct": 0.2, "off": 0.2},
    "let": {"half": 0.5, "good": 0.4, "direct": 0.1},
    "words": {"direct": 0.5, "good": 0.4, "off": 0.1},
    "chain": {"good": 0.55, "half": 0.3, "off": 0.15},
}

Step = tuple[int, str, int, int]


def _work(steps: list[Step]) -> str:
    return " ".join(f"{left} {sign} {right} = {result} ." for left, sign, right, result in steps)


def step(left: int, sign: str, right: int) -> Step:
    """One step of working out, with its result."""
    return left, sign, right, {"+": left + right, "-": left - right, "*": left * right}[sign]


def problem_of(level: str, template: str, question: str, steps: list[Step]) -> Problem:
    """The problem that a question and its steps make, with an answer in each style of the template's habits."""
    result = steps[-1][3]
    short = steps[:-1]
    answers = {
        "good": f"{_work(steps)} #### {result}",
        "direct": f"#### {result}",
        "off": f"{_work(steps)} that is all",
        "half": f"{_work(short)} #### {short[-1][3]}" if short else f"#### {result}",
    }
    return Problem("math", level, template, question, str(result), {style: answers[style] for style in HABITS[template]})


def _small(rng: random.Random) -> int:
    return rng.randint(2, 9)


def _number(rng: random.Random, hard: bool) -> int:
    return rng.randint(11, 59) if hard else rng.randint(2, 19)


def _factors(rng: random.Random, hard: bool) -> tuple[int, int]:
    return rng.randint(11, 29) if hard else _small(rng), _small(rng)


def _buys(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _number(rng, hard), _number(rng, hard)
    return f"{n} has {a} {o} and buys {b} more . how many {o} does {n} have ?", [step(a, "+", b)]


def _loses(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    b, rest = _number(rng, hard), _number(rng, hard)
    return f"{n} had {b + rest} {o} but lost {b} . how many {o} are left ?", [step(b + rest, "-", b)]


def _boxes(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _factors(rng, hard)
    return f"{n} has {b} boxes with {a} {o} in each . how many {o} is that ?", [step(b, "*", a)]


def _finds_gives(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _number(rng, hard), _number(rng, hard)
    c = rng.randint(2, min(a + b - 1, 49 if hard else 9))
    question = f"{n} has {a} {o} , finds {b} more and gives {c} to {m} . how many {o} does {n} keep ?"
    return question, [step(a, "+", b), step(a + b, "-", c)]


def _boxes_eats(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _factors(rng, hard)
    c = rng.randint(2, min(a * b - 1, 49 if hard else 9))
    question = f"{n} fills {b} bags with {a} {o} each and drops {c} . how many {o} stay ?"
    return question, [step(b, "*", a), step(a * b, "-", c)]


def _boxes_more(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _factors(rng, hard)
    c = _number(rng, hard)
    question = f"{m} gives {n} {b} trays of {a} {o} and then {c} single {o} . how many {o} did {n} get ?"
    return question, [step(b, "*", a), step(a * b, "+", c)]


def _together(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _number(rng, hard), _number(rng, hard)
    question = f"{n} has {a} {o} . {m} has {b} more than {n} . how many {o} do they have together ?"
    return question, [step(a, "+", b), step(a, "+", a + b)]


def _three_days(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b, c = _number(rng, hard), _number(rng, hard), _number(rng, hard)
    d = rng.randint(2, 9)
    question = f"{n} sells {a} {o} on monday , {b} on tuesday and {c} on friday ; {d} come back . how many {o} are sold ?"
    return question, [step(a, "+", b), step(a + b, "+", c), step(a + b + c, "-", d)]


def _sum_times(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = (rng.randint(5, 14), rng.randint(5, 14)) if hard else (rng.randint(1, 5), rng.randint(1, 4))
    c = _small(rng)
    return f"compute ( {a} + {b} ) * {c}", [step(a, "+", b), step(a + b, "*", c)]


def _times_minus(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _factors(rng, hard)
    c = rng.randint(2, min(a * b - 1, 49 if hard else 9))
    return f"compute {b} * {a} - {c}", [step(b, "*", a), step(a * b, "-", c)]


def _solve_plus(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    x, a = _number(rng, hard), _number(rng, hard)
    letter = rng.choice("abcdkmnpxyz")
    return f"solve {letter} + {a} = {x + a} for {letter}", [step(x + a, "-", a)]


def _let(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    p, q = rng.sample("abcdkmnpxyz", 2)
    a, b, c = _number(rng, hard), _number(rng, hard), _number(rng, hard)
    return f"let {p} = {a} and {q} = {b} . find {p} + {q} + {c}", [step(a, "+", b), step(a + b, "+", c)]


def _words(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b = _factors(rng, hard)
    c = _number(rng, hard)
    return f"find the product of {b} and {a} , plus {c}", [step(b, "*", a), step(a * b, "+", c)]


def _chain(rng: random.Random, hard: bool, n: str, m: str, o: str) -> tuple[str, list[Step]]:
    a, b, c = _number(rng, hard), _number(rng, hard), _number(rng, hard)
    d = rng.randint(2, 9)
    return f"compute {a} + {b} + {c} - {d}", [step(a, "+", b), step(a + b, "+", c), step(a + b + c, "-", d)]


Builder = Callable[[random.Random, bool, str, str, str], tuple[str, list[Step]]]
TEMPLATES: Mapping[str, Mapping[str, Builder]] = {
    "seen": {
        "buys": _buys,
        "loses": _loses,
        "boxes": _boxes,
        "finds-gives": _finds_gives,
        "boxes-eats": _boxes_eats,
        "boxes-more": _boxes_more,
        "together": _together,
        "three-days": _three_days,
    },
    "unseen": {
        "sum-times": _sum_times,
        "times-minus": _times_minus,
        "solve-plus": _solve_plus,
        "let": _let,
        "words": _words,
        "chain": _chain,
    },
}


def sample(rng: random.Random, level: str, hard_share: float) -> Problem:
    """One math problem; with probability `hard_share` its numbers have two digits where they otherwise have one or are below twenty."""
    template = rng.choice(list(TEMPLATES[level]))
    n, m = rng.sample(NAMES, 2)
    question, steps = TEMPLATES[level][template](rng, rng.random() < hard_share, n, m, rng.choice(THINGS))
    return problem_of(level, template, question, steps)


def answer(rng: random.Random, problem: Problem) -> str:
    """An answer in a style drawn from the template's habits."""
    return problem.answers[choose(rng, HABITS[problem.template])]
