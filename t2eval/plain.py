"""Plain: lm-eval's HFLM for base models and baselines, with the chat prompts of the strategies that they are compared with."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from t2eval.chat import Message, tokenizer_chat


class PlainHFLM(HFLM):  # type: ignore[misc]
    """HFLM with a system message that no chat template loses."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._renderer = tokenizer_chat(self.tokenizer, **self.chat_template_args)

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        return self._renderer(chat_history, add_generation_prompt)
