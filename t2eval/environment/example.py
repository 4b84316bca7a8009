"""Example: one document of a task with its prompt and its right answer; and the names of the splits that it may come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "validation", "adaptation", "test"]


@dataclass(frozen=True)
class Example:
    """One document of a task, ready to be answered and scored.

    Attributes:
        task: the task's name.
        split: the lm-eval split that it came from.
        index: its position in that split.
        doc: the document.
        prompt: what the model reads (for a choice task whose choices are contexts: the first of them).
        target: the gold answer as text. `metadata: {t2: {answer_field: …}}` may name the field that holds a worked solution.
        choices: the answers to choose from, or None for a generated answer.
        gold: the index of the right choice, or None.
        key: a hash of the document.
        answer: `target` as it continues `prompt`, with the task's delimiter: what supervised training learns.
        requests: for a choice task, the (context, continuation) pairs exactly as lm-eval would send them.
    """

    task: str
    split: str
    index: int
    doc: dict[str, Any]
    prompt: str
    target: str
    choices: tuple[str, ...] | None
    gold: int | None
    key: str
    answer: str = ""
    requests: tuple[tuple[str, str], ...] = ()
