"""Methods: what can be trained on a base model, one registry entry each: svf, lora, ia3, dora.

A further method is one more entry of `METHODS`: its presets, and the class that adds its parameters to a model (a
`t2eval.training.trainable.Trainable`). Nothing here imports torch: the command line reads the names for its `--help`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """

    about: str
    make: str | Callable[[Any, TrainConfig], Trainable]
    embedded: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, Any] = field(default_factory=lambda: _PAPER_ADAPTER)

    @property
    def factory(self) -> Callable[[Any, TrainConfig], Trainable]:
        """What adds this method's parameters to a model."""
        if callable(self.make):
            return self.make
        module, name = self.make.split(":")
        found: Callable[[Any, TrainConfig], Trainable] = getattr(importlib.import_module(module), name)
        return found


def _rates(reinforce: float, supervised: float, **reinforced: Any) -> dict[str, dict[str, Any]]:
    return {"reinforce": {"lr": reinforce, **reinforced}, "supervised": {"lr": supervised}}


METHODS: dict[str, Method] = {
    "svf": Method(
        "the singular values of the weights, scaled by z: an expert",
        f"{_TRAINABLE}:SvfTrainable",
        _rates(4e-3, 1e-2, clip=1e-3),
        {"lr": 2e-3, "clip": 1e-3, "kl": (0.0, 0.1, 0.2, 0.3)},
    ),
    "lora": Method("a LoRA adapter", f"{_ADAPTERS}:lora", _rates(5e-4, 2e-3)),
    "ia3": Method("an IA3 adapter", f"{_ADAPTERS}:ia3", _rates(4e-3, 1e-2)),
    "dora": Method("a DoRA adapter", f"{_ADAPTERS}:dora", _rates(5e-4, 2e-3)),
}
"""Name of `--method` -> the method. Baselines are PEFT's own (Table 6: LoRA; Table 7: IA3, DoRA)."""


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
