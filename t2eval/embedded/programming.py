"""Code problems: a sentence (seen) or a signature with a comment (unseen) that says what a function does to x; the answer is run on tests.

Seen stands for MBPP, unseen for HumanEval. The words for operations follow a Zipf law, so that the corpus shows the rare ones a few times
only: they are what keeps the best methods below 100%.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from t2eval.embedded.problem import Problem, choose

# word → (expression on x, whether a number follows the word). Common words first: rank decides how often the corpus uses one.
OPERATIONS: Mapping[str, str] = {
    "add": "x + {k}",
    "subtract": "x - {k}",
    "double": "x * 2",
    "multiply by": "x * {k}",
    "negate": "- x",
    "square": "x ** 2",
    "halve": "x // 2",
    "triple": "x * 3",
    "increment": "x + 1",
    "raise by": "x + {k}",
    "decrement": "x - 1",
    "lower by": "x - {k}",
    "divide by": "x // {k}",
    "scale by": "x * {k}",
    "cube": "x ** 3",
    "quadruple": "x * 4",
    "reduce mod": "x % {k}",
    "grow by": "x + {k}",
    "shrink by": "x - {k}",
    "quintuple": "x * 5",
    "cap at": "min ( x , {k} )",
    "floor at": "max ( x , {k} )",
    "flip": "- x",
    "sextuple": "x * 6",
    "take the parity": "x % 2",
    "third": "x // 3",
    "boost by": "x + {k}",
    "septuple": "x * 7",
    "trim by": "x - {k}",
    "quarter": "x // 4",
    "octuple": "x * 8",
    "dozen up": "x * 12",
    "score up": "x * 20",
    "decimate": "x // 10",
    "take the size": "abs ( x )",
    "take the last digit": "x % 10",
    "wrap at": "x % {k}",
    "magnify by": "x * {k}",
    "dock": "x - {k}",
    "tack on": "x + {k}",
}
WORDS = list(OPERATIONS)
_ZIPF = [1 / (rank + 3) ** 1.6 for rank in range(len(WORDS))]
RARE = 18

HABITS: Mapping[str, Mapping[str, float]] = {
    "then": {"good": 0.55, "nested": 0.3, "off": 0.15},
    "first-next": {"off": 0.52, "good": 0.38, "nested": 0.1},
    "before": {"half": 0.5, "good": 0.4, "off": 0.1},
    "if": {"good": 0.6, "off": 0.25, "half": 0.15},
    "named": {"nested": 0.52, "good": 0.38, "off": 0.1},
    "comment": {"good": 0.5, "nested": 0.35, "off": 0.15},
    "comment-before": {"half": 0.5, "good": 0.4, "off": 0.1},
    "doc": {"off": 0.5, "good": 0.38, "nested": 0.12},
    "doc-if": {"good": 0.55, "half": 0.3, "off": 0.15},
}
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "seen": ("then", "first-next", "before", "if", "named"),
    "unseen": ("comment", "comment-before", "doc", "doc-if"),
}
FUNCTIONS = "f g h go run step move calc work turn shift blend mix fold spin mark".split()
_PROBES = (-7, 0, 1, 6, 25)


def _operations(rng: random.Random, count: int, hard: bool) -> list[tuple[str, str]]:
    """`count` different operations as (words, expression); a hard problem has at least one rare word."""
    chosen: list[str] = []
    while len(chosen) < count:
        word = rng.choices(WORDS, weights=_ZIPF)[0]
        if word not in chosen:
            chosen.append(word)
    if hard:
        rare = WORDS.index(rng.choices(WORDS[RARE:], weights=_ZIPF[RARE:])[0])
        chosen[rng.randrange(count)] = WORDS[rare]
    result = []
    for word in chosen:
        expression = OPERATIONS[word]
        if "{k}" in expression:
            k = rng.randint(2, 9) if rng.random() < 0.5 else rng.randint(11, 99)
            result.append((f"{word} {k}", expression.format(k=k)))
        else:
            result.append((word, expression))
    return result


def _steps(name: str, expressions: list[str]) -> str:
    body = "".join(f"\n x = {expression}" for expression in expressions)
    return f"def {name} ( x ) :{body}\n return x"


def _nested(name: str, expressions: list[str]) -> str:
    inner = "x"
    for expression in expressions:
        inner = " ".join((inner if inner == "x" else f"( {inner} )") if word == "x" else word for word in expression.split())
    return f"def {name} ( x ) :\n return {inner}"


def _branch(name: str, limit: int, then: str, otherwise: str) -> str:
    return f"def {name} ( x ) :\n if x > {limit} :\n  x = {then}\n else :\n  x = {otherwise}\n return x"


def _asserts(name: str, program: str) -> str:
    scope: dict[str, object] = {}
    exec(program, scope)  # our own generated reference program
    function = scope[name]
    assert callable(function)
    return "\n".join(f"assert {name}({x}) == {function(x)}" for x in _PROBES)


def _chain_question(template: str, name: str, words: list[str]) -> str:
    if template == "then":
        return f"write {name} ( x ) : " + " , then ".join(words)
    if template == "first-next":
        return f"write {name} ( x ) . first " + " . next ".join(words)
    if template == "before":
        return f"write {name} ( x ) : {words[-1]} , but before that {' , then '.join(words[:-1])}"
    if template == "named":
        return f"i need a function of x with the name {name} . it should {' and '.join(words)}"
    if template == "comment":
        return f"complete : def {name} ( x ) : # {' ; '.join(words)}"
    if template == "comment-before":
        return f"complete : def {name} ( x ) : # {words[-1]} after you {' ; '.join(words[:-1])}"
    return f'complete : def {name} ( x ) : " {" , ".join(words)} "'


def sample(rng: random.Random, level: str, hard_share: float) -> Problem:
    """One code problem; with probability `hard_share` it uses a rare word, and more operations."""
    template = rng.choice(TEMPLATES[level])
    hard = rng.random() < hard_share
    name = rng.choice(FUNCTIONS)
    if template.endswith("if"):
        (then, a), (otherwise, b) = _operations(rng, 2, hard)
        limit = rng.randint(2, 30)
        opening = f"write {name} ( x ) :" if template == "if" else f'complete : def {name} ( x ) : "'
        closing = "" if template == "if" else ' "'
        question = f"{opening} if x is more than {limit} , {then} , or else {otherwise}{closing}"
        good, half = _branch(name, limit, a, b), _steps(name, [a])
    else:
        operations = _operations(rng, rng.choice((3, 4)) if hard else rng.choice((2, 3)), hard)
        words, expressions = [word for word, _ in operations], [expression for _, expression in operations]
        question = _chain_question(template, name, words)
        good, half = _steps(name, expressions), _steps(name, [expressions[-1]])
    answers = {"good": good, "half": half, "off": f"use the steps in order . {name} is then easy"}
    if "nested" in HABITS[template]:
        answers["nested"] = _nested(name, expressions)
    kept = {style: answers[style] for style in HABITS[template]}
    return Problem("code", level, template, question, good, kept, _asserts(name, good))


def answer(rng: random.Random, problem: Problem) -> str:
    """An answer in a style drawn from the template's habits."""
    return problem.answers[choose(rng, HABITS[problem.template])]
