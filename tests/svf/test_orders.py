"""Any order of merging, unmerging, disabling and setting z: the model answers as it says, and the base weights are the same bits."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from t2eval.errors import T2Error
from t2eval.expert.expert import Expert
from t2eval.svf.attachment import attach
from tests.tiny import tiny_model

IDS = torch.tensor([[3, 141, 59, 26]])  # (1, 4)


class Orders(RuleBasedStateMachine):
    """Beside the model, what it should be doing: which z is in force, whether it is merged, how often it is disabled."""

    keep_base = "device"

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model(num_hidden_layers=1)
        self.base = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.adapted = attach(self.model, modules="mlp", cache_dir=None)
        self.adapted.keep_base = self.keep_base
        self.experts = [self._expert(0), self._expert(1)]
        self.answers = {"base": self._logits()}
        for index, expert in enumerate(self.experts):
            self.adapted.set_expert(expert)
            self.answers[f"expert {index}"] = self._logits()
        self.adapted.set_alphas(self.experts, [0.5, 0.5])
        self.answers["mix"] = self._logits()
        self.adapted.set_z(None)
        self.now, self.merged, self.off = "base", None, contextlib.ExitStack()
        self.depth = 0

    def _expert(self, seed: int) -> Expert:
        generator = torch.Generator().manual_seed(seed)
        z = {path: 1 + 0.4 * torch.randn(basis.rank, generator=generator) for path, basis in self.adapted.bases.items()}
        return Expert.from_adapted(self.adapted, z, name=f"e{seed}", label="x", description="x", base_id="tiny")

    def _logits(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(IDS).logits  # (1, 4, vocabulary)

    def _set(self, name: str) -> None:
        if name == "base":
            self.adapted.set_z(None)
        elif name == "mix":
            self.adapted.set_alphas(self.experts, [0.5, 0.5])
        else:
            self.adapted.set_expert(self.experts[int(name[-1])])

    @rule(name=st.sampled_from(["base", "expert 0", "expert 1", "mix"]))
    def set(self, name: str) -> None:
        if self.merged is not None:
            with pytest.raises(T2Error, match="unmerge first"):
                self._set(name)
        else:
            self._set(name)
            self.now = name

    @rule()
    def merge(self) -> None:
        if self.merged is not None:
            with pytest.raises(T2Error, match="unmerge first"):
                self.adapted.merge()
        else:
            self.adapted.merge()
            self.merged = self.now

    @rule()
    def unmerge(self) -> None:
        self.adapted.unmerge()
        self.merged = None

    @precondition(lambda self: self.depth < 3)
    @rule()
    def disable(self) -> None:
        self.off.enter_context(self.adapted.disabled())
        self.depth += 1

    @precondition(lambda self: self.depth > 0)
    @rule()
    def enable(self) -> None:
        self.off.close()
        self.depth = 0

    @precondition(lambda self: self.merged is None)
    @rule(breaks=st.booleans())
    def fast(self, breaks: bool) -> None:
        with pytest.raises(KeyboardInterrupt) if breaks else contextlib.nullcontext(), self.adapted.fast():
            self._answers_as(self.now)
            if breaks:
                raise KeyboardInterrupt

    def _answers_as(self, name: str) -> None:
        expected = self.answers["base" if self.depth else name]
        torch.testing.assert_close(self._logits(), expected, rtol=1e-3, atol=1e-3)

    @invariant()
    def answers_as_it_says(self) -> None:
        self._answers_as(self.merged or self.now)
        assert self.adapted.is_merged == (self.merged is not None)

    def teardown(self) -> None:
        self.off.close()
        self.adapted.unmerge()
        after: dict[str, Any] = self.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in self.base.items())


class OnHost(Orders):
    keep_base = "host"


_SETTINGS = settings(max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
TestOrders = Orders.TestCase
TestOrders.settings = _SETTINGS
TestOnHost = OnHost.TestCase
TestOnHost.settings = _SETTINGS
