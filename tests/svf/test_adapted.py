"""Scaling in singular bases, against dense compositions in float64."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from t2eval.errors import T2Error, UsageError
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.bases import Basis, cached_basis, decompose
from t2eval.svf.fingerprint import fingerprint, fingerprint_difference
from t2eval.svf.matrices import decoder_layers
from t2eval.svf.merge import compose
from t2eval.svf.scales import mix_scales
from t2eval.svf.selection import target_paths
from tests.tiny import tiny_model

FAMILIES = ("llama", "mistral", "qwen2", "gemma", "gpt2")
KINDS = ("random", "rank-deficient", "degenerate", "zero")
quick = settings(max_examples=40, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 20), st.integers(1, 20))
seeds = st.integers(0, 2**16)


def matrix(kind: str, shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rank = min(shape)
    if kind == "zero":
        return torch.zeros(shape, dtype=dtype)
    dense = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "rank-deficient":
        dense = dense[:, :1] @ torch.randn(1, shape[1], generator=generator, dtype=torch.float64)
    if kind == "degenerate":  # two singular values, each repeated
        u, _, vh = torch.linalg.svd(dense, full_matrices=False)
        sigma = torch.ones(rank, dtype=torch.float64)
        sigma[: rank // 2] = 3
        dense = u * sigma @ vh
    return dense.to(dtype)


def dense_composition(weight: Tensor, basis: Basis, z: Tensor) -> Tensor:
    """W' in float64, from the same basis."""
    q, w = basis.q.double(), weight.double()
    return q @ torch.diag(z.double()) @ q.T @ w if basis.side == "output" else w @ q @ torch.diag(z.double()) @ q.T


def scales(rank: int, seed: int) -> Tensor:
    return 1 + 0.4 * torch.randn(rank, generator=torch.Generator().manual_seed(seed + 1))


class Toy(nn.Module):
    """One linear map in one decoder layer."""

    def __init__(self, weight: Tensor, bias: Tensor | None, conv: bool = False) -> None:
        super().__init__()
        out, into = weight.shape
        self.layers = nn.ModuleList([nn.Module()])
        linear: nn.Module = Conv1D(out, into) if conv else nn.Linear(into, out, bias=bias is not None)
        linear.weight = nn.Parameter(weight.T.contiguous() if conv else weight.clone())
        if bias is not None:
            linear.bias = nn.Parameter(bias.clone())
        self.layers[0].add_module("proj", linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0].proj(x)


PATH = "layers.0.proj"


@quick
@given(st.sampled_from(KINDS), shapes, seeds)
def test_basis_is_orthonormal_with_the_singular_values(kind: str, shape: tuple[int, int], seed: int) -> None:
    weight = matrix(kind, shape, seed)
    basis = decompose(weight)
    rank = min(shape)
    assert basis.q.dtype == basis.sigma.dtype == torch.float32
    assert (basis.shape, basis.rank, basis.side) == (shape, rank, "output" if shape[0] <= shape[1] else "input")
    torch.testing.assert_close(basis.q.T @ basis.q, torch.eye(rank), atol=1e-5, rtol=0)
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    # The Gram matrix squares the condition number: a zero singular value comes out as about sqrt(eps) of the largest.
    np.testing.assert_allclose(basis.sigma.numpy(), expected, atol=1e-6 * max(1.0, expected.max()))
    assert bool((basis.sigma.diff() <= 0).all())


@quick
@given(shapes, seeds, st.sampled_from([torch.float32, torch.bfloat16]))
def test_compose_is_the_papers_composition(shape: tuple[int, int], seed: int, dtype: torch.dtype) -> None:
    weight = matrix("random", shape, seed, dtype)
    basis = decompose(weight)
    z = scales(basis.rank, seed)
    u, sigma, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    gaps = np.abs(np.diff(np.append(sigma, 0.0))) if len(sigma) > 1 else np.array([1.0])
    composed = compose(weight, basis, z)
    assert composed.dtype == torch.float32
    np.testing.assert_allclose(composed.numpy(), u * (sigma * z.double().numpy()) @ vh, atol=2e-5 * (1 + sigma.max() / gaps.min() * 1e-3))


