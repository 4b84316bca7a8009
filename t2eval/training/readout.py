"""Readout: how a causal model turns the last hidden state of a token into logits, so that they need not exist for all tokens at once.

The logits of 8 answers of 640 tokens over a vocabulary of 128,256 are 2.6 GB in float32, and the loss needs several such tensors. Here the
model is run up to its readout (`get_output_embeddings()`), which hands on what it was given; log-probabilities, divergences and their
gradients are then computed for a few tokens at a time (`t2eval.training.likelihood`).

Some models do more to their logits than that map: Gemma 2 caps them, Cohere and Granite scale them. What a model does is found by trying
the known forms on a tiny input; where none of them gives the model's own logits, its whole logits are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from t2eval.vision.features import image_arguments

_TINY_INPUT = 4
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far the logits of two orders of sums are apart, beside the largest of them."""

Form = Callable[[Tensor], Tensor]


def _forms(config: Any) -> Iterator[Form]:
    """What the known families do to the logits behind the linear map, if their configuration says so, and the plain form last."""
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    if cap:
        yield lambda logits: torch.tanh(logits / cap) * cap
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        factor = getattr(config, name, None)
        if isinstance(factor, (int, float)):
            yield lambda logits, factor=factor: logits * factor  # type: ignore[misc]
    divisor = getattr(config, "logits_scaling", None)  # Granite
    if divisor:
        yield lambda logits: logits / divisor
    yield lambda logits: logits


class Readout:
    """The last map of one model.

    Args:
        model: a causal model, or a PEFT model of one; it is run once on a tiny input.

    Attributes:
        split: whether hidden states and logits can be told apart in this model. If not, `states` are the logits themselves.
    """

    def __init__(self, model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepted = inspect.signature(base.forward).parameters
        self._map = self._linear(base)
        self._form: Form | None = None if self._map is None else self._found_form(model, base)
        self.split = self._form is not None

    @staticmethod
    def _linear(base: Any) -> nn.Linear | None:
        """The readout, if it is one frozen dense matrix."""
        found = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        if type(found) is not nn.Linear or any(parameter.requires_grad for parameter in found.parameters()):
            return None
        return found

    @torch.no_grad()
    def _found_form(self, model: Any, base: Any) -> Form | None:
        ids = torch.arange(_TINY_INPUT, device=model.device)[None] % base.get_input_embeddings().weight.shape[0]  # (1, 4)
        logits = model(input_ids=ids, use_cache=False).logits  # (1, 4, vocabulary)
        try:
            hidden = self._hidden(model, {"input_ids": ids, "use_cache": False})  # (1, 4, hidden)
        except (RuntimeError, IndexError, ValueError):  # a forward pass that needs the whole vocabulary
            return None
        if hidden is None or hidden.shape[:2] != logits.shape[:2]:
            return None
        assert self._map is not None
        near = _TOLERANCE.get(self._map.weight.dtype, 1e-4) * float(logits.abs().max())
        for form in _forms(base.config.get_text_config(decoder=True)):
            if torch.allclose(form(self._map(hidden)).float(), logits.float(), rtol=0, atol=near):
                return form
        return None

    def states(self, model: Any, inputs: Mapping[str, Any], places: Tensor) -> Tensor:
        """Run the model up to its readout.

        Args:
            model: what is called; the one this was made for, as it is wrapped and scaled now.
            inputs: `input_ids` (sequences, tokens) and whatever else `forward` takes.
            places: (n,) positions in the flattened `input_ids`, int64.

        Returns:
            (n, width) of the tokens at these places, differentiable: hidden states where the readout is `split`, else logits.
        """
        sequences, tokens = inputs["input_ids"].shape
        if self.split:
            hidden = self._hidden(model, inputs)  # (sequences, tokens, hidden)
            assert hidden is not None
            return hidden.reshape(sequences * tokens, -1)[places]
        first = int((places % tokens).min())  # the logits before it are not asked for
        keep = {"logits_to_keep": tokens - first} if "logits_to_keep" in self._accepted else {}
        logits = model(**inputs, **keep).logits  # (sequences, kept, vocabulary)
        kept = logits.shape[1]
        moved = (places // tokens) * kept + places % tokens - (tokens - kept)
        return logits.reshape(sequences * kept, -1)[moved]  # type: ignore[no-any-return]

    def logits(self, states: Tensor) -> Tensor:
        """The float32 logits (n, vocabulary) of `states`, rounded as the model itself rounds them."""
        if self._form is None:
            return states.float()
        assert self._map is not None
        return self._form(self._map(states.to(self._map.weight.device, self._map.weight.dtype))).float()

    @property
    def vocabulary(self) -> int:
        """How many logits a token has, where the readout is `split`."""
        return 0 if self._map is None else self._map.out_features

    def inputs(self, tokens: Tensor, features: Any = ()) -> dict[str, Any]:
        """The arguments of `forward` for a batch that is padded on the right: its padding comes after all that is asked for, so no mask
        and no positions are needed, and families that know neither are served too.

        Args:
            tokens: (sequences, tokens) ids.
            features: of each sequence's images.
        """
        mask = {"attention_mask": torch.ones_like(tokens)} if "attention_mask" in self._accepted else {}
        return {"input_ids": tokens, "use_cache": False, **mask, **image_arguments(features)}

    def takes(self, argument: str) -> bool:
        """Whether the model's `forward` names an argument."""
        return argument in self._accepted

    def _hidden(self, model: Any, inputs: Mapping[str, Any]) -> Tensor | None:
        """What reaches the readout, (sequences, tokens, hidden), or None where it is not called just once."""
        assert self._map is not None
        with _stopped(self._map) as seen:
            model(**inputs)
        return seen[0] if len(seen) == 1 else None


@contextmanager
def _stopped(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the context, the map keeps what it is given and answers with one number a token instead of the whole vocabulary."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden[..., :1]

    before = module.__dict__.get("forward")
    module.forward = keep
    try:
        yield seen
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
