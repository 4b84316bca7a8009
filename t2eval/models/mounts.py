"""Mounts: PEFT adapters on the base model while a group of requests is answered, one alone or a weighted sum of several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error, UsageError
from t2eval.expert.adapter import TENSORS, Adapter
from t2eval.store.digests import file_digest
from t2eval.training.adapters import mounted, mounted_together

_MIX = "mix"


@dataclass(frozen=True)
class AdapterMix:
    """What answers: adapters and their α. One adapter with α = 1 is put on as it is; otherwise PEFT adds them up.

    LoRA: W + Σ α_k ΔW_k, exactly (`combination_type="cat"`). IA3: its vectors are Σ α_k l_k.
    """

    parts: tuple[tuple[Adapter, float], ...]

    @classmethod
    def alone(cls, adapter: Adapter) -> AdapterMix:
        return cls(((adapter, 1.0),))


def refuse_unmixable(adapters: Sequence[Adapter], what: str) -> None:
    """Refuse to mix what PEFT cannot.

    Raises:
        UsageError: an adapter of a type or with a setting that cannot be mixed, or adapters of two types.
    """
    for adapter in adapters:
        if (why := adapter.unmixable) is not None:
            raise UsageError(f"{what} mixes experts, and adapter {adapter.name!r} ({adapter.kind}) cannot be mixed: {why}.")
    if len(kinds := sorted({adapter.kind for adapter in adapters})) > 1:
        raise UsageError(f"{what} mixes experts of one kind; these adapters are {' and '.join(kinds)}. Name those of one kind in experts=.")


class Mounts:
    """Puts adapters on one model.

    Args:
        model: the base model; its modules and parameters are its own, with the same bits, whenever nothing is put on.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._open: tuple[tuple[Adapter, ...], Any] | None = None

    def probe(self, adapters: Sequence[Adapter]) -> None:
        """Put each on and take it off again.

        Raises:
            T2Error: one does not fit the model.
        """
        for adapter in adapters:
            with self.applied(AdapterMix.alone(adapter)):
                pass

    @contextlib.contextmanager
    def applied(self, mix: AdapterMix) -> Iterator[Any]:
        """The model with a mix, inside the context."""
        adapters = tuple(adapter for adapter, _ in mix.parts)
        if self._open is None and len(mix.parts) == 1 and mix.parts[0][1] == 1.0:
            with mounted(self._model, self._unchanged(adapters[0])):
                yield self._model
            return
        with contextlib.nullcontext() if self._open is not None else self.ready(adapters):
            assert self._open is not None
            loaded, model = self._open
            if model.peft_config.get(_MIX) is not None:
                model.set_adapter("0")  # PEFT warns where the active one goes
                model.delete_adapter(_MIX)
            names = [str(loaded.index(adapter)) for adapter in adapters]
            how = {"combination_type": "cat"} if adapters[0].kind == "LORA" else {}
            model.add_weighted_adapter(names, [alpha for _, alpha in mix.parts], adapter_name=_MIX, **how)
            model.set_adapter(_MIX)
            model.eval()
            yield self._model

    fast = applied  # by the name that few-shot search knows

    @contextlib.contextmanager
    def ready(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        """All of some adapters on the model, inside the context, so that one mix after the other costs little."""
        with mounted_together(self._model, {str(place): self._unchanged(adapter) for place, adapter in enumerate(adapters)}) as model:
            self._open = tuple(adapters), model
            try:
                yield
            finally:
                self._open = None

    def _unchanged(self, adapter: Adapter) -> Path:
        """The folder of an adapter, whose weights are still those that were read."""
        if file_digest(adapter.folder / TENSORS) != adapter.weights:
            raise T2Error(f"The adapter {adapter.folder} has changed since it was loaded. Start again.")
        return adapter.folder
