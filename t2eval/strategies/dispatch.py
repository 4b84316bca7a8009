"""Dispatch: one expert for one prompt, chosen by the model itself (strategies `prompt` and `cls`).

The model reads an adaptation prompt (the paper's Figure 3) and names a skill. The outcomes are the labels of the experts and
`others`, which means the base weights. With the `cls` strategy the classification expert is merged while it answers; that is
the caller's business, here a prompt is a prompt.

Deviations from the paper:
1. The answer is scored, not generated: each label's log-likelihood behind the prompt, whose first part is the same for every
   question and is read once (`mode="generate"` is the paper's way).
2. `others` means the base weights, as the paper says; its implementation keeps the previous expert's.
3. `Choice.weights` are the labels' probabilities; used as α (`mix=soft`) they are a step beyond the paper.
4. The wording of the adaptation prompt is our own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t2eval.errors import T2Error, UsageError
from t2eval.generation.first_pass import Encoding, Meter, Runner
from t2eval.vision.features import Features, within
from t2eval.vision.images import PLACEHOLDER

DISPATCH_LABEL = "dispatch"
"""The label of a library's classification expert; never an outcome."""

FORMAT_FILE = "dispatch.json"


class DispatchFormat(BaseModel):
    """How a base model is asked for a skill. A base's or a library's folder may hold one as `dispatch.json`.

    Attributes:
        template: the prompt; `{question}` is replaced by the question.
        lead: how every answer begins; it stands before the labels when they are scored.
        labels: for each outcome label, the text that names it.
        unlisted: the text that names an expert's label which `labels` does not have, with `{label}` in it; None where such an expert
            is no outcome.
        others: the text that names "none of them", or None where that is no outcome.
        until: stop strings for `mode="generate"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str
    lead: str = ""
    labels: dict[str, str] = Field(min_length=1)
    unlisted: str | None = None
    others: str | None = None
    until: tuple[str, ...] = ()

    def with_labels(self, labels: Iterable[str]) -> DispatchFormat:
        """This format with what the library's experts add to its outcomes."""
        if self.unlisted is None:
            return self
        added = {label: self.unlisted.replace("{label}", label) for label in labels if label not in self.labels}
        return self.model_copy(update={"labels": {**self.labels, **added}})


def load_format(folder: Path | str) -> DispatchFormat | None:
    """The `dispatch.json` of a folder, or None where there is none.

    Raises:
        T2Error: the file cannot be read, has unknown or missing keys, an empty label, or a template without `{question}`.
    """
    path = Path(folder) / FORMAT_FILE
    if not path.is_file():
        return None
    try:
        found = DispatchFormat.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise T2Error(f"The dispatch format {path} cannot be used: {error}") from error
    if "{question}" not in found.template:
        raise T2Error(f"The dispatch format {path} has a template without {{question}}: {json.dumps(found.template)}")
    if found.unlisted is not None and "{label}" not in found.unlisted:
        raise T2Error(f"The dispatch format {path} has an `unlisted` without {{label}}: {json.dumps(found.unlisted)}")
    if not all([*found.labels.values(), found.others is None or found.others]):
        raise T2Error(f"The dispatch format {path} has an empty text for a label.")
    return found


def paper_format(skills: Mapping[str, str], others_label: str = "others") -> DispatchFormat:
    """The adaptation prompt of the paper's Figure 3, in our own words, for any set of skills.

    Args:
        skills: label → one-line description, as the experts' cards give them.
        others_label: the label that means "none of these".
    """
    lines = [f"- {label}: {description.rstrip('.') or label}." for label, description in skills.items()]
    template = "\n".join(
        [
            "You sort questions by the skill that is needed to answer them. These are the skills:",
            *lines,
            f"- {others_label}: anything that none of the skills above would help with.",
            "",
            "Read the question. Do not answer it. Name the one skill that fits it best,",
            "and give your decision as \\boxed{skill}, with the skill's name as written in the list.",
            "",
            "Question: {question}",
            "",
            "Decision:",
        ]
    )
    return DispatchFormat(
        template=template,
        lead=" \\boxed{",
        labels={label: f"{label}}}" for label in skills},
        others=f"{others_label}}}",
        until=("\nQuestion:",),  # where a model without a chat template begins a question of its own
    )