@quick
@given(st.sampled_from(KINDS), shapes, seeds, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_compose_on_any_matrix(kind: str, shape: tuple[int, int], seed: int, dtype: torch.dtype) -> None:
    weight = matrix(kind, shape, seed, dtype)
    basis = decompose(weight)
    z = scales(basis.rank, seed)
    torch.testing.assert_close(compose(weight, basis, z).double(), dense_composition(weight, basis, z), atol=5e-5, rtol=1e-5)
    assert torch.equal(compose(weight, basis, torch.ones(basis.rank)), weight.float())
    torch.testing.assert_close(compose(weight, basis, torch.full((basis.rank,), 0.5)), weight.float() / 2, atol=5e-5, rtol=1e-5)


@quick
@given(st.sampled_from(KINDS), shapes, seeds, st.booleans(), st.booleans(), st.sampled_from(["direct", "sigmoid-renorm"]))
def test_outputs_and_gradients_match_the_dense_composition(
    kind: str, shape: tuple[int, int], seed: int, biased: bool, conv: bool, parameterisation: str
) -> None:
    weight = matrix(kind, shape, seed)
    if kind == "zero" and parameterisation == "sigmoid-renorm":
        return
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(seed)) if biased or conv else None
    toy = Toy(weight, bias, conv)
    x = torch.randn(3, 4, shape[1], generator=torch.Generator().manual_seed(seed + 2), requires_grad=True)
    before = toy(x)
    adapted = attach(toy, parameterisation=parameterisation)
    assert torch.equal(toy(x), before)
    (p,) = adapted.trainable().values()
    with torch.no_grad():
        p += scales(len(p), seed) - 1
    target = torch.randn(3, 4, shape[0], generator=torch.Generator().manual_seed(seed + 3))
    y = toy(x)
    (y * target).sum().backward()

    p64, x64 = p.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    basis = adapted.bases[PATH]
    if parameterisation == "direct":
        z64 = 1 + p64
    else:
        mask, sigma = torch.sigmoid(p64), basis.sigma.double()
        z64 = mask * sigma.sum() / (sigma * mask).sum()
    q, w = basis.q.double(), weight.double()
    composed = q @ torch.diag(z64) @ q.T @ w if basis.side == "output" else w @ q @ torch.diag(z64) @ q.T
    y64 = x64 @ composed.T + (0 if bias is None else bias.double())
    (y64 * target.double()).sum().backward()
    torch.testing.assert_close(adapted.z()[PATH].double(), z64, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y.double(), y64, atol=2e-4, rtol=1e-4)
    assert p.grad is not None and p64.grad is not None and x.grad is not None and x64.grad is not None
    torch.testing.assert_close(p.grad.double(), p64.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(x.grad.double(), x64.grad, atol=2e-4, rtol=1e-4)
    assert all(parameter.grad is None for name, parameter in toy.named_parameters() if "t2_scales" not in name)


@quick
@given(st.sampled_from(KINDS), shapes, seeds, st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
def test_merge_and_unmerge_bit_exactly(kind: str, shape: tuple[int, int], seed: int, dtype: torch.dtype, conv: bool) -> None:
    weight = matrix(kind, shape, seed, dtype)
    toy = Toy(weight, torch.ones(shape[0], dtype=dtype), conv)
    adapted = attach(toy)
    z = {PATH: scales(min(shape), seed)}
    expected = dense_composition(weight, adapted.bases[PATH], z[PATH]).to(dtype)
    adapted.merge(z)
    stored = toy.layers[0].proj.weight
    assert stored.dtype == dtype
    torch.testing.assert_close(stored.T if conv else stored, expected, atol=5e-5 if dtype == torch.float32 else 0.05, rtol=1e-2)
    adapted.unmerge()
    after = toy.layers[0].proj.weight
    assert torch.equal(after.T if conv else after, weight)


def inputs(rows: int = 3, tokens: int = 7) -> Tensor:
    return torch.randint(0, 256, (rows, tokens), generator=torch.Generator().manual_seed(5))


def random_z(adapted: Adapted, seed: int = 0, spread: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {path: 1 + spread * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_families(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    ids, names = inputs(), list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    base = model(ids).logits
    adapted = attach(model)
    assert len(adapted.paths) == (8 if family == "gpt2" else 14)
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()][: len(classes)] == classes
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "t2_scales" in name
    }
    assert torch.equal(model(ids).logits, base)
    z = random_z(adapted)
    adapted.set_z(z)
    scaled = model(ids).logits
    assert (scaled - base).abs().max() > 0.1
    with adapted.disabled():
        assert torch.equal(model(ids).logits, base)
    with adapted.merged():
        merged = model(ids).logits
        with adapted.disabled():
            assert torch.equal(model(ids).logits, base)
        assert torch.equal(model(ids).logits, merged)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(merged, scaled, atol=tolerance, rtol=tolerance)
    assert torch.equal(model(ids).logits, scaled)
    adapted.set_z(None)
    assert torch.equal(model(ids).logits, base)
    adapted.detach()
    assert list(model.state_dict()) == names and not hasattr(model, "t2_scales")
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(ids).logits, base)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_a_whole_model(family: str) -> None:
    """Against autograd through functional calls with dense W'(z)."""
    model = tiny_model(family).double().float()
    adapted = attach(model)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape)
    ids = inputs()
    model(ids, labels=ids).loss.backward()
    found = {path: parameter.grad for path, parameter in adapted.trainable().items()}
    leaves = {path: parameter.detach().clone().requires_grad_() for path, parameter in adapted.trainable().items()}
    dense = {}
    for path, p in leaves.items():
        weight, basis = model.get_parameter(f"{path}.weight"), adapted.bases[path]
        w = weight.T if family == "gpt2" else weight
        scale = basis.q @ torch.diag(1 + p) @ basis.q.T
        composed = scale @ w if basis.side == "output" else w @ scale
        dense[f"{path}.weight"] = composed.T if family == "gpt2" else composed
    with adapted.disabled():
        torch.func.functional_call(model, dense, (ids,), {"labels": ids}).loss.backward()
    for path, leaf in leaves.items():
        assert found[path] is not None and leaf.grad is not None
        torch.testing.assert_close(found[path], leaf.grad, atol=2e-4 * float(leaf.grad.abs().max()) + 1e-6, rtol=2e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_one_z_a_sequence_gives_the_sequential_outputs(family: str) -> None:
    model = tiny_model(family)
    adapted = attach(model)
    ids = inputs(4)
    each = [random_z(adapted, seed) for seed in range(3)] + [{path: torch.ones(basis.rank) for path, basis in adapted.bases.items()}]
    stacked = {path: torch.stack([z[path] for z in each]) for path in adapted.paths}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 257, "eos_token_id": None}
    with adapted.per_sequence(stacked):
        together = model(ids).logits
        generated = model.generate(ids, **options)
    for row, z in enumerate(each):
        adapted.set_z(z)
        torch.testing.assert_close(together[row : row + 1], model(ids[row : row + 1]).logits, atol=5e-5, rtol=1e-4)
        assert torch.equal(generated[row : row + 1], model.generate(ids[row : row + 1], **options))
    with pytest.raises(T2Error, match=r"There are 4 z, one a sequence, but .* sees a batch of shape \(3"), adapted.per_sequence(stacked):
        model(ids[:3])
    with (
        pytest.raises(T2Error, match="one number of sequences"),
        adapted.per_sequence({adapted.paths[0]: torch.ones(2, 32), adapted.paths[1]: torch.ones(3, 16)}),
    ):
        pass
    adapted.set_z(None)
    with adapted.disabled():
        base = model(ids).logits
    assert torch.equal(model(ids).logits, base)


def test_unmerges_after_an_exception_and_refuses_to_mix_states() -> None:
    model = tiny_model()
    adapted = attach(model)
    weights = {path: model.get_parameter(f"{path}.weight") for path in adapted.paths}
    copies = {path: weight.clone() for path, weight in weights.items()}
    with pytest.raises(KeyboardInterrupt), adapted.merged(random_z(adapted)):
        assert all(model.get_parameter(f"{path}.weight") is not weight for path, weight in weights.items())
        for action in (lambda: adapted.set_z(None), lambda: adapted.merge(), adapted.use_parameters):
            with pytest.raises(T2Error, match="unmerge first"):
                action()
        with pytest.raises(T2Error, match="unmerge first"), adapted.per_sequence({}):
            pass
        raise KeyboardInterrupt
    for path, weight in weights.items():
        assert model.get_parameter(f"{path}.weight") is weight
        assert torch.equal(weight, copies[path])
    adapted.unmerge()


def test_merges_a_tied_weight_in_its_own_module_only() -> None:
    model = tiny_model()
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    second.down_proj.weight = first.down_proj.weight
    adapted = attach(model, layers="0")
    z = {"model.layers.0.mlp.down_proj": torch.full((32,), 2.0)}
    shared = second.down_proj.weight
    copy = shared.clone()
    with adapted.merged(z):
        torch.testing.assert_close(first.down_proj.weight, 2 * copy)
        assert second.down_proj.weight is shared and torch.equal(shared, copy)
    assert first.down_proj.weight is shared and torch.equal(shared, copy)


@torch.no_grad()
def test_saves_the_merged_model_as_a_plain_one(tmp_path: Path) -> None:
    model = tiny_model()
    adapted = attach(model)
    with adapted.merged(random_z(adapted)):
        expected = model(inputs()).logits
        model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(inputs()).logits, expected)
    assert list(loaded.state_dict()) == list(model.state_dict())


