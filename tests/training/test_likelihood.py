"""Likelihood: log-probabilities, divergences and their gradients are those of the plain form, on every family, in little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from t2eval.svf.attachment import attach
from t2eval.training.likelihood import Direction, PaddedBatch, Policy, cut_left, divergence, pad
from t2eval.training.readout import Readout
from tests.training.families import FAMILIES, SCALABLE, family

PAIRS = [([5, 9, 2, 7, 4], [11, 3, 8]), ([6, 2], [13, 1]), ([4, 4, 10], [12, 20, 21, 30, 9, 2])]


def test_both_divergences_are_exact() -> None:
    torch.manual_seed(0)
    new, base = torch.randn(3, 4, 7), torch.randn(3, 4, 7)
    forward = kl_divergence(Categorical(logits=new), Categorical(logits=base))
    backward = kl_divergence(Categorical(logits=base), Categorical(logits=new))
    torch.testing.assert_close(divergence(new, base, "new_to_base"), forward)
    torch.testing.assert_close(divergence(new, base, "base_to_new"), backward)
    assert not torch.allclose(forward, backward)


def moved(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters away from where training begins."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return parameters


def loss_of(log_probs: Tensor, divergences: Tensor) -> Tensor:
    """A loss in which every token has a weight of its own."""
    weights = torch.linspace(-1, 2, len(log_probs))
    return (weights * log_probs).sum() + (weights.flip(0) * divergences).sum()


def plain(model: Any, base: Any, temperature: float, direction: Direction) -> tuple[Tensor, Tensor]:
    """The scores of `PAIRS` from the whole logits of one unpadded sequence at a time."""
    log_probs, divergences = [], []
    for prompt, answer in PAIRS:
        ids, places = torch.tensor([prompt + answer]), slice(len(prompt) - 1, -1)
        with torch.no_grad(), base():
            old = Categorical(logits=model(input_ids=ids, use_cache=False).logits[0, places].float() / temperature)
        new = Categorical(logits=model(input_ids=ids, use_cache=False).logits[0, places].float() / temperature)
        log_probs.append(new.log_prob(torch.tensor(answer)))
        divergences.append(kl_divergence(new, old) if direction == "new_to_base" else kl_divergence(old, new))
    return torch.cat(log_probs), torch.cat(divergences)


def chunked(model: Any, base: Any, policy: Policy, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), base():
        old = policy.states(model, batch)
    return policy.scores(policy.states(model, batch), batch.targets, old)


@pytest.mark.parametrize("name", FAMILIES)
def test_values_and_gradients_are_those_of_the_plain_form(name: str) -> None:
    model = family(name)
    adapted = attach(model, SCALABLE.get(name, "all"))
    parameters = moved(list(adapted.trainable().values()))
    policy = Policy(Readout(model), temperature=0.7, chunk_bytes=4 * 96 * 3)  # three tokens a chunk
    assert policy.readout.split
    found = chunked(model, adapted.disabled, policy, pad(PAIRS, "cpu"))
    expected = plain(model, adapted.disabled, 0.7, "new_to_base")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(loss_of(*found), parameters, allow_unused=True)
    wanted = torch.autograd.grad(loss_of(*expected), parameters, allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in wanted) > len(parameters) / 2
    for one_gradient, other_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one_gradient, other_gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("direction", ["new_to_base", "base_to_new"])
def test_an_adapter_of_peft_too(direction: Direction) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(family("gemma2"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")).eval()
    parameters = moved([parameter for parameter in model.parameters() if parameter.requires_grad])
    policy = Policy(Readout(model), direction=direction, chunk_bytes=1)  # one token a chunk
    assert policy.readout.split
    found = chunked(model, model.disable_adapter, policy, pad(PAIRS, "cpu"))
    expected = plain(model, model.disable_adapter, 1.0, direction)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(loss_of(*found), parameters)
    for one, other in zip(gradients, torch.autograd.grad(loss_of(*expected), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class _Shifted(nn.Module):
    """A model that does to its logits what no known family does."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config, self.device, self.dtype = inner, inner.config, inner.device, inner.dtype

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0, **named: Any) -> Any:
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep, **named)
        out.logits = out.logits + 0.1 * out.logits**2
        return out


def test_a_model_with_a_readout_of_its_own_kind_is_scored_by_its_own_logits() -> None:
    inner = family("llama")
    adapted = attach(inner)
    parameters = moved(list(adapted.trainable().values()))
    model = _Shifted(inner)
    policy = Policy(Readout(model))
    assert not policy.readout.split
    found, expected = chunked(model, adapted.disabled, policy, pad(PAIRS, "cpu")), plain(model, adapted.disabled, 1.0, "new_to_base")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(loss_of(*found), parameters)
    for one, other in zip(gradients, torch.autograd.grad(loss_of(*expected), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class _Largest(TorchDispatchMode):
    """The most numbers that any tensor made inside had, of those whose last dimension is the vocabulary; the readout itself apart."""

    def __init__(self, readout: nn.Module) -> None:
        super().__init__()
        self.weight, self.numbers = readout.weight, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        out = function(*arguments, **(named or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape[-1] == self.weight.shape[0] and not self._is_weight(tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() == self.weight.untyped_storage().data_ptr()


def test_no_tensor_of_all_tokens_and_the_vocabulary_ever_exists() -> None:
    model = family("gemma2")
    adapted = attach(model)
    policy, batch = Policy(Readout(model), chunk_bytes=4 * 96 * 2), pad(PAIRS, "cpu")
    with _Largest(model.get_output_embeddings()) as largest:
        loss_of(*chunked(model, adapted.disabled, policy, batch)).backward()
    assert largest.numbers == 2 * 96
    with _Largest(model.get_output_embeddings()) as largest:
        policy.plain(policy.states(model, batch), batch.targets, None)[0].sum().backward()
    assert largest.numbers == len(batch.targets) * 96


def test_pairs_are_cut_as_hflm_cuts_them() -> None:
    pairs = [([1, 2, 3, 4], [5, 6]), ([1], [2, 3]), ([1, 2], [3, 4, 5, 6, 7])]
    assert cut_left(pairs, 4) == [([2, 3, 4], [5, 6]), ([1], [2, 3]), ([3], [4, 5, 6, 7])]
    assert cut_left(pairs, 64) == pairs
