"""Lmms host: strategies as models of lmms-eval. Its requests become lm-eval's, which the `-vlm` class of the strategy answers.

What differs from a run under lm-eval: prompts are chats wherever the processor has a chat template, as lmms-eval's own models do it
(`chat=false` leaves that out); worked examples and splits are lmms-eval's, and the question that the first pass reads is the whole prompt
unless `question_field` names it (where the model has a dispatch.json: the field `question`); what was chosen is said in a line at the end
of each list of requests, since its results have no place for it. Few-shot search is not here: lmms-eval's tasks name no adaptation split,
so a mix is found under lm-eval, kept by `t2 expert mix`, and served as `t2-expert`. Imported by lmms-eval only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from lm_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL.Image import Image

from t2eval.errors import UsageError, listed
from t2eval.models.registry import strategy_class
from t2eval.vision.images import PLACEHOLDER

_log = logging.getLogger(__name__)
_NEW_TOKENS = 1024
"""What lmms-eval's own models generate where a task does not say."""
_KNOWN = frozenset({"until", "max_new_tokens", "temperature", "top_p", "num_beams", "do_sample"})


class LmmsStrategy(lmms):  # type: ignore[misc]
    """One strategy with images. Takes the `model_args` of `t2-NAME-vlm`, `chat` (true, false or auto: where there is a template), and
    `question_field`, the field of a document that the first pass reads as its question."""

    STRATEGY: ClassVar[str]
    is_simple = True

    def __init__(self, chat: Any = "auto", question_field: str | None = None, **arguments: Any) -> None:
        super().__init__()
        self.question_field = question_field
        if str(chat).lower() not in ("auto", "true", "false"):
            raise UsageError(f"model_args: chat={chat!r}: give true, false or auto.")
        self.strategy = strategy_class(self.STRATEGY, with_images=True)(**arguments)
        template = getattr(self.strategy.processor, "chat_template", None) or self.strategy.tokenizer.chat_template
        self.chat = bool(template) if str(chat).lower() == "auto" else str(chat).lower() == "true"
        if self.chat and not template:
            raise UsageError("model_args: chat=true: the model has no chat template. Leave it out.")
        self.strategy.in_chat = self.chat
        self._rank, self._world_size = self.strategy.rank, self.strategy.world_size

    # ------------------------------------------------------------------ what lmms-eval asks
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in order."""
        asked = [self.as_lm_eval(place, request) for place, request in enumerate(requests)]
        answers: list[str] = self.strategy.generate_until(asked)
        self._say({str(request.task_name) for request in asked})
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise self._refused(requests, "asks for the likelihood of a text after an image, which lm-eval's hf-multimodal does not give")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise self._refused(requests, "asks in several rounds, and one expert is chosen for one question")

    def _refused(self, requests: Sequence[Any], why: str) -> UsageError:
        task = next((str(request.task_name) for request in requests), "?")
        return UsageError(f"Task {task!r} {why}. Use a form of the task with one generated answer (generate_until).")

    # ------------------------------------------------------------------ one request
    def as_lm_eval(self, place: int, request: Any) -> Instance:
        """A request of lmms-eval as lm-eval's, with its images.

        Raises:
            UsageError: it has a video or sound, or generation settings that lm-eval has not.
        """
        context, settings, images_of, document, task, split = request.args
        doc = self.task_dict[task][split][document]
        images = list(_flat(images_of(doc) or [])) if images_of is not None else []
        for image in images:
            if not isinstance(image, Image):
                raise UsageError(
                    f"Task {task!r}, document {document}: a {type(image).__name__} where an image (PIL) is expected; "
                    "videos and sound are not read."
                )
        arguments: tuple[Any, ...] = (self._prompt(str(context), len(images)), self._settings(task, settings))
        if images:
            arguments = (*arguments, {"visual": images})
        known = {**doc, "question": self._question(str(task), doc, str(context))}
        return Instance("generate_until", known, arguments, place, (str(task), int(document), 1))

    def _question(self, task: str, doc: Mapping[str, Any], context: str) -> str:
        """What the first pass reads of a document."""
        field = self.question_field or ("question" if getattr(self.strategy, "_own_format", False) else None)
        found = doc.get(field) if field is not None else context
        if not isinstance(found, str) and self.question_field is not None:
            raise UsageError(f"question_field={field}: a document of task {task!r} has no such text; it has: {', '.join(map(str, doc))}.")
        return found if isinstance(found, str) else context

    def _prompt(self, context: str, images: int) -> str:
        """The prompt: images stand where the task puts them, else before its text."""
        if PLACEHOLDER not in context and images:
            context = f"{PLACEHOLDER * images}\n{context}"
        if not self.chat:
            return context
        prompt: str = self.strategy.apply_chat_template([{"role": "user", "content": context}])
        return prompt

    def _settings(self, task: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """lmms-eval's `generation_kwargs` in lm-eval's words."""
        unknown = sorted(name for name, value in given.items() if name not in _KNOWN and value is not None)
        if unknown:
            raise UsageError(f"Task {task!r}: generation_kwargs {listed(unknown)} of lmms-eval are not known here: leave them out.")
        settings = {name: value for name, value in given.items() if value is not None and name not in ("until", "max_new_tokens")}
        sampled = bool(settings.get("do_sample", float(settings.get("temperature") or 0) > 0)) and float(settings.get("temperature", 1)) > 0
        if not sampled:
            settings = {name: value for name, value in settings.items() if name == "num_beams"}
        until = given.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        return {**settings, "do_sample": sampled, "until": stops, "max_gen_toks": int(given.get("max_new_tokens") or _NEW_TOKENS)}

    def _say(self, tasks: Iterable[str]) -> None:
        """How many questions of each task went to which expert, where one was chosen for each."""
        if not hasattr(self.strategy, "dispatched"):
            return
        for task in sorted(tasks):
            counts = Counter(self.strategy.dispatched(task).values())
            _log.warning("t2-%s; %s: %s", self.STRATEGY, task, listed(f"{label} {count}" for label, count in sorted(counts.items())))


def _flat(things: Iterable[Any]) -> Iterable[Any]:
    for thing in things:
        if isinstance(thing, (list, tuple)):
            yield from _flat(thing)
        else:
            yield thing


class LmmsExpert(LmmsStrategy):
    """`t2-expert` under lmms-eval: one expert, or fixed α over several."""

    STRATEGY = "expert"


class LmmsPrompt(LmmsStrategy):
    """`t2-prompt` under lmms-eval."""

    STRATEGY = "prompt"


class LmmsCls(LmmsStrategy):
    """`t2-cls` under lmms-eval."""

    STRATEGY = "cls"


class LmmsNearest(LmmsStrategy):
    """`t2-nearest` under lmms-eval."""

    STRATEGY = "nearest"
