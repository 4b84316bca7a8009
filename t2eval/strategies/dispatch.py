"""Dispatch: one expert for one prompt, chosen by the model itself (strategies `prompt` and `cls`).

The model reads an adaptation prompt (the paper's Figure 3) and names a skill. The outcomes are the labels of the experts and
`others`, which means the base weights. With the `cls` strategy the classification expert is merged while it answers; that is
the caller's business, here a prompt is a prompt.

Deviations from the paper:
1. The answer is scored, not generated: each label's log-likelihood behind the prompt, whose first part is the same for every
   question and is read once (`mode="generate"` is the paper's way).
2. `others` means the base weights, as the paper says; its implementation keeps the previous expert's.
3. `Decision.weights` are the labels' probabilities; used as α (`mix=soft`) they are a step beyond the paper.
4. The wording of the adaptation prompt is our own.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from t2eval.errors import T2Error, UsageError, listed
from t2eval.generation.completion import Likelihood
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.generation.usage import Usage
from t2eval.store.files import read_record
from t2eval.vision.features import Features
from t2eval.vision.images import PLACEHOLDER

_log = logging.getLogger(__name__)

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
    labels: dict[str, str] = {}
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
    found = read_record(path, DispatchFormat, what="dispatch format", remedy="Write it anew, or remove it.")
    if "{question}" not in found.template:
        raise T2Error(f"The dispatch format {path} has a template without {{question}}: {json.dumps(found.template)}")
    if found.unlisted is not None and "{label}" not in found.unlisted:
        raise T2Error(f"The dispatch format {path} has an `unlisted` without {{label}}: {json.dumps(found.unlisted)}")
    if not found.labels and found.unlisted is None:
        raise T2Error(f"The dispatch format {path} has neither `labels` nor `unlisted`: it has no outcomes.")
    if not all([*found.labels.values(), found.others is None or found.others]):
        raise T2Error(f"The dispatch format {path} has an empty text for a label.")
    return found


def paper_format(skills: Mapping[str, str], others_label: str | None = "others") -> DispatchFormat:
    """The adaptation prompt of the paper's Figure 3, in our own words, for any set of skills.

    Skills stand in the order of their labels, so that a classification expert is asked what it learnt, however a library's folders or
    `t2_dispatch`'s tasks are ordered.

    Args:
        skills: label → one-line description, as the experts' cards give them.
        others_label: the label that means "none of these"; None where one of them always fits.
    """
    none = [] if others_label is None else [f"- {others_label}: anything that none of the skills above would help with."]
    skills = dict(sorted(skills.items()))
    lines = [f"- {label}: {description.rstrip('.') or label}." for label, description in skills.items()]
    template = "\n".join(
        [
            "You sort questions by the skill that is needed to answer them. These are the skills:",
            *lines,
            *none,
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
        others=None if others_label is None else f"{others_label}}}",
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
class Decision:
    """What dispatch decided for one question: the label, and every outcome's probability (one-hot when generated)."""

    label: str
    weights: dict[str, float]


