"""Questions: what a request asks, without its worked examples and the words that its task puts around a question."""

from __future__ import annotations

from typing import Any

from t2eval.environment import harness, runs
from t2eval.vision.images import PLACEHOLDER


def question_text(request: Any, *, plain: bool) -> str:
    """The question of an lm-eval request, without the places of its images.

    Args:
        request: of lm-eval.
        plain: whether a document's own `question` field is the question (the format of the embedded tasks); otherwise it is what the
            task asks, with the choices that it shows.
    """
    text = _text(request, plain)
    return text if harness.request_images(request) is None else text.replace(PLACEHOLDER, "").strip()


def _text(request: Any, plain: bool) -> str:
    doc = request.doc if isinstance(request.doc, dict) else {}
    own = doc.get("question")
    if plain and isinstance(own, str):
        return own.strip()
    run = runs.run_of(request)
    if run is not None and (text := run.question(request)):
        return text
    if isinstance(own, str):
        return own.strip()
    whole = harness.request_text(request)
    if request.request_type == "loglikelihood_rolling":
        return whole.strip()
    blocks = [block for block in whole.split("\n\n") if block.strip()]
    return blocks[-1].strip() if blocks else ""