@dataclass(frozen=True)
class Question:
    """What dispatch is asked about.

    Attributes:
        text: the question.
        images: its PIL images, where dispatch is to see them.
        key: names them.
    """

    text: str
    images: Sequence[Any] | None = field(default=None, compare=False)
    key: Hashable = None


@dataclass(frozen=True)
class Choice:
    """What dispatch decided for one question: the label, and every outcome's probability (one-hot when generated)."""

    label: str
    weights: dict[str, float]


class Dispatcher:
    """Chooses labels for questions, in batches, and remembers them for the process.

    Args:
        runner: the model.
        encoding: its tokenizer.
        form: the adaptation prompt.
        others_label: the name of the outcome "none of them".
        mode: `score` (default) or `generate` (the paper's).
        max_new_tokens: for `generate`; the paper's 1024.
    """

    def __init__(
        self,
        runner: Runner,
        encoding: Encoding,
        form: DispatchFormat,
        others_label: str = "others",
        mode: Literal["score", "generate"] = "score",
        max_new_tokens: int = 1024,
    ) -> None:
        self._runner, self._encoding, self._form, self._mode = runner, encoding, form, mode
        self._max_new_tokens, self._others = max_new_tokens, others_label
        self.outcomes: dict[str, str] = dict(form.labels)
        if form.others is not None:
            self.outcomes[others_label] = form.others
        self._known: dict[Question, Choice] = {}
        self._prefix: tuple[object, list[int]] | None = None

    def count_in(self, meter: Meter) -> None:
        """Count the tokens and seconds of new questions here from now on."""
        self._runner.meter = meter

    def prompt(self, question: str) -> str:
        """The first pass's prompt for a question, up to where the answer begins."""
        lead = self._form.lead if self._mode == "score" else ""
        user = self._form.template.replace("{question}", question)
        return self._encoding.chat(user, lead) if self._encoding.chat else user + lead

    def choose(self, questions: Sequence[str | Question]) -> list[Choice]:
        """One choice a question; only questions not seen before cost anything."""
        asked = [Question(question) if isinstance(question, str) else question for question in questions]
        new = list(dict.fromkeys(question for question in asked if question not in self._known))
        if new:
            with self._runner.meter.timed():
                found = self._scored(new) if self._mode == "score" else self._generated(new)
            self._known.update((replace(question, images=None), choice) for question, choice in zip(new, found, strict=True))
        return [self._known[question] for question in asked]

    def _read(self, question: Question, room: int) -> tuple[list[int], Features | None]:
        """The prompt's last `room` tokens, and the features of the images before the question."""
        if question.images is None:
            return self._encoding.text(self.prompt(question.text))[-room:], None
        images = question.images
        if self._encoding.reader is None:
            raise UsageError("Dispatch cannot see images with a model that reads text only.")
        context = self.prompt(PLACEHOLDER * len(images) + "\n" + question.text)
        ids, features = self._encoding.reader.read(context, lambda: images, question.key)
        return within(ids, features, room), features

    # ------------------------------------------------------------------ scored
    def _scored(self, questions: list[Question]) -> list[Choice]:
        texts = list(self.outcomes.values())
        prompts: list[list[int]] = []
        images: list[Features | None] = []
        continuations: list[list[list[int]]] = []
        known: dict[str, list[list[int]]] = {}
        for question in questions:
            context = self.prompt(question.text)
            # Tokens never join across more than the last word, so questions that end alike share their labels' tokens.
            tail = context[-32:]
            if tail not in known:
                known[tail] = [self._encoding.pair(context, text)[1] for text in texts]
            longest = max(len(tokens) for tokens in known[tail])
            room = self._encoding.longest - longest
            if question.images is None:
                ids, seen = self._encoding.pair(context, texts[0])[0][-room:], None
            else:
                ids, seen = self._read(question, room)
            prompts.append(ids)
            images.append(seen)
            continuations.append(known[tail])
        labels = list(self.outcomes)
        return [_softmax_choice(labels, values) for values in self._likelihoods(prompts, continuations, images)]

    def _likelihoods(
        self, prompts: list[list[int]], continuations: list[list[list[int]]], images: list[Features | None]
    ) -> list[list[float]]:
        shared = self._shared_prefix()
        plain = [row for row, seen in enumerate(images) if seen is None]
        behind = [row for row in plain if shared and len(prompts[row]) > len(shared) and prompts[row][: len(shared)] == shared]
        results: dict[int, list[float]] = {}
        if behind:
            if self._prefix is None:
                self._prefix = self._runner.prefix(shared)
            rows = [prompts[row] for row in behind], [continuations[row] for row in behind]
            results.update(zip(behind, self._runner.after_prefix(self._prefix, *rows), strict=True))
        rest = [row for row in range(len(prompts)) if row not in results]
        if rest:
            found = self._runner.loglikelihoods(
                [prompts[row] for row in rest], [continuations[row] for row in rest], images=[images[row] for row in rest]
            )
            results.update(zip(rest, found, strict=True))
        return [results[row] for row in range(len(prompts))]

    def _shared_prefix(self) -> list[int]:
        """The token ids with which the prompts of two unlike questions begin; what they share is the template's."""
        one, other = (self._encoding.text(self.prompt(text)) for text in ("A question", "what is 7?"))
        return one[: _common(one, other)]

    # ------------------------------------------------------------------ generated
    def _generated(self, questions: list[Question]) -> list[Choice]:
        room = self._encoding.longest - 1
        budget = min(self._max_new_tokens, max(1, room // 2))
        read = [self._read(question, room - budget) for question in questions]
        answers = self._runner.generate([ids for ids, _ in read], list(self._form.until), budget, images=[features for _, features in read])
        return [self._named(answer.text) for answer in answers]

    def _named(self, answer: str) -> Choice:
        label = parse_label(answer, list(self.outcomes)) or self._others
        return Choice(label, {name: float(name == label) for name in {**self.outcomes, label: ""}})


def parse_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that a generated answer names: in its last `\\boxed{…}`, else the first label word; None where it names none."""
    words = {label.lower(): label for label in labels}
    boxed = re.findall(r"\\boxed\{(?:\\text\w*\{)?([^{}]*)\}", answer)
    if boxed and (inside := re.sub(r"[^\w\- ]", "", boxed[-1]).strip().lower()) in words:
        return words[inside]
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    found = re.search(rf"(?<!\w)({pattern})(?!\w)", answer.lower())
    return words[found.group(1)] if found else None


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


def _softmax_choice(labels: Sequence[str], values: Sequence[float]) -> Choice:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    best = max(range(len(labels)), key=lambda index: values[index])
    return Choice(labels[best], {label: weight / total for label, weight in zip(labels, weights, strict=True)})


def checked_labels(labels: Sequence[str], experts: Mapping[str, str], others_label: str) -> None:
    """Refuse a decision that no weights stand behind.

    Args:
        labels: the labels that dispatch chose.
        experts: label → expert name of the library.
        others_label: the label that means the base weights.

    Raises:
        T2Error: dispatch chose a label that is neither an expert's nor `others_label`.
    """
    missing = sorted({label for label in labels if label not in experts and label != others_label})
    if missing:
        have = ", ".join(f"{name} ({label})" for label, name in sorted(experts.items())) or "none"
        raise T2Error(
            f"Dispatch chose {', '.join(map(repr, missing))}, but the library has no expert with that label. It has: {have}. "
            f"Add such an expert to experts=, or let the label mean the base weights with others_label={missing[0]}."
        )


def by_label(experts: Mapping[str, str]) -> dict[str, str]:
    """Label → expert name, from expert name → label, without the classification expert.

    Raises:
        UsageError: two experts share a label, so that dispatch could not tell them apart, or none is left.
    """
    found: dict[str, str] = {}
    for name, label in experts.items():
        if label == DISPATCH_LABEL:
            continue
        if label in found:
            raise UsageError(f"Experts {found[label]!r} and {name!r} both have the label {label!r}: dispatch needs one expert a label.")
        found[label] = name
    if not found:
        raise UsageError("The library holds no expert that dispatch could choose: name at least one skill's expert in experts=.")
    return found
