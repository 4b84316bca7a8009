"""Finite: a model whose logits are no numbers answers nothing; the document for which that happened is named.

lm-eval would take the first largest of them, or of log-likelihoods that are NaN the first choice, and score that as an answer. The error
comes before lm-eval's response cache is told of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from t2eval.errors import T2Error


class NotFinite(Exception):
    """Logits that are NaN or infinite (a token of -inf alone is one that is ruled out)."""


def refuse(logits: Tensor) -> None:
    """Refuse logits (..., vocabulary) of which some position has no finite largest one.

    Raises:
        NotFinite: there is such a position.
    """
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise NotFinite


@contextlib.contextmanager
def watched(model: Any) -> Iterator[None]:
    """What a model generates with; its last position's logits are looked at in each step, and reported at the end.

    Raises:
        NotFinite: those of a step were not finite.
    """
    seen: list[Tensor] = []  # one number, on the model's device: nothing waits for it between steps

    def look(_module: Any, _arguments: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is not None:
            largest = logits[:, -1].amax(-1)  # (sequences,)
            nought = (largest - largest).sum()  # 0; NaN where one of them is not finite
            seen[:] = [nought + seen[0].to(nought.device)] if seen else [nought]

    hook = model.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
    if seen and not bool(torch.isfinite(seen[0])):
        raise NotFinite


def name_document(ask: Callable[[list[Any]], Any], requests: Sequence[Any]) -> NoReturn:
    """Ask one request after the other, to say for which of them logits are not finite.

    Raises:
        T2Error: always.
    """
    found = "a batch of them"
    for request in requests:
        try:
            ask([request])
        except NotFinite:
            found = f"document {request.doc_id} of task {request.task_name}"
            break
    raise T2Error(
        f"The model's logits are not finite (NaN or infinite) for {found}: its answer would say nothing. Load the model in float32 or "
        "bfloat16, use a smaller z or alpha, or mend what was trained."
    )
