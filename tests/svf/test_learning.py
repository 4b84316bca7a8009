"""Learning from merged weights: the same values and gradients as under the hooks, by half of the products, chosen by count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from t2eval.errors import T2Error
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.cost import learning_from_merged_is_cheaper

SIZES = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def llama(**named: Any) -> Any:
    config = hf.LlamaConfig(
        hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **SIZES, **named
    )
    return hf.LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SIZES)).eval()


def mixtral() -> Any:
    config = hf.MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        **SIZES,
    )
    return hf.MixtralForCausalLM(config).eval()


def falcon() -> Any:
    config = hf.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, parallel_attn=True, **SIZES)
    return hf.FalconForCausalLM(config).eval()


def moved(model: Any, parameterisation: str = "direct", size: float = 0.1) -> Adapted:
    adapted = attach(model, parameterisation=parameterisation)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(size * torch.randn_like(parameter))
    return adapted


def gradients(adapted: Adapted) -> tuple[Tensor, list[Tensor]]:
    ids = torch.arange(24).view(3, 8) % 90  # (sequences, tokens)
    loss = adapted.model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss.detach(), list(torch.autograd.grad(loss, list(adapted.trainable().values())))


@pytest.mark.parametrize("parameterisation", ["direct", "sigmoid-renorm"])
@pytest.mark.parametrize("make", [llama, gpt2, mixtral, lambda: llama(attention_bias=True, mlp_bias=True)])
def test_values_and_gradients_are_those_of_the_hooks(make: Callable[[], Any], parameterisation: str) -> None:
    adapted = moved(make(), parameterisation)
    loss, expected = gradients(adapted)
    with adapted.learning():
        merged_loss, found = gradients(adapted)
    assert torch.allclose(loss, merged_loss, atol=1e-5)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-4 * float(one.abs().max()))
    again, _ = gradients(adapted)
    assert torch.equal(again, loss), "the base weights are back"


def test_the_base_is_seen_inside_and_learns_nothing() -> None:
    model = llama()
    ids = torch.arange(8)[None]
    before = model(input_ids=ids).logits.detach()
    adapted = moved(model)
    with adapted.learning(), adapted.disabled():
        assert torch.equal(model(input_ids=ids).logits, before)
        assert not model(input_ids=ids).logits.requires_grad


def test_z_near_nought_is_left_to_its_hook() -> None:
    adapted = moved(llama(), size=0.05)
    path = adapted.paths[0]
    with torch.no_grad():
        adapted.trainable()[path][0] = -1.0  # z = 0: nothing can be divided by it
    _, expected = gradients(adapted)
    with adapted.learning():
        _, found = gradients(adapted)
    for one, other in zip(expected, found, strict=True):
        assert torch.isfinite(other).all()
        assert torch.allclose(one, other, atol=1e-6 + 1e-4 * float(one.abs().max()))


def test_a_model_that_adds_in_place_is_told_apart() -> None:
    assert moved(llama()).learns_merged()
    adapted = moved(falcon())
    if adapted.learns_merged():  # a release that no longer adds in place: then the gradients are right
        _, expected = gradients(adapted)
        with adapted.learning():
            _, found = gradients(adapted)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(expected, found, strict=True))
    assert not adapted.is_merged


def test_where_it_does_not_serve() -> None:
    adapted = moved(llama())
    adapted.keep_base = "host"
    assert not adapted.learns_merged()
    adapted.keep_base = "device"
    adapted.set_z(None)
    assert not adapted.learns_merged()
    with pytest.raises(T2Error, match="use_parameters"), adapted.learning():
        pass
    adapted.use_parameters()
    with adapted.merged(), pytest.raises(T2Error, match="unmerge first"), adapted.learning():
        pass


def test_bfloat16_gradients_point_the_same_way() -> None:
    adapted = moved(llama().to(torch.bfloat16), size=1e-3)
    _, expected = gradients(adapted)
    with adapted.learning():
        _, found = gradients(adapted)
    one, other = torch.cat(expected), torch.cat(found)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.99


@pytest.mark.parametrize(
    ("tokens", "passes", "device", "cheaper"),
    [(64 * 640, 8, "cuda", True), (4096, 1, "cuda", False), (256, 1, "cuda", False), (200_000, 40, "cuda", True)],
)
def test_the_count_at_the_shapes_of_8b(tokens: int, passes: int, device: str, cheaper: bool) -> None:
    shapes = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)] * 32
    assert learning_from_merged_is_cheaper(shapes, tokens, passes, device) is cheaper


def test_the_count_picks_the_faster_way_where_clocks_have_been() -> None:
    """33 steps that `benchmarks/learning_paths.py` measured on one CPU thread; no clock runs here."""
    grid = json.loads((Path(__file__).parent / "learning_paths.json").read_text(encoding="utf-8"))["grid"]
    slower = []
    for point in grid:
        shapes = [(out, into) for out, into in point["shapes"]] * point["layers"]
        tokens = point["sequences"] * point["tokens"] * point["passes"]
        merged = learning_from_merged_is_cheaper(shapes, tokens, point["passes"], "cpu")
        slower.append(point["merged_over_hooks"] if merged else 1 / point["merged_over_hooks"])
    assert len(slower) == 33 and {point["merged_over_hooks"] < 0.97 for point in grid} == {True, False}
    assert sum(value <= 1.03 for value in slower) >= 0.9 * len(slower)  # within 3%: what two runs of one side differ by
    assert max(slower) < 1.3
