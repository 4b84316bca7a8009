"""Methods: what can be trained on a base model, one registry entry each: svf, the paper's baselines lora, ia3 and dora, and further ones.

A further method is one more entry of `METHODS`: its presets, and the class that adds its parameters to a model (a
`t2eval.training.trainable.Trainable`). Nothing here imports torch: the command line reads the names for its `--help`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.errors import unknown

if TYPE_CHECKING:
    from t2eval.training.config import TrainConfig
    from t2eval.training.trainable import Trainable

_PAPER_ADAPTER: dict[str, Any] = {"lr": (2e-4, 5e-4, 2e-5, 5e-5, 2e-6, 5e-6), "clip": (1e-3, 1.0), "kl": 0.0}
_TRAINABLE, _ADAPTERS = "t2eval.training.trainable", "t2eval.training.adapters"


@dataclass(frozen=True)
class Method:
    """One way to adapt a base model.

    Attributes:
        about: what is trained, in one line of help.
        make: (model, config) -> the trainable model: a callable, or `module:name` of one, imported when it is needed.
        embedded: settings of the preset `embedded` for each objective: learning rate, clip, ….
        paper: settings of the preset `paper`. A list is swept, and validation chooses.
        mount: `module:name` of (model, folder of a finished run) -> a context manager with the model as it was trained.
        weights: the file that holds what was trained.
        in_paper: whether the paper compares with it.
    """

    about: str
    make: str | Callable[[Any, TrainConfig], Trainable]
    embedded: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, Any] = field(default_factory=lambda: _PAPER_ADAPTER)
    mount: str = f"{_ADAPTERS}:mounted"
    weights: str = "adapter_model.safetensors"
    in_paper: bool = False

    @property
    def factory(self) -> Callable[[Any, TrainConfig], Trainable]:
        """What adds this method's parameters to a model."""
        found: Callable[[Any, TrainConfig], Trainable] = self.make if callable(self.make) else _at(self.make)
        return found

    def mounted(self, model: Any, folder: Path) -> AbstractContextManager[Any]:
        """A base model as a run of this method left it, inside the context.

        Raises:
            T2Error: what the folder holds is damaged, or does not fit the model.
        """
        found: AbstractContextManager[Any] = _at(self.mount)(model, folder)
        return found


def _at(place: str) -> Any:
    """What `module:name` names."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _rates(reinforce: float, supervised: float) -> dict[str, dict[str, Any]]:
    return {"reinforce": {"lr": reinforce}, "supervised": {"lr": supervised}}


def _ranked(about: str, make: str, rates: dict[str, dict[str, Any]], rank: int) -> Method:
    """An adapter whose rank is another than LoRA's where none is given."""
    own = {"lora_rank": rank}
    return Method(about, make, {objective: {**own, **given} for objective, given in rates.items()}, {**_PAPER_ADAPTER, **own})


METHODS: dict[str, Method] = {
    "svf": Method(
        "the singular values of the weights, scaled by z: an expert",
        f"{_TRAINABLE}:SvfTrainable",
        {"reinforce": {"lr": 4e-3, "clip": 1e-3}, "supervised": {"lr": 1e-2}},
        {"lr": 2e-3, "clip": 1e-3, "kl": (0.0, 0.1, 0.2, 0.3)},
    ),
    "lora": Method("a LoRA adapter", f"{_ADAPTERS}:lora", _rates(5e-4, 2e-3), in_paper=True),
    "ia3": Method("an IA3 adapter", f"{_ADAPTERS}:ia3", _rates(4e-3, 1e-2), in_paper=True),
    "dora": Method("a DoRA adapter", f"{_ADAPTERS}:dora", _rates(5e-4, 2e-3), in_paper=True),
    "vera": _ranked("a VeRA adapter", "t2eval.training.vera:vera", _rates(3e-2, 1e-1), 64),
    "tinylora": _ranked("a TinyLoRA adapter", "t2eval.training.tinylora:tinylora", _rates(1e-2, 3e-2), 2),
    "loraxs": _ranked("a LoRA-XS adapter", "t2eval.training.tinylora:loraxs", _rates(1e-2, 3e-2), 8),
    "full": Method(
        "every weight of the base model",
        "t2eval.training.full:FullTrainable",
        _rates(1e-4, 2e-4),
        mount="t2eval.training.full:mounted",
        weights="model.safetensors",
    ),
}
"""Name of `--method` -> the method. Adapters are PEFT's own (Table 6: LoRA; Table 7: IA3, DoRA; the others are not in the paper)."""


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        UsageError: there is none, with near matches.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def make_trainable(model: Any, config: TrainConfig) -> Trainable:
    """Add a method's parameters to a base model.

    Args:
        model: a transformers causal model; it is frozen.
        config: method, modules, layers, parameterisation, LoRA's sizes, seed.

    Returns:
        The trainable model; before the first step it answers as the base model.

    Raises:
        UsageError: unknown modules or layers.
    """
    return find_method(config.method).factory(model, config)