class Quantised(nn.Module):
    """An int8 linear map, as quantisation libraries make them: sizes, and a weight that is no float matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


def test_quantised_maps_scale_but_do_not_merge() -> None:
    model = tiny_model("qwen2")
    attention = model.model.layers[0].self_attn
    attention.q_proj = Quantised(attention.q_proj)
    adapted = attach(model)
    path = "model.layers.0.self_attn.q_proj"
    assert path in adapted.paths
    x = torch.randn(2, 3, 32)
    before = attention.q_proj(x)
    adapted.set_z({path: torch.full((32,), 2.0)})
    torch.testing.assert_close(attention.q_proj(x) - attention.q_proj.bias, 2 * (before - attention.q_proj.bias), atol=1e-4, rtol=1e-4)
    weights = {other: model.get_parameter(f"{other}.weight") for other in adapted.paths if other != path}
    with pytest.raises(T2Error, match="q_proj is quantised"):
        adapted.merge(random_z(adapted))
    assert all(model.get_parameter(f"{other}.weight") is weight for other, weight in weights.items())


@pytest.mark.unwatched
def test_parameters_stay_float32_and_follow_the_model() -> None:
    model = tiny_model()
    adapted = attach(model)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.fill_(0.001)
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 and bool((p == 0.001).all()) for p in adapted.trainable().values())
    with torch.inference_mode():
        model(inputs())
    model(inputs(), labels=inputs()).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.any()) for p in adapted.trainable().values())
    assert {id(p) for p in adapted.trainable().values()} == {id(p) for p in model.parameters() if p.requires_grad}


def test_trains_under_autocast_and_gradient_checkpointing() -> None:
    reference: dict[str, Tensor] = {}
    for mode in ("plain", "autocast", "checkpointing"):
        model = tiny_model()
        adapted = attach(model)
        if mode == "checkpointing":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            loss = model(inputs(), labels=inputs()).loss
        loss.backward()
        gradients = {path: p.grad for path, p in adapted.trainable().items()}
        for path, gradient in gradients.items():
            assert gradient is not None
            expected = reference.setdefault(path, gradient)
            tolerance = 0.2 if mode == "autocast" else 1e-5
            assert float((gradient - expected).norm()) <= tolerance * float(expected.norm())


def test_parameters_and_fixed_z_take_turns() -> None:
    model = tiny_model()
    adapted = attach(model)
    base = model(inputs()).logits
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.fill_(0.2)
    trained = model(inputs()).logits
    assert not torch.allclose(trained, base)
    adapted.set_z(None)
    assert torch.equal(model(inputs()).logits, base)
    assert not model(inputs()).logits.requires_grad
    assert all(bool((z == 1).all()) for z in adapted.active_z().values())
    adapted.use_parameters()
    assert torch.equal(model(inputs()).logits, trained)
    torch.testing.assert_close(adapted.active_z(), {path: torch.full((basis.rank,), 1.2) for path, basis in adapted.bases.items()})
    with torch.no_grad(), adapted.merged():
        torch.testing.assert_close(model(inputs()).logits, trained, atol=1e-4, rtol=1e-4)


def test_sigmoid_renorm_keeps_the_sum_and_has_no_gradient_along_the_scale() -> None:
    model = tiny_model()
    adapted = attach(model, parameterisation="sigmoid-renorm", init="paper", seed=3)
    for path, z in adapted.z().items():
        sigma = adapted.bases[path].sigma
        torch.testing.assert_close((sigma * z).sum(), sigma.sum())
    p = torch.cat([parameter.detach() for parameter in adapted.trainable().values()])
    assert abs(float(p.mean()) - 0.1) < 0.01 and abs(float(p.var()) - 1e-3) < 3e-4
    other = attach(tiny_model(), parameterisation="sigmoid-renorm", init="paper", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(adapted.trainable().values(), other.trainable().values(), strict=True))
    model(inputs(), labels=inputs()).loss.backward()
    for parameter in adapted.trainable().values():
        assert parameter.grad is not None
        slope = torch.sigmoid(parameter.detach())
        along = parameter.grad / (1 - slope)  # dp of a common factor of the mask is 1 / (1 - mask)
        assert abs(float(along.sum())) <= 1e-3 * float(along.abs().sum())


def test_sigmoid_renorm_refuses_a_zero_matrix() -> None:
    with pytest.raises(T2Error, match=r"layers\.0\.proj: the weighted sum of its singular values is 0"):
        attach(Toy(torch.zeros(3, 4), None), parameterisation="sigmoid-renorm")


def test_wrong_requests_name_what_is_wrong() -> None:
    model = tiny_model()
    with pytest.raises(UsageError, match=r"Unknown module 'down_porj'. Did you mean .*down_proj"):
        attach(model, modules="down_porj")
    with pytest.raises(UsageError, match=r"Unknown module path 'model.layers.0.mlp.down'. Did you mean 'model.layers.0.mlp.down_proj'"):
        attach(model, paths=["model.layers.0.mlp.down"])
    with pytest.raises(UsageError, match="2 decoder layers, 0 to 1"):
        attach(model, layers="0-2")
    with pytest.raises(UsageError, match="Unknown choice of layers 'some'"):
        attach(model, layers="some")
    with pytest.raises(UsageError, match="Unknown parameterisation 'sigmoid'. Did you mean 'sigmoid-renorm'"):
        attach(model, parameterisation="sigmoid")
    with pytest.raises(UsageError, match="sigmoid form"):
        attach(model, init="paper")
    with pytest.raises(T2Error, match="no list of decoder layers"):
        attach(nn.Linear(2, 2))
    with pytest.raises(T2Error, match="not finite"):
        attach(Toy(torch.tensor([[1.0, float("nan")]]), None))
    assert all(parameter.requires_grad for parameter in model.parameters())
    adapted = attach(model)
    with pytest.raises(T2Error, match="adapted already"):
        attach(model)
    path = adapted.paths[0]
    with pytest.raises(UsageError, match="Unknown adapted matrix 'x'"):
        adapted.set_z({"x": torch.ones(3)})
    with pytest.raises(T2Error, match=r"has shape \(3,\); this matrix needs \(32,\)"):
        adapted.set_z({path: torch.ones(3)})
    with pytest.raises(T2Error, match=f"z of {path} holds values that are not finite"):
        adapted.set_z({path: torch.full((32,), float("nan"))})


@pytest.mark.parametrize("family", FAMILIES)
def test_target_paths(family: str) -> None:
    model = (
        GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=4, n_head=2))
        if family == "gpt2"
        else tiny_model(family, num_hidden_layers=4)
    )
    everything = target_paths(model)
    attention, mlp = target_paths(model, "attention"), target_paths(model, "mlp")
    assert sorted(attention + mlp) == sorted(everything) and not set(attention) & set(mlp)
    assert not any("head" in path or "embed" in path or "wte" in path for path in everything)
    assert all("attn" in path for path in attention) and all("mlp" in path for path in mlp)
    prefix = "transformer.h" if family == "gpt2" else "model.layers"
    assert target_paths(model, layers="half") == [p for p in everything if p.startswith((f"{prefix}.0.", f"{prefix}.1."))]
    assert target_paths(model, layers="1-3") == [p for p in everything if not p.startswith(f"{prefix}.0.")]
    assert target_paths(model, layers="0,3") == [p for p in everything if p.startswith((f"{prefix}.0.", f"{prefix}.3."))]
    suffix = "c_attn" if family == "gpt2" else "self_attn.q_proj"
    assert target_paths(model, suffix) == [p for p in everything if p.endswith(suffix)]
    assert target_paths(model, f"mlp,{suffix}", "2") == [
        p for p in everything if f"{prefix}.2." in p and ("mlp" in p or p.endswith(suffix))
    ]
    modules = dict(model.named_modules())
    assert all(isinstance(modules[path], (nn.Linear, Conv1D)) for path in everything)


def test_the_language_model_of_a_vision_model_is_meant() -> None:
    text = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2, image_size=32, patch_size=8)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    name, layers = decoder_layers(model)
    assert "language_model" in name and len(layers) == 2
    assert all("language_model" in path for path in target_paths(model))


def test_bases_are_cached_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix("random", (12, 7), 0)
    first = cached_basis(weight, tmp_path / "bases")
    (file,) = (tmp_path / "bases").iterdir()
    calls = []
    monkeypatch.setattr("t2eval.svf.bases.decompose", lambda w: calls.append(1) or decompose(w))
    again = cached_basis(weight, tmp_path / "bases")
    assert not calls and torch.equal(first.q, again.q) and torch.equal(first.sigma, again.sigma)
    assert (again.side, again.shape) == (first.side, first.shape)
    for other in (weight + 1e-6, weight.bfloat16(), weight.T.contiguous(), weight.reshape(14, 6)):
        cached_basis(other, tmp_path / "bases")
    assert len(calls) == 4 and len(list((tmp_path / "bases").iterdir())) == 5
    content = file.read_bytes()
    for damaged in (content[:-5], b"", content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged"):
            basis = cached_basis(weight, tmp_path / "bases")
        assert torch.equal(basis.q, first.q)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cached_basis(weight, tmp_path / "bases")
    assert not [path for path in (tmp_path / "bases").iterdir() if path.suffix == ".tmp"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix("random", (4, 7), 0)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match="Cannot cache singular bases"):
        basis = cached_basis(weight, blocked / "bases")
    assert torch.equal(basis.q, decompose(weight).q)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        cached_basis(weight, tmp_path / "bases")
    assert not list((tmp_path / "bases").iterdir())


def test_attach_uses_the_cache_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2EVAL_CACHE", str(tmp_path))
    attach(tiny_model())
    assert len(list((tmp_path / "bases").glob("*.safetensors"))) == 14
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(tiny_model())


def test_a_fingerprint_sees_the_update_and_nothing_else() -> None:
    weight = matrix("random", (24, 40), 0)
    basis = decompose(weight)
    z = scales(24, 0)
    recorded = fingerprint(basis, z)
    flipped = Basis(basis.q * torch.tensor([(-1.0) ** i for i in range(24)]), basis.sigma, basis.side, basis.shape)
    assert fingerprint_difference(recorded, fingerprint(flipped, z)) < 1e-6
    rounded = decompose(weight.bfloat16())
    assert 1e-3 < fingerprint_difference(recorded, fingerprint(rounded, z)) < 0.3
    assert fingerprint_difference(recorded, fingerprint(decompose(matrix("random", (24, 40), 1)), z)) > 0.3
    assert fingerprint_difference(recorded, fingerprint(basis, scales(24, 1))) > 0.3
    assert fingerprint(basis, torch.ones(24)) == [0.0] * 8
    # Equal singular values: a rotation inside them is harmless where z treats them alike, and not where it does not.
    repeated = decompose(matrix("degenerate", (12, 20), 0))
    turn = torch.block_diag(torch.linalg.qr(torch.randn(6, 6))[0], torch.eye(6))
    turned = Basis(repeated.q @ turn, repeated.sigma, repeated.side, repeated.shape)
    alike = torch.cat([torch.full((6,), 1.3), scales(6, 2)])
    assert fingerprint_difference(fingerprint(repeated, alike), fingerprint(turned, alike)) < 1e-5
    assert fingerprint_difference(fingerprint(repeated, scales(12, 2)), fingerprint(turned, scales(12, 2))) > 0.05
    # The null space: z does nothing there, whatever the solver returned.
    deficient = decompose(matrix("rank-deficient", (8, 9), 0))
    turn = torch.block_diag(torch.eye(1), torch.linalg.qr(torch.randn(7, 7))[0])
    turned = Basis(deficient.q @ turn, deficient.sigma, deficient.side, deficient.shape)
    assert fingerprint_difference(fingerprint(deficient, scales(8, 3)), fingerprint(turned, scales(8, 3))) < 1e-3


def test_mix_scales() -> None:
    first, second = {"a": torch.tensor([1.2, 0.8]), "b": torch.tensor([2.0])}, {"a": torch.tensor([0.5, 1.0])}
    paper = mix_scales([first, second], [0.25, 0.5])
    torch.testing.assert_close(paper, {"a": torch.tensor([0.55, 0.7]), "b": torch.tensor([1.0])})
    offset = mix_scales([first, second], [0.25, 0.5], "offset")
    torch.testing.assert_close(offset, {"a": torch.tensor([0.8, 0.95]), "b": torch.tensor([1.25])})
    each = mix_scales([first, second], {"a": [1.0, 0.0], "b": [0.0, 1.0]})
    torch.testing.assert_close(each, {"a": first["a"], "b": torch.ones(1)})
    for alphas, message in (
        ([1.0], "1 alphas for 2 experts"),
        ({"a": [1, 1]}, "No alphas for matrix b"),
        ({"a": [1, 1], "b": [1, 1], "c": [1, 1]}, "'c'"),
    ):
        with pytest.raises(UsageError, match=message):
            mix_scales([first, second], alphas)
    with pytest.raises(UsageError, match="Unknown mix form 'papr'. Did you mean 'paper'"):
        mix_scales([first], [1.0], "papr")
    with pytest.raises(T2Error, match="Matrix a: experts hold 2 and 3 values"):
        mix_scales([first, {"a": torch.ones(3)}], [1, 1])
    with pytest.raises(UsageError, match="at least one"):
        mix_scales([], [])
