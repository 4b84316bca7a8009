"""The base's weights are the same bits after every test: a pytest plug-in, loaded by `tests/conftest.py`.

Whatever a test does with a base model (an exception, an interrupt, a merge inside a search), the weights that it found must be there
afterwards. From `attach` on, a copy of each parameter is kept, and compared at the end of each test for as long as the model lives;
a benchmark's base is compared as its worker does it. A test whose subject is to change a base, or to see that a
model is freed, says so: `@pytest.mark.unwatched`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

_WHOLE = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


@dataclass
class _Seen:
    """One parameter as it was: a weak reference to it, and its bits, of its own shape, as whole numbers of its own width."""

    name: str
    parameter: Any
    bits: Any


class Watch:
    """The base weights of this process's models.

    A model that is let go before its test ends is compared all the same: its parameters are kept until then.
    """

    def __init__(self) -> None:
        self._models: list[tuple[Any, Any, list[_Seen]]] = []  # (weak model, weak state, parameters)
        self._bases: weakref.WeakSet[Any] = weakref.WeakSet()
        self._kept: list[Any] = []
        self.off = False

    def see(self, model: Any, state: Any) -> None:
        """Remember the weights of a model on which a scaling was put."""
        if self.off:
            return
        seen = [_Seen(name, weakref.ref(parameter), _bits(parameter)) for name, parameter in _own(model)]
        self._models.append((weakref.ref(model), weakref.ref(state), seen))
        self._kept.append((state, [parameter for _, parameter in _own(model)]))

    def see_base(self, base: Any) -> None:
        """Remember a benchmark's base, which knows itself what it was."""
        if self.off:
            return
        self._bases.add(base)
        self._kept.append(base)

    def forget(self, merger: Any) -> None:
        """A merged z was made the weights for good: they are another base's now."""
        self._models = [(model, state, seen) for model, state, seen in self._models if state() is None or state().merger is not merger]

    def changed(self) -> list[str]:
        """The parameters whose bits are not those that were seen, and are taken as seen from now on."""
        found = [difference for _, state, seen in self._models for difference in _differences(state(), seen)]
        found += [f"a benchmark's base: {name}" for base in list(self._bases) if base.model is not None and (name := base.changed())]
        return found

    def release(self) -> None:
        """Keep nothing alive: a test is over."""
        self._kept.clear()
        self._models = [entry for entry in self._models if entry[0]() is not None]


def _own(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if not name.startswith("t2_scales") and not parameter.is_meta]


def _bits(tensor: Any) -> Any:
    import torch

    with torch.no_grad():
        plain = tensor.detach().clone(memory_format=torch.contiguous_format)
        return plain.view(getattr(torch, _WHOLE[plain.element_size()])) if not plain.is_complex() else torch.view_as_real(plain)


def _differences(state: Any, seen: list[_Seen]) -> Iterator[str]:
    import torch

    # while z is merged, a base weight that W' was written over waits in the host's memory
    waiting = {} if state is None else {
        id(held.base): state.merger._copies[slot].values
        for slot, held in state.merger._held.items() if held.merged is None and not state.merger._base_shown
    }  # fmt: skip
    for each in seen:
        parameter = each.parameter()
        if parameter is None:
            continue
        now = _bits(waiting.get(id(parameter), parameter))
        if now.shape != each.bits.shape or now.dtype != each.bits.dtype or not torch.equal(now, each.bits):
            each.bits = now
            yield each.name


WATCH = Watch()


def _install() -> None:
    """Watch every `attach` and every benchmark's base from now on. Torch is imported by neither this nor a test that needs no model."""
    attachment, base, merge = (sys.modules.get(f"t2eval.{name}") for name in ("svf.attachment", "bench.base", "svf.merge"))
    if attachment is not None and not hasattr(attachment, "unwatched_put_on"):
        put_on = attachment.unwatched_put_on = attachment.put_on

        def watched(model: Any, *args: Any, **named: Any) -> Any:
            state = put_on(model, *args, **named)
            WATCH.see(model, state)
            return state

        attachment.put_on = watched
        keep = merge.Merger.keep

        def kept(self: Any) -> None:
            keep(self)
            WATCH.forget(self)

        merge.Merger.keep = kept
    if base is not None and not hasattr(base, "unwatched_load"):
        load = base.unwatched_load = base.Base._load

        def loaded(self: Any) -> None:
            load(self)
            WATCH.see_base(self)

        base.Base._load = loaded


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unwatched: the test changes a base model's weights, or sees that a model is freed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    failed = True
    WATCH.off = item.get_closest_marker("unwatched") is not None
    try:
        result = yield
        failed = False
        return result
    finally:
        changed = WATCH.changed()
        WATCH.release()
        watched, WATCH.off = not WATCH.off, False
        if changed and watched and not failed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            pytest.fail(f"The test left a base model with other weights: {changed[0]}{more}.", pytrace=False)