class Dispatcher:
    """Decides on labels for questions, in batches, and remembers them for the process.

    Args:
        engine: the model.
        form: the adaptation prompt.
        others_label: the name of the outcome "none of them".
        mode: `score` (default) or `generate` (the paper's).
        max_new_tokens: for `generate`; the paper's 1024.
        chat: `(user, lead)` → one user message, answered by a message that begins with `lead`; None where prompts are plain.
    """

    def __init__(
        self,
        engine: Engine,
        form: DispatchFormat,
        others_label: str = "others",
        mode: Literal["score", "generate"] = "score",
        max_new_tokens: int = 1024,
        chat: Callable[[str, str], str] | None = None,
    ) -> None:
        self._engine, self._form, self._mode, self._chat = engine, form, mode, chat
        self._max_new_tokens, self._others = max_new_tokens, others_label
        self.outcomes: dict[str, str] = dict(form.labels)
        if form.others is not None:
            self.outcomes[others_label] = form.others
        self._known: dict[Question, Decision] = {}
        self._cut = 0

    def count_in(self, usage: Usage) -> None:
        """Count the tokens and seconds of new questions here from now on."""
        self._engine.usage = usage

    def prompt(self, question: str) -> str:
        """The first pass's prompt for a question, up to where the answer begins."""
        lead = self._form.lead if self._mode == "score" else ""
        user = self._form.template.replace("{question}", question)
        return self._chat(user, lead) if self._chat else user + lead

    def decide(self, questions: Sequence[str | Question]) -> list[Decision]:
        """One decision a question; only questions not seen before cost anything."""
        asked = [Question(question) if isinstance(question, str) else question for question in questions]
        new = list(dict.fromkeys(question for question in asked if question not in self._known))
        if new:
            self._cut = 0
            with self._engine.usage.timed():
                found = self._scored(new) if self._mode == "score" else self._generated(new)
            self._known.update((replace(question, images=None), decision) for question, decision in zip(new, found, strict=True))
            if self._cut:
                _log.warning(
                    "%d of %d questions are too long for the dispatch prompt in the model's %d tokens: their beginnings are cut off.",
                    self._cut,
                    len(new),
                    self._engine.max_length,
                )
        return [self._known[question] for question in asked]

    def _read(self, question: Question, room: int) -> tuple[str, list[int], Features | None]:
        """A prompt of at most `room` tokens: its text, token ids and images. What is too long loses the beginning of its *question*:
        a prompt without the skills and the instruction would ask for nothing.

        Raises:
            T2Error: the prompt has no room even for an empty question.
        """
        text = question.text
        context, ids, features = self._encoded(question, text)
        if len(ids) <= room:
            return context, ids, features
        rest = len(self._encoded(question, "")[1])
        if rest > room:
            raise T2Error(
                f"The dispatch prompt has {rest} tokens without a question, and the model has room for {room}: shorten the experts' "
                "descriptions or the template of dispatch.json, or use a model with a longer context."
            )
        self._cut += 1
        while len(ids) > room:
            share = (room - rest) / (len(ids) - rest)  # letters are cut in proportion to tokens, until it fits
            text = text[len(text) - min(int(len(text) * share), len(text) - 1) :]
            context, ids, features = self._encoded(question, text)
        return context, ids, features

    def _encoded(self, question: Question, text: str) -> tuple[str, list[int], Features | None]:
        """The prompt with `text` in the place of the question's, as `Engine.encode_pair` leaves a context."""
        images = question.images
        if images is None:
            context = self.prompt(text)
            return context, self._engine.encode(context.rstrip() if self._mode == "score" else context), None
        if self._engine.reader is None:
            raise UsageError("Dispatch cannot see images with a model that reads text only.")
        context = self.prompt(PLACEHOLDER * len(images) + "\n" + text)
        return context, *self._engine.reader.read(context, lambda: images, question.key)

    # ------------------------------------------------------------------ scored
    def _scored(self, questions: list[Question]) -> list[Decision]:
        texts = list(self.outcomes.values())
        known: dict[str, list[list[int]]] = {}

        def labels_behind(context: str) -> list[list[int]]:
            # Tokens never join across more than the last word, so prompts that end alike share their labels' tokens.
            tail = context[-32:]
            if tail not in known:
                known[tail] = [self._engine.encode_pair(context, text)[1] for text in texts]
            return known[tail]

        longest = max(len(tokens) for tokens in labels_behind(self.prompt("a question")))
        read = [self._read(question, self._engine.max_length - longest) for question in questions]
        found = self._engine.loglikelihoods(
            [ids for _, ids, _ in read],
            [labels_behind(context) for context, _, _ in read],
            prefix=self._shared_prefix(),
            features=[features for _, _, features in read],
        )
        return [_most_likely(list(self.outcomes), values) for values in found]

    def _shared_prefix(self) -> list[int]:
        """The token ids with which the prompts of two unlike questions begin; what they share is the template's."""
        one, other = (self._engine.encode(self.prompt(text)) for text in ("A question", "what is 7?"))
        return one[: _common(one, other)]

    # ------------------------------------------------------------------ generated
    def _generated(self, questions: list[Question]) -> list[Decision]:
        room = self._engine.max_length - 1
        settings = GenerationSettings(min(self._max_new_tokens, max(1, room // 2)), until=self._form.until)
        read = [self._read(question, self._engine.max_length - settings.max_new_tokens) for question in questions]
        prompts, features = [ids for _, ids, _ in read], [features for _, _, features in read]
        return [self._named(completion.text) for completion in self._engine.complete(prompts, settings, features=features)]

    def _named(self, answer: str) -> Decision:
        label = parse_label(answer, list(self.outcomes)) or self._others
        return Decision(label, {name: float(name == label) for name in {**self.outcomes, label: ""}})


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


def _most_likely(labels: Sequence[str], found: Sequence[Likelihood]) -> Decision:
    values = [each.value for each in found]
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    best = max(range(len(labels)), key=lambda index: values[index])
    return Decision(labels[best], {label: weight / total for label, weight in zip(labels, weights, strict=True)})


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
        have = listed(f"{name} ({label})" for label, name in sorted(experts.items())) or "none"
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
