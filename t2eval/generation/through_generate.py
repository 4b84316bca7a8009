"""Through generate: completions by the model's own `generate`, for models and settings that the engine's loop does not serve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from t2eval.errors import T2Error
from t2eval.generation.choosing import Choosing, choose
from t2eval.generation.decoder import Decoder
from t2eval.generation.loop import Batch, SequenceScope, Written
from t2eval.generation.stopping import Stopping
from t2eval.vision.features import image_arguments


class _Chooser(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """The last of the processors: chooses the token as the engine's loop would, and leaves `generate` no other.

    Args:
        warpers: what stands between the other processors and a draw.
        uniforms: (sequences, new tokens) draws; None: greedy.
    """

    def __init__(self, warpers: LogitsProcessorList, uniforms: Tensor | None) -> None:
        self.warpers, self.uniforms = warpers, uniforms
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = None if self.uniforms is None else self.uniforms[:, len(self.log_probs)]  # (sequences,)
        token, log_prob = choose(scores, self.warpers, input_ids, uniform)  # (sequences,) each
        self.log_probs.append(log_prob)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)  # (sequences, vocabulary)


class _Ends(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    def __init__(self, stopping: Stopping, width: int) -> None:
        self.stopping, self.width = stopping, width

    def __call__(self, input_ids: Tensor, scores: Any, **_rest: Any) -> Tensor:
        ended = [self.stopping.stopped(ids) is not None for ids in input_ids[:, self.width :].tolist()]
        return torch.tensor(ended, device=input_ids.device)


def generated(decoder: Decoder, choosing: Choosing, stopping: Stopping, batch: Batch, scope: SequenceScope) -> list[Written]:
    """Completions of a batch of one sequence, by the model's own `generate`.

    Raises:
        T2Error: `generate` refuses the settings or the model.
    """
    ids = torch.tensor([batch.prompts[owner] for owner in batch.owners], device=decoder.device)  # (sequences, width)
    width = ids.shape[1]
    images = [batch.images[owner] for owner in batch.owners] if batch.images else []
    arguments: dict[str, Any] = {
        **choosing.options,
        **image_arguments(images),
        "stopping_criteria": StoppingCriteriaList([_Ends(stopping, width)]),
        "return_dict_in_generate": True,
    }
    if decoder.takes_mask:
        arguments["attention_mask"] = torch.ones_like(ids)
    chooser = None
    if choosing.token_by_token:
        warpers = choosing.warpers() if choosing.settings.do_sample else LogitsProcessorList()
        chooser = _Chooser(warpers, batch.uniforms)
        arguments.update(logits_processor=LogitsProcessorList([chooser]), do_sample=False)
        arguments = {name: value for name, value in arguments.items() if name != "temperature"}
    else:
        arguments["output_scores"] = True
    seed = 0 if batch.uniforms is None else int(batch.uniforms[0, 0].item() * 2**53)
    try:
        with torch.random.fork_rng(), scope(batch.sequences):
            torch.manual_seed(seed)  # for the modes that draw by themselves
            out = decoder.base.generate(ids, **arguments)
    except (ValueError, TypeError, ImportError) as error:
        kind, options = type(decoder.base).__name__, dict(choosing.settings.options)
        raise T2Error(f"{kind} cannot generate with the settings {options}: {error}") from error
    if chooser is not None:
        log_probs = torch.stack(chooser.log_probs, dim=1)  # (sequences, new)
    else:
        beams = getattr(out, "beam_indices", None)
        log_probs = decoder.base.compute_transition_scores(out.sequences, out.scores, beams, normalize_logits=True)
    return [
        _cut(tokens, values, stopping)
        for tokens, values in zip(out.sequences[: len(ids), width:].tolist(), log_probs[: len(ids)].tolist(), strict=True)
    ]


def _cut(tokens: list[int], log_probs: list[float], stopping: Stopping) -> Written:
    """A sequence up to its end: behind it stands padding."""
    written = Written()
    for token, value in zip(tokens, log_probs, strict=False):
        written.ids.append(token)
        written.log_probs.append(value)
        written.stopped = stopping.stopped(written.ids)
        if written.stopped is not None:
            return written
    written.stopped = "stop"  # by a criterion of generate's own, such as max_time
    return written
