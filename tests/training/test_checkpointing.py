"""Activation checkpointing: the decoder layers are run again on the way back, with the same gradients of the policy and its penalty."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2eval.svf.matrices import decoder_layers
from t2eval.training.likelihood import Policy, pad
from t2eval.training.methods import make_trainable
from t2eval.training.readout import Readout
from tests.training.conftest import one_step
from tests.training.families import family
from tests.training.test_likelihood import PAIRS, chunked, loss_of, moved


def gradient(trainable: Any) -> Tensor:
    policy = Policy(Readout(trainable.model), chunk_bytes=4 * 96 * 3)
    loss = loss_of(*chunked(trainable.model, trainable.base, policy, pad(PAIRS, "cpu")))
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(trainable.parameters().values()))])


@pytest.mark.parametrize("method", ["svf", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3_moe", "falcon"])
def test_the_gradient_stays_and_layers_run_again(name: str, method: str) -> None:
    modules = {"svf": None, "lora": "attention"}[method]
    trainable = make_trainable(family(name), one_step(method=method, modules=modules, lora_dropout=0.0))
    moved(list(trainable.parameters().values()))
    trainable.train_mode()
    calls: list[int] = []
    _, layers = decoder_layers(trainable.model)
    first = next(module for module in layers[0].modules() if isinstance(module, torch.nn.LayerNorm) or "RMSNorm" in type(module).__name__)
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    wanted, plainly = gradient(trainable), len(calls)
    trainable.checkpoint_activations()
    calls.clear()
    torch.testing.assert_close(gradient(trainable), wanted, rtol=1e-4, atol=1e-5)
    assert len(calls) == plainly + 1  # the pass with gradients again; that of the base model not
    hook.remove()


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe"])
def test_transformers_own_switch_does_the_same(name: str) -> None:
    """For who calls it: it works in training mode only, so it is for models without dropout."""
    trainable = make_trainable(family(name), one_step())
    moved(list(trainable.parameters().values()))
    wanted = gradient(trainable)
    trainable.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainable.model.enable_input_require_grads()
    trainable.model.train()
    torch.testing.assert_close(gradient(trainable), wanted, rtol=1e-4, atol=1e-5)
