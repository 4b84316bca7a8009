"""Multimodal: lm-eval's class `hf-multimodal` over a model and processor that are loaded already, and over mixed requests.

What differs from lm-eval's class: system messages go as in `t2eval.basemodel.chat`; a processor that it is given is used (lm-eval's forgets
it); requests with and without images may be mixed; a prompt with images that is too long is refused (lm-eval's cuts through the images, and
the model fails later); rolling likelihoods have the parameter that the other calls have.
Nothing of text-only use imports this module.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from lm_eval.models.hf_vlms import HFMultimodalLM

from t2eval.basemodel.chat import Chat, Message
from t2eval.environment.harness import request_images
from t2eval.errors import T2Error, UsageError
from t2eval.vision.images import reads_images

__all__ = ["MultimodalLM"]


class MultimodalLM(HFMultimodalLM):  # type: ignore[misc]
    """`hf-multimodal`, for models in memory too."""

    def __init__(self, pretrained: Any, **arguments: Any) -> None:
        if str(arguments.get("batch_size", 1)).startswith("auto"):
            raise UsageError("batch_size=auto is not supported with images: give a number.")
        super().__init__(pretrained, **arguments)
        if self.chat_template_args:
            raise UsageError(
                "lm-eval's hf-multimodal gives its chat template no arguments: leave chat_template_args and enable_thinking out."
            )
        self._template = Chat(super().apply_chat_template, self.processor)

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        return self._template(chat_history, add_generation_prompt)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, *arguments: Any, **named: Any) -> None:
        if not reads_images(tokenizer):
            if tokenizer is not None and not isinstance(tokenizer, str):
                raise UsageError(f"A vision-language model needs its processor as tokenizer=, not a {type(tokenizer).__name__}.")
            try:
                super()._create_tokenizer(tokenizer or pretrained, None, *arguments, **named)
            except AttributeError:
                if not reads_images(getattr(self, "processor", None)):
                    raise UsageError(f"{pretrained!r} has no image processor: it reads text only.") from None
                raise
            return
        self.processor, self.tokenizer = tokenizer, tokenizer.tokenizer

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers: list[str] = [""] * len(requests)
        with _small_collections():
            for seen in (False, True):
                places = [place for place, request in enumerate(requests) if (request_images(request) is not None) == seen]
                found = super().generate_until([requests[place] for place in places], disable_tqdm=disable_tqdm) if places else []
                for place, answer in zip(places, found, strict=True):
                    answers[place] = answer
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._refuse_images(requests)
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        self._refuse_images(requests)
        found: list[float] = super().loglikelihood_rolling(requests)
        return found

    def _refuse_images(self, requests: list[Any]) -> None:
        for request in requests:
            if request_images(request) is not None:
                raise UsageError(
                    f"Task {request.task_name!r} asks for the likelihood of a text after an image, which lm-eval's hf-multimodal does not "
                    "give. Use a form of the task with generated answers (generate_until)."
                )

    def tok_batch_multimodal_encode(
        self, strings: list[str], images: list[list[Any]], padding_side: str = "left", left_truncate_len: int | None = None, **named: Any
    ) -> Any:
        encoded = super().tok_batch_multimodal_encode(strings, images, padding_side, None, **named)
        if left_truncate_len is not None and encoded["input_ids"].shape[1] > left_truncate_len:
            raise T2Error(
                f"A prompt with images has {encoded['input_ids'].shape[1]} tokens, and the model has room for {left_truncate_len} beside "
                "the answer: a prompt with images cannot be shortened. Use smaller images (image_max_side=…), or a shorter answer."
            )
        return encoded


@contextlib.contextmanager
def _small_collections() -> Iterator[None]:
    """lm-eval collects garbage after each batch; what is alive already (all of torch and transformers) need not be looked at each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
