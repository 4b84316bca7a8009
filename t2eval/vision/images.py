"""Images: what they ask for beside text, of a task (`doc_to_image`) and of a model (a processor in the tokenizer's place)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2eval.errors import T2Error, UsageError

PLACEHOLDER = "<image>"
"""Where an image stands in a task's text: lm-eval's word, whatever the model's own token is."""


# ---------------------------------------------------------------------- of a model
def reads_images(reader: Any) -> bool:
    """Whether what `load_base` gave beside the model is a processor: the model reads images."""
    return hasattr(reader, "image_processor")


def is_multimodal(architecture: str) -> bool:
    """Whether a class name of transformers, as an expert's card has it, is a vision-language model's: lm-eval loads it as hf-multimodal."""
    from transformers.models.auto import modeling_auto as auto

    return architecture in {*auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()} - {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}


def text_tokenizer(reader: Any) -> Any:
    """The tokenizer of what `load_base` gave beside the model."""
    return reader.tokenizer if reads_images(reader) else reader


def structured(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat history as processors want it, each placeholder as an image part (as lm-eval's hf-multimodal does)."""
    messages = []
    for message in history:
        parts: list[dict[str, str]] = []
        for number, text in enumerate(str(message["content"]).split(PLACEHOLDER)):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": text}] if text else []
        messages.append({**message, "content": parts})
    return messages


# ---------------------------------------------------------------------- of a task
def has_images(task: Any) -> bool:
    """Whether an lm-eval task's documents have images.

    Raises:
        T2Error: they have sound.
    """
    if task.config.doc_to_audio is not None:
        raise T2Error(f"Task {task.config.task!r} has sound: experts work with text and images.")
    return task.config.doc_to_image is not None


def refuse_with_images(name: str, kind: str, num_fewshot: int) -> None:
    """Refuse what lm-eval cannot do with images either, before anything runs."""
    if kind == "choice":
        raise T2Error(
            f"Task {name!r} has images and choices; lm-eval's hf-multimodal gives no likelihoods with images. "
            "Use a form of the task with generated answers (generate_until)."
        )
    if num_fewshot:
        raise UsageError(f"Task {name!r} has images, and lm-eval gives the worked examples of a prompt none. Use num_fewshot=0.")


def without_images(docs: Any) -> Any:
    """The documents without columns of images: decoded, a split's images do not fit into memory."""
    columns = [name for name, kind in (getattr(docs, "features", None) or {}).items() if _holds_image(kind)]
    return docs.remove_columns(columns) if columns else docs


def _holds_image(kind: Any) -> bool:
    return type(kind).__name__ == "Image" or (hasattr(kind, "feature") and _holds_image(kind.feature))


def images_of(task: Any, doc: Any) -> list[Any]:
    """The PIL images of a document, as the task's `doc_to_image` gives them.

    Raises:
        T2Error: it gives something else.
    """
    found = task.doc_to_image(doc)
    images = list(found) if isinstance(found, (list, tuple)) else [found]
    if not images or not all(hasattr(image, "tobytes") and hasattr(image, "size") for image in images):
        kinds = sorted({type(image).__name__ for image in images}) or ["nothing"]
        raise T2Error(f"doc_to_image of task {task.config.task!r} gave {', '.join(kinds)}, where a list of PIL images is needed.")
    return images
