"""Plain: lm-eval's own classes for base models and baselines, with the chat prompts of the strategies that they are compared with."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from t2eval.basemodel.chat import Message, tokenizer_chat
from t2eval.vision.images import reads_images


class PlainHFLM(HFLM):  # type: ignore[misc]
    """HFLM with a system message that no chat template loses."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._renderer = tokenizer_chat(self.tokenizer, **self.chat_template_args)

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        return self._renderer(chat_history, add_generation_prompt)


def plain_model(model: Any, tokenizer: Any, **arguments: Any) -> Any:
    """lm-eval's class over a model in memory: `hf`, or `hf-multimodal` where a processor stands in the tokenizer's place."""
    if reads_images(tokenizer):
        from t2eval.environment.multimodal import MultimodalLM

        return MultimodalLM(pretrained=model, tokenizer=tokenizer, **arguments)
    return PlainHFLM(pretrained=model, tokenizer=tokenizer, **arguments)
