"""Chat: prompts in a model's own chat template, with a system message that no template loses.

lm-eval sends a task's `description` as a system message. Templates without a system role refuse it (Gemma, the first Mistral-Instruct
ones), and lm-eval then leaves the message out; the template of Mistral-7B-Instruct-v0.3 puts it into the last user turn, but only where
that turn ends the chat, so that with an answer already begun (`gen_prefix`) it is lost without a word. Here such a message is put
before the first user turn, as those models' own makers do.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import jinja2

from t2eval.errors import T2Error, UsageError
from t2eval.vision.images import reads_images, structured, text_tokenizer

Message = dict[str, Any]

_log = logging.getLogger(__name__)


class Chat:
    """Renders chat histories.

    Args:
        apply: the template: (messages, whether to open the assistant's turn) → text. Where the turn is not opened, the last message is
            one to be continued. It may raise Jinja's `TemplateError`, and may leave the system message out.
        reader: the tokenizer or processor whose template that is.
    """

    def __init__(self, apply: Callable[[list[Message], bool], str], reader: Any) -> None:
        self._template, self._reader = apply, reader
        self._loses: set[tuple[str, ...]] = set()

    def __call__(self, history: list[Message], add_generation_prompt: bool = True) -> str:
        """The text of a chat.

        Args:
            history: messages with `role` and `content`.
            add_generation_prompt: open the assistant's turn; otherwise the last message is left open, to be continued.

        Raises:
            UsageError: there is no template.
            T2Error: the template cannot show these messages.
        """
        shape = (str(add_generation_prompt), *(message["role"] for message in history))
        if not history or history[0]["role"] != "system":
            return self._rendered(history, add_generation_prompt)
        if shape not in self._loses:
            try:
                text: str | None = self._apply(history, add_generation_prompt)
            except jinja2.TemplateError as error:
                _log.debug("The chat template refuses a system message: %s", error)
                text = None
            if text is not None and str(history[0]["content"]).strip() in text:
                return text
            self._loses.add(shape)
            _log.info("The chat template has no place for the task's instruction: it is put before the first user turn.")
        return self._rendered(folded(history), add_generation_prompt)

    def _apply(self, history: list[Message], add_generation_prompt: bool) -> str:
        try:
            return self._template(copy.deepcopy(history), add_generation_prompt)
        except ValueError as error:  # transformers' text about it is long, names no model, and speaks to programmers
            if getattr(self._reader, "chat_template", None):
                raise
            model = str(getattr(text_tokenizer(self._reader), "name_or_path", "")) or "without a name"
            raise UsageError(
                f"The model {model} has no chat template, and prompts in one were asked for. Use its instruction-tuned version, or leave "
                "apply_chat_template out."
            ) from error

    def _rendered(self, history: list[Message], add_generation_prompt: bool) -> str:
        try:
            return self._apply(history, add_generation_prompt)
        except (jinja2.TemplateError, ValueError) as error:
            roles = ", ".join(message["role"] for message in history)
            raise T2Error(
                f"The chat template of this tokenizer cannot show the messages ({roles}): {error} "
                "Use a model with a chat template that can, or leave the chat template out."
            ) from error


def folded(history: list[Message]) -> list[Message]:
    """A history that begins with a system message, without it: its text stands before the first user message's."""
    system, first, *rest = history
    text = str(system["content"]).strip()
    content = first["content"]
    joined = [{"type": "text", "text": f"{text}\n\n"}, *content] if isinstance(content, list) else f"{text}\n\n{content}"
    return [{**first, "content": joined}, *rest]


def tokenizer_chat(tokenizer: Any, **arguments: Any) -> Chat:
    """The chat of a tokenizer's own template, or of a processor's, which is shown images in their places.

    Args:
        tokenizer: with a chat template; or a processor.
        arguments: further ones for the template (lm-eval's `chat_template_args`).
    """

    def apply(history: list[Message], add_generation_prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            structured(history) if reads_images(tokenizer) else history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **arguments,
        )
        return text

    return Chat(apply, tokenizer)
