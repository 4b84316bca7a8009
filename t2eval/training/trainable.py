"""Trainable: a base model with a few trainable parameters beside its frozen weights, behind one small surface; and SVF's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2eval.basemodel.devices import free_memory
from t2eval.errors import T2Error
from t2eval.expert.expert import Expert
from t2eval.paths import cache_dir
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.cost import learning_from_merged_is_cheaper
from t2eval.svf.matrices import decoder_layers
from t2eval.training.config import TrainConfig
from t2eval.training.record import RunRecord


@dataclass(frozen=True)
class Names:
    """What an expert or adapter is called: `name`, and the `label` and `description` by which dispatch chooses it."""

    name: str
    label: str
    description: str


class Trainable(ABC):
    """A model with a few trainable parameters beside its frozen weights.

    Attributes:
        model: what is called: `model(input_ids=…)`.
    """

    model: Any

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name; nothing else of the model requires a gradient."""

    @abstractmethod
    def base(self) -> Any:
        """A context manager in which the model is the base model: the reference of the KL penalty."""

    @abstractmethod
    def fast(self) -> Any:
        """A context manager in which the model answers as trained so far, as fast as it can, without gradients."""

    def learning(self, tokens: int, passes: int) -> Any:
        """A context manager for the forward and backward passes of one step, in which the parameters do not change.

        Args:
            tokens: that the model will read.
            passes: in which it reads them.
        """
        return nullcontext(self.model)

    @abstractmethod
    def save(self, folder: Path, record: RunRecord, names: Names) -> None:
        """Write what was trained, in the form that evaluation reads.

        Args:
            folder: of the run.
            record: how it was trained, for its card.
            names: what it is called.

        Raises:
            T2Error: the folder cannot be written.
        """

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    def train_mode(self) -> None:
        """Dropout in the adapter only: the base model's own would make the policy that is scored another than the one that spoke."""
        self.model.eval()
        for name, module in self.model.named_modules():
            if "lora_dropout" in name:
                module.train()

    def eval_mode(self) -> None:
        """No dropout at all."""
        self.model.eval()

    def state(self) -> dict[str, Tensor]:
        """A copy of the trainable parameters, on the CPU."""
        return {name: parameter.detach().cpu().clone().contiguous() for name, parameter in self.parameters().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a copy back.

        Raises:
            T2Error: it has other parameters than this model.
        """
        own = self.parameters()
        if set(own) != set(state) or any(own[name].shape != state[name].shape for name in own):
            raise T2Error(
                "The checkpoint holds other parameters than this run trains. Resume with the model, method, modules and layers it was "
                "started with, or give overwrite."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def checkpoint_activations(self) -> None:
        """From now on, keep only each decoder layer's input of a forward pass with gradients, and compute the rest again on the way back.

        transformers' own switch works only in training mode, which would turn the base model's dropout on.
        """
        _, layers = decoder_layers(self.model)
        for layer in layers:
            layer.forward = _computed_again(layer.forward)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run


class SvfTrainable(Trainable):
    """The singular-value scales of the chosen matrices (section 3.1: W' = U diag(σ ⊙ z) Vᵀ)."""

    def __init__(self, model: Any, config: TrainConfig) -> None:
        self.model = model
        self.adapted: Adapted = attach(
            model,
            config.modules or "all",
            config.layers,
            parameterisation=config.parameterisation,
            cache_dir=cache_dir() / "bases",
            keep_base=config.keep_base,
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.adapted.trainable()

    def z(self) -> dict[str, Tensor]:
        """The trained scales, detached."""
        return {path: scale.detach().clone() for path, scale in self.adapted.z().items()}

    def base(self) -> Any:
        return self.adapted.disabled()

    def fast(self) -> Any:
        return self.adapted.fast(self.z())

    def learning(self, tokens: int, passes: int) -> Any:
        """From merged weights where that is counted to be faster (`t2eval.svf.cost`), the model can, and the device has room for them."""
        shapes = [basis.shape for basis in self.adapted.bases.values()]
        cheaper = learning_from_merged_is_cheaper(shapes, tokens, passes, self.device.type)
        if cheaper and self._has_room() and self.adapted.learns_merged():
            return self.adapted.learning()
        return nullcontext(self.model)

    def _has_room(self) -> bool:
        """Whether the device holds the merged weights beside the base's and leaves as much again for activations."""
        free = free_memory(self.device)
        return free is None or free > 2 * self.adapted.merged_bytes

    def save(self, folder: Path, record: RunRecord, names: Names) -> None:
        Expert.from_adapted(
            self.adapted,
            self.z(),
            name=names.name,
            label=names.label,
            description=names.description,
            base_id=record.base_model.id,
            revision=record.base_model.revision,
            training=record.card(),
        ).save(folder)
