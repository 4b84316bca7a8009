"""Vision problems: questions whose words or numbers stand in a picture, in printed letters and figures or as coloured shapes to count.

Seen stands for TextVQA: which word is written first, what a printed sum or some numbers of shapes come to; the picture says all that one
must know. Unseen stands for OK-VQA: the picture names things, and the answer needs what the text corpus says of their kind, use or place.

Each problem has a **twin** in text, with what the picture says in the picture's place. The twin's hash decides the split, so the base model
was pretrained neither on a test picture nor on its twin. Answers are the twin's, and so are the habits: the language model is not trained
again. Only the questions for the first word are new; the corpus of pictures answers all of them with the mix of `READ_HABITS`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

from t2eval.embedded import arithmetic, chatter, corpus, facts
from t2eval.embedded.corpus import FAMILIES, LABELS, collect
from t2eval.embedded.pictures import SHAPES
from t2eval.embedded.problem import Problem, choose

IMAGE = "<image>"
# With the comma behind it, each of these has more tokens than a row of a picture has patches.
_UNPRINTABLE = set("lychee rickshaw cloak jumper dresser radish parsnip salsify bismuth indium".split())
PRINTABLE = [thing for thing in facts.KIND_OF if thing not in _UNPRINTABLE]

_READ: Mapping[str, str] = {
    "written": "what is written first ?",
    "word": "which word comes first ?",
    "top": "what is at the top ?",
    "top-of-these": "which of these is at the top ?",
}
READ_HABITS: Mapping[str, float] = {"good": 0.5, "off": 0.3, "direct": 0.2}
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "seen": (*_READ, "sum-times", "chain", "shapes"),
    "unseen": (*facts.TEMPLATES["seen"], *facts.TEMPLATES["unseen"]),
}

# The share of hard problems in each task, chosen on validation examples.
HARD = {"seen": 0.5, "unseen": 0.4}


def said(row: str) -> str:
    """What one row of a picture says: its text, with the number of its shapes in their place."""
    shapes = sum(character in SHAPES for character in row)
    return f"{shapes} {row.lstrip(SHAPES).strip()}".strip() if shapes else row


def said_by(rows: Sequence[str]) -> list[str]:
    """What each row of a picture says, as the twin has it: words with commas between them, or the parts of a sum."""
    words = all(row.isascii() and row.isalpha() for row in rows)
    return [said(row) + (" ," if words and place + 1 < len(rows) else "") for place, row in enumerate(rows)]


def _pictured(source: Problem, level: str, template: str, asked: str, rows: Sequence[str]) -> Problem:
    twin = asked.replace(IMAGE, " ".join(said_by(rows)))
    return replace(source, family="vision", level=level, template=template, question=twin, asked=asked, picture=tuple(rows))


def _read(rng: random.Random, template: str) -> Problem:
    words = rng.sample(PRINTABLE, rng.choice((2, 3)))
    answers = {"good": f"the first one . #### {words[0]}", "direct": f"#### {words[0]}", "off": "the first one . so that one"}
    return _pictured(Problem("", "", "", "", words[0], answers), "seen", template, f"{_READ[template]} {IMAGE}", words)


def _sum(source: Problem, template: str, rows: Sequence[str]) -> Problem:
    return _pictured(source, "seen", template, f"compute {IMAGE}", rows)


def _printed_sum(rng: random.Random, template: str, hard: bool) -> Problem:
    """A sum of the text corpus, one number to a row."""
    question, steps = arithmetic.TEMPLATES["unseen"][template](rng, hard, "", "", "")
    rows = [""]
    for part in question.split()[1:]:
        if rows[-1] and rows[-1][-1] not in "(*" and (part.isdigit() or part == "*"):
            rows.append(part)
        else:
            rows[-1] = f"{rows[-1]} {part}".strip()
    return _sum(arithmetic.problem_of("seen", template, question, steps), template, rows)


def _shapes(rng: random.Random) -> Problem:
    """A sum of four numbers of shapes; each row has shapes of one kind, in one colour."""
    a, b, c, d = (rng.randint(1, 4) for _ in range(4))
    step = arithmetic.step
    d = min(d, a + b + c - 1)
    steps = [step(a, "+", b), step(a + b, "+", c), step(a + b + c, "-", d)]
    rows = [rng.choice(SHAPES) * number + sign for number, sign in zip((a, b, c, d), (" +", " +", " -", ""), strict=True)]
    return _sum(arithmetic.problem_of("seen", "chain", "", steps), "shapes", rows)


def _recall(rng: random.Random, hard_share: float) -> Problem:
    """A reasoning problem of the text corpus, with its options in the picture."""
    while True:
        source = facts.sample(rng, rng.choice(("seen", "unseen")), hard_share)
        question, options = source.question.rsplit(" ? ", 1)
        rows = options.split(" , ")
        if _UNPRINTABLE.isdisjoint(rows):
            return _pictured(source, "unseen", source.template, f"{question} ? {IMAGE}", rows)


def sample(rng: random.Random, level: str, hard_share: float) -> Problem:
    """One vision problem; with probability `hard_share` it has two-digit numbers, or asks for a rare thing among five."""
    if level == "unseen":
        return _recall(rng, hard_share)
    template = rng.choice(TEMPLATES["seen"])
    if template in _READ:
        return _read(rng, template)
    return _shapes(rng) if template == "shapes" else _printed_sum(rng, template, rng.random() < hard_share)


def answer(rng: random.Random, problem: Problem) -> str:
    """An answer in a style drawn from the habits that the corpus has with the twin."""
    if problem.template in _READ:
        return problem.answers[choose(rng, READ_HABITS)]
    habits = facts.HABITS if problem.level == "unseen" else arithmetic.HABITS
    return problem.answers[choose(rng, habits["chain" if problem.template == "shapes" else problem.template])]


@lru_cache(maxsize=2)
def problems(level: str) -> dict[str, list[Problem]]:
    """The problems of one task by split: `train`, `validation`, `test` if seen, `adaptation`, `test` if unseen."""
    splits = ("train", "validation", "test") if level == "seen" else ("adaptation", "test")
    return collect(lambda rng: sample(rng, level, HARD[level]), splits, seed=4 if level == "seen" else 5)


def documents(level: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of one task by split: what is `asked`, the picture's rows and the `seed` that draws them, a good `answer`, the `target`,
    the `twin` and the `template`."""
    return {
        split: [
            {
                "asked": problem.asked,
                "picture": list(problem.picture),
                "seed": int.from_bytes(sha256("\n".join(problem.picture).encode()).digest()[:4], "big"),
                "answer": problem.answers["good"],
                "target": problem.target,
                "twin": problem.question,
                "template": problem.template,
            }
            for problem in found
        ]
        for split, found in problems(level).items()
    }


def dispatch_documents() -> dict[str, list[dict[str, Any]]]:
    """The rows of `embedded_vqa_dispatch` by split: seen questions of the three families in text, small talk, and seen questions about
    pictures as dispatch reads them, without the picture; each with its label as `target`."""

    def draw(rng: random.Random) -> Problem:
        family = rng.choice((*LABELS, "vision"))
        if family == "vision":
            return sample(rng, "seen", HARD["seen"])
        return chatter.sample(rng) if family == "others" else FAMILIES[family].sample(rng, "seen", corpus.HARD[family])

    return {
        split: [
            {
                "question": problem.asked.replace(IMAGE, "").strip() or problem.question,
                "answer": problem.family,
                "target": problem.family,
                "template": problem.template,
            }
            for problem in found
        ]
        for split, found in collect(draw, ("train", "validation", "test"), seed=6).items()
    }
