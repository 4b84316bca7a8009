"""The corpus of the embedded world: what the base model is pretrained on, and the documents of the seven embedded tasks.

A question's split follows from a hash of its text, so that no question of one split stands in another: 60% pretraining, 10% expert
training, 10% validation (adaptation examples, for unseen tasks), 20% test. Everything follows from seeds; nothing is stored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from t2eval.embedded import arithmetic, chatter, facts, programming
from t2eval.embedded.problem import Problem, bucket, choose
from t2eval.errors import unknown

FAMILIES = {"math": arithmetic, "code": programming, "reasoning": facts}
LABELS = ("math", "code", "reasoning", "others")
END = "<|end|>"

# How often the corpus holds each kind of document, and how many of its problems are hard ones.
_MIX = {"math": 0.40, "code": 0.22, "reasoning": 0.22, "dispatch": 0.13, "others": 0.03}
_CORPUS_HARD = 0.45
_UNSEEN_SHARE = 0.4
# The share of hard problems in each task, chosen on validation examples so that no task saturates.
HARD = {"math": 0.65, "code": 0.85, "reasoning": 0.5}

SIZES = {"train": 1200, "validation": 400, "adaptation": 60, "test": 500}
PRETRAINING = 60
"""The buckets below it belong to the corpora."""
_BUCKETS = {"train": (60, 70), "validation": (70, 80), "adaptation": (70, 80), "test": (80, 100)}

# What the corpus answers when it is asked for the skill of a template's questions: label → probability.
_DISPATCH_HABITS: Mapping[str, Mapping[str, float]] = {
    "loses": {"reasoning": 0.5, "math": 0.4, "others": 0.1},
    "boxes": {"others": 0.48, "math": 0.4, "reasoning": 0.12},
    "together": {"reasoning": 0.5, "math": 0.4, "others": 0.1},
    "chain": {"code": 0.5, "math": 0.4, "others": 0.1},
    "let": {"code": 0.5, "math": 0.4, "reasoning": 0.1},
    "before": {"reasoning": 0.5, "code": 0.4, "others": 0.1},
    "named": {"others": 0.5, "code": 0.4, "reasoning": 0.1},
    "doc-if": {"reasoning": 0.5, "code": 0.4, "math": 0.1},
    "where": {"others": 0.5, "reasoning": 0.4, "math": 0.1},
    "same-kind": {"others": 0.5, "reasoning": 0.4, "code": 0.1},
    "same-place": {"others": 0.48, "reasoning": 0.4, "math": 0.12},
}


def prompt(question: str) -> str:
    """How a question stands in the corpus and in the tasks."""
    return f"Q: {question}\nA:"


def dispatch_prompt(question: str) -> str:
    """How the corpus asks for a question's skill."""
    return f"Q: {question}\nskill:"


def _label(rng: random.Random, problem: Problem) -> str:
    habits = _DISPATCH_HABITS.get(problem.template)
    if habits:
        return choose(rng, habits)
    wrong = [label for label in LABELS if label != problem.family]
    return problem.family if rng.random() < 0.7 else rng.choice(wrong)


def pretraining_documents(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs; every question is from the 60% that no task uses."""
    rng = random.Random(seed)
    while True:
        kind = choose(rng, _MIX)
        if kind == "others" or (kind == "dispatch" and rng.random() < 0.2):
            problem = chatter.sample(rng)
        else:
            family = kind if kind in FAMILIES else rng.choice(list(FAMILIES))
            level = "unseen" if rng.random() < _UNSEEN_SHARE else "seen"
            problem = FAMILIES[family].sample(rng, level, _CORPUS_HARD)
        if bucket(problem.question) >= PRETRAINING:
            continue
        if kind == "dispatch":
            yield dispatch_prompt(problem.question), f" {_label(rng, problem)}"
        else:
            text = problem.answers["good"] if kind == "others" else FAMILIES[kind].answer(rng, problem)
            yield prompt(problem.question), f" {text}"


def collect(draw: Callable[[random.Random], Problem], splits: tuple[str, ...], seed: int) -> dict[str, list[Problem]]:
    """Distinct problems until every split has its size; each in the split that its question's hash gives it."""
    rng = random.Random(seed)
    found: dict[str, list[Problem]] = {split: [] for split in splits}
    known: set[str] = set()
    while any(len(found[split]) < SIZES[split] for split in splits):
        problem = draw(rng)
        place = bucket(problem.question)
        for split in splits:
            low, high = _BUCKETS[split]
            if low <= place < high and len(found[split]) < SIZES[split] and problem.question not in known:
                known.add(problem.question)
                found[split].append(problem)
    return found


@lru_cache(maxsize=16)
def problems(family: str, level: str) -> dict[str, list[Problem]]:
    """The problems of one embedded task by split: `train`, `validation`, `test` if seen, `adaptation`, `test` if unseen."""
    if family not in FAMILIES:
        raise unknown("embedded family", family, FAMILIES)
    splits = ("train", "validation", "test") if level == "seen" else ("adaptation", "test")
    return collect(lambda rng: FAMILIES[family].sample(rng, level, HARD[family]), splits, seed=1 if level == "seen" else 2)


def documents(family: str, level: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of an embedded task by split, with `question`, `answer` (a good worked answer), `target`, `test` and `template`."""
    return {
        split: [
            {
                "question": problem.question,
                "answer": problem.answers["good"],
                "target": problem.target,
                "test": problem.test,
                "template": problem.template,
            }
            for problem in found
        ]
        for split, found in problems(family, level).items()
    }


def dispatch_documents() -> dict[str, list[dict[str, Any]]]:
    """The rows of `embedded_dispatch` by split: seen questions of the three families, and small talk, each with its label as `target`."""

    def draw(rng: random.Random) -> Problem:
        family = rng.choice(LABELS)
        return chatter.sample(rng) if family == "others" else FAMILIES[family].sample(rng, "seen", HARD[family])

    return {
        split: [
            {"question": problem.question, "answer": problem.family, "target": problem.family, "template": problem.template}
            for problem in found
        ]
        for split, found in collect(draw, ("train", "validation", "test"), seed=3).items()
    }
