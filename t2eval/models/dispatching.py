"""Dispatching: the strategies `t2-prompt` and `t2-cls`, one expert for each document."""

from __future__ import annotations

from typing import Any, ClassVar

from t2eval.environment import harness
from t2eval.environment.runs import Run
from t2eval.errors import UsageError
from t2eval.expert.adapter import Adapter
from t2eval.expert.expert import Expert
from t2eval.expert.hub import located_all
from t2eval.models.options import ClsOptions, DispatchOptions, Options, PromptOptions
from t2eval.models.per_document import PerDocument, change_of
from t2eval.models.questions import question_text
from t2eval.strategies.dispatch import (
    DISPATCH_LABEL,
    Decision,
    Dispatcher,
    DispatchFormat,
    Question,
    load_format,
    paper_format,
)
from t2eval.strategies.hierarchy import Steps


class Dispatching(PerDocument):
    """One expert for each document, which the model itself names in a first pass."""

    OPTIONS: ClassVar[type[Options]] = PromptOptions
    options: DispatchOptions

    def check_library(self) -> None:
        if self.options.mix == "soft" and self.options.dispatch == "generate":
            raise UsageError("mix=soft needs the labels' likelihoods: use it with dispatch=score.")
        if self.options.hierarchy and self.options.mix == "soft":
            raise UsageError("mix=soft needs the likelihoods of all labels, and hierarchy=true does not read them all: leave one out.")
        super().check_library()

    def prepare(self) -> None:
        super().prepare()
        self._form = self._format()
        if self.options.hierarchy and self.options.dispatch == "generate" and self._own_format:
            raise UsageError("hierarchy=true goes on with an answer that dispatch.json begins: use it with dispatch=score.")
        # What the base model answers to a question is the same in every evaluation: kept, by whether prompts are chats.
        self._dispatchers: dict[bool, Dispatcher | Steps] = {}

    def _format(self) -> DispatchFormat:
        """The library's `dispatch.json`, else the base's, else the paper's prompt with the experts' labels.

        Raises:
            UsageError: experts= joins libraries whose `dispatch.json` differ.
        """
        base = self.pretrained if isinstance(self.pretrained, str) else getattr(self.config, "_name_or_path", "")
        library = self._library()
        folders = library if isinstance(library, list) else located_all(str(library))
        forms = {folder: form for folder in folders if (form := load_format(folder)) is not None}
        found = next(iter(forms.values()), None)
        if any(form != found for form in forms.values()):
            raise UsageError(f"experts= joins folders whose dispatch.json differ, {' and '.join(map(str, forms))}: leave one of them.")
        if found is None and base:
            found = load_format(base)
        self._own_format = found is not None
        if found is not None and self.options.hierarchy:
            return found
        if found is not None:
            return found.with_labels(sorted(self._experts_of))
        skills = {label: self._by_name[name].description for label, name in self._experts_of.items()}
        return paper_format(skills, self.options.others_label)

    def classifier(self) -> Expert | Adapter | None:
        """The expert that is merged while the model dispatches."""
        return None

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "format": self._form.model_dump(mode="json")}

    def reads_of(self, run: Run) -> Any:
        chat = run.chat_template is not None
        return [run.name, chat, [[int(request.doc_id or 0), self.question(request).text] for request in run.requests]]

    def question(self, request: Any) -> Question:
        text = question_text(request, plain=self._own_format)
        images = harness.request_images(request) if getattr(self.options, "dispatch_image", False) else None
        if images is None:
            return Question(text)
        return Question(text, images, (str(request.task_name), request.doc_id))

    def _dispatcher(self, *, chat: bool) -> Dispatcher | Steps:
        others, options = self.options.others_label, self.options
        asked = self._chat_prompt if chat else None

        def node(form: DispatchFormat) -> Dispatcher:
            return Dispatcher(self.engine(), form, others, options.dispatch, options.dispatch_tokens, asked)

        if not options.hierarchy:
            return node(self._form)
        skills = {label: self._by_name[name].description for label, name in self._experts_of.items()}
        return Steps(node, skills, self._form if self._own_format else None, others)

    def decide(self, questions: list[Question], *, chat: bool) -> list[Decision]:
        if chat not in self._dispatchers:
            self._dispatchers[chat] = self._dispatcher(chat=chat)
        dispatcher = self._dispatchers[chat]
        dispatcher.count_in(self.first_pass)
        classifier = self.classifier()
        if classifier is None:
            return dispatcher.decide(questions)
        with self.applied(change_of(classifier)):
            return dispatcher.decide(questions)

    def report(self) -> dict[str, Any]:
        hierarchy = {"hierarchy": True} if self.options.hierarchy else {}
        return {**super().report(), "dispatch_mode": self.options.dispatch, **hierarchy}


class Classifying(Dispatching):
    """As `Dispatching`, with the library's classification expert merged while the model dispatches."""

    OPTIONS = ClsOptions

    def check_library(self) -> None:
        found = [expert for expert in self.experts if expert.label == DISPATCH_LABEL]
        if len(found) != 1:
            task = "embedded_dispatch" if self._embedded else "t2_dispatch"
            raise UsageError(
                f"t2-cls needs one classification expert, with the label {DISPATCH_LABEL!r}, in experts=; the library has {len(found)}. "
                f"Train one with `t2 train-expert --task {task} --label {DISPATCH_LABEL} --model …`, or use t2-prompt, which needs none."
            )
        super().check_library()

    def prepare(self) -> None:
        self._classifier = next(expert for expert in self.experts if expert.label == DISPATCH_LABEL)
        super().prepare()

    def classifier(self) -> Expert | Adapter | None:
        return self._classifier
