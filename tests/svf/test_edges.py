"""Scaling where models differ from the plain case: routed experts, large biases, sums in place, kernels, quantised maps, freed models."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from t2eval.errors import T2Error, UsageError
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach, attached
from t2eval.svf.matrices import all_matrices, bypassed, find_matrix
from t2eval.svf.merge import compose
from t2eval.svf.selection import target_paths
from tests.svf.test_adapted import Quantised, Toy, matrix, scales
from tests.tiny import tiny_model

_SIZES = {
    "vocab_size": 96, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 128, "num_experts_per_tok": 2,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 40, "head_dim": 16},
    "Olmoe": {"num_experts": 4},
    "GptOss": {"num_local_experts": 4, "head_dim": 16},
    "GraniteMoe": {"num_local_experts": 4},
    "DeepseekV3": {
        "n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 8, "n_group": 2,
        "topk_group": 1, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 2,
    },
}  # fmt: skip


def build(kind: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**_SIZES, **more})
    model: PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.mul_(3)
    return model


def random_z(adapted: Adapted, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {path: 1 + 0.3 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}


def tokens(sequences: int = 3, length: int = 7) -> Tensor:
    return torch.randint(1, 96, (sequences, length), generator=torch.Generator().manual_seed(5))


def put_dense(model: nn.Module, adapted: Adapted, z: dict[str, Tensor]) -> None:
    """W' written into another copy of the model."""
    with torch.no_grad():
        for path, value in z.items():
            held = find_matrix(model, path)
            assert held.parameter is not None
            held.of(held.parameter).copy_(compose(held.weight(), adapted.bases[path], value))


# ---------------------------------------------------------------------- routed experts
@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("kind", MIXTURES)
@torch.no_grad()
def test_routed_experts_are_scaled_matrix_by_matrix(kind: str, way: str) -> None:
    model, dense = build(kind, **MIXTURES[kind]), build(kind, **MIXTURES[kind])
    for each in (model, dense):
        each.set_experts_implementation(way)
    base = model(tokens()).logits
    adapted = attach(model)
    assert torch.equal(model(tokens()).logits, base)
    of_experts = [path for path in adapted.paths if path.split(".")[-2] in ("gate_up_proj", "down_proj")]
    assert len(of_experts) == 2 * 4 * (1 if kind == "DeepseekV3" else 2)
    z = random_z(adapted)
    put_dense(dense, adapted, z)
    expected = dense(tokens()).logits
    assert (expected - base).abs().max() > 0.05
    weights = {name: (held, held.clone()) for name, held in model.named_parameters()}
    adapted.set_z(z)
    torch.testing.assert_close(model(tokens()).logits, expected, atol=5e-5, rtol=1e-3)
    with adapted.merged():
        torch.testing.assert_close(model(tokens()).logits, expected, atol=5e-5, rtol=1e-3)
    with adapted.disabled():
        torch.testing.assert_close(model(tokens()).logits, base, atol=1e-6, rtol=1e-6)
    one = of_experts[1]
    with adapted.merged({one: z[one]}):  # the other experts of the same parameter stay as they are
        found = model(tokens()).logits
    adapted.set_z({one: z[one]})
    torch.testing.assert_close(model(tokens()).logits, found, atol=5e-5, rtol=1e-3)
    assert all(model.get_parameter(name) is held and torch.equal(held, before) for name, (held, before) in weights.items())
    adapted.detach()
    assert torch.equal(model(tokens()).logits, base)


@pytest.mark.parametrize("kind", MIXTURES)
def test_gradients_of_routed_experts(kind: str) -> None:
    model = build(kind, **MIXTURES[kind])
    adapted = attach(model, modules="mlp")
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape)
    model(tokens(), labels=tokens()).loss.backward()
    leaves = {path: parameter.detach().clone().requires_grad_() for path, parameter in adapted.trainable().items()}
    dense: dict[str, Tensor] = {}
    for path, p in leaves.items():
        held, basis = find_matrix(model, path), adapted.bases[path]
        scale = basis.q @ torch.diag(1 + p) @ basis.q.T
        composed = scale @ held.weight() if basis.side == "output" else held.weight() @ scale
        name = f"{path}.weight" if held.index is None else path.rpartition(".")[0]
        if held.index is None:
            dense[name] = composed
        else:
            parts = dense.setdefault(name, [None] * len(model.get_parameter(name)))  # type: ignore[arg-type]
            parts[held.index] = composed.T if held.transposed else composed  # type: ignore[call-overload]
    dense = {name: torch.stack(value) if isinstance(value, list) else value for name, value in dense.items()}
    with adapted.disabled():
        torch.func.functional_call(model, dense, (tokens(),), {"labels": tokens()}).loss.backward()
    for path, leaf in leaves.items():
        found = adapted.trainable()[path].grad
        if found is None:  # an expert that no token went to
            assert leaf.grad is None or not leaf.grad.any()
            continue
        assert leaf.grad is not None
        torch.testing.assert_close(found, leaf.grad, atol=2e-4 * float(leaf.grad.abs().max()) + 1e-6, rtol=5e-3)


@pytest.mark.parametrize("kind", MIXTURES)
@torch.no_grad()
def test_one_z_a_sequence_reaches_routed_experts(kind: str) -> None:
    model = build(kind, **MIXTURES[kind])
    adapted = attach(model)
    each = [random_z(adapted, seed) for seed in range(3)]
    with adapted.per_sequence({path: torch.stack([z[path] for z in each]) for path in adapted.paths}):
        together = model(tokens()).logits
        generated = model.generate(tokens(), max_new_tokens=4, do_sample=False, eos_token_id=None)
    for place, z in enumerate(each):
        adapted.set_z(z)
        torch.testing.assert_close(together[place : place + 1], model(tokens()[place : place + 1]).logits, atol=2e-4, rtol=1e-3)
        alone = model.generate(tokens()[place : place + 1], max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert torch.equal(generated[place : place + 1], alone)


class _SomeTokens(nn.Module):
    """A layer of a mixture as older code has it: one `nn.Linear` an expert, which sees only its own tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(2)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        flat = hidden_states.reshape(-1, 8)
        half = len(flat) // 2
        return torch.cat([self.experts[0](flat[:half]), self.experts[1](flat[half:])]).view_as(hidden_states)


class _Mixture(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class _Flattened(nn.Module):
    """A dense layer that flattens its batch, called as an expert might be."""

    def __init__(self) -> None:
        super().__init__()
        self.expert_proj = nn.Linear(8, 8, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.expert_proj(hidden_states.reshape(-1, 8)).view_as(hidden_states)


@torch.no_grad()
def test_what_a_layer_sees_decides_and_not_its_name() -> None:
    x = torch.randn(2, 4, 8)
    flattened = _Mixture(_Flattened())
    adapted = attach(flattened)
    each = torch.stack([scales(8, seed) for seed in range(2)])
    with adapted.per_sequence({adapted.paths[0]: each}):
        together = flattened(x)
    for place in range(2):
        adapted.set_z({adapted.paths[0]: each[place]})
        torch.testing.assert_close(together[place : place + 1], flattened(x[place : place + 1]))
    partial = _Mixture(_SomeTokens())
    adapted = attach(partial)
    with adapted.per_sequence(dict.fromkeys(adapted.paths, each)), pytest.raises(T2Error, match=r"experts\.0 sees a batch of shape"):
        partial(x)  # each expert sees four tokens, a multiple of two, but not of two sequences


def test_which_matrices_of_a_mixture_are_meant(caplog: pytest.LogCaptureFixture) -> None:
    model = build("Mixtral", num_local_experts=4)
    every = target_paths(model)
    experts = [path for path in every if ".experts." in path]
    assert len(experts) == 2 * (4 + 4) and experts[1] == "model.layers.0.mlp.experts.gate_up_proj.1"
    assert target_paths(model, "mlp") == experts == target_paths(model, "experts.gate_up_proj,experts.down_proj")
    assert target_paths(model, "dense") == target_paths(model, "attention") == target_paths(model, "all", fused=False)
    assert target_paths(model, "down_proj.2") == [path for path in experts if path.endswith("down_proj.2")]
    with pytest.raises(UsageError, match=r"Unknown module 'experts.gateup_proj'. Did you mean .*experts.gate_up_proj'"):
        target_paths(model, "experts.gateup_proj")
    with caplog.at_level(logging.WARNING):
        attach(model, modules="dense").detach()
    assert "modules=dense scales 11.1% of the weights that it means; 88.9% are left out" in caplog.text
    assert "mlp.experts.gate_up_proj, mlp.experts.down_proj" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        attach(model, modules="all").detach()
        attach(model, modules="attention").detach()
        attach(model, modules="q_proj").detach()
    assert not caplog.text


def test_experts_in_another_form_are_left_out_aloud(caplog: pytest.LogCaptureFixture) -> None:
    model = _Mixture(_Stacked())
    with caplog.at_level(logging.WARNING):
        adapted = attach(model)
    assert adapted.paths == ("layers.0.proj",)
    assert "modules=all scales 20.0% of the weights that it means; 80.0% are left out: stacked." in caplog.text


class _Stacked(nn.Module):
    """Experts in one parameter, and a forward that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8, bias=False)
        self.stacked = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.einsum("bti,eio->bto", self.proj(hidden_states), self.stacked)


# ---------------------------------------------------------------------- biases
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("size", [30.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_large_bias_takes_nothing_from_the_gradient(dtype: torch.dtype, size: float, conv: bool) -> None:
    weight = matrix("random", (48, 64), 0).to(dtype)
    bias = (size * torch.randn(48, generator=torch.Generator().manual_seed(1)) * 8).to(dtype)  # W x is about 8 in size
    toy = Toy(weight, bias, conv)
    adapted = attach(toy)
    (p,) = adapted.trainable().values()
    with torch.no_grad():
        p += scales(48, 2) - 1
    x = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    target = torch.randn(2, 32, 48, generator=torch.Generator().manual_seed(4)).to(dtype)
    y = toy(x)
    assert y.dtype == dtype
    (y * target).sum().backward()
    q, p64 = adapted.bases[adapted.paths[0]].q.double(), p.detach().double().requires_grad_()
    signal = x.double() @ (q @ torch.diag(1 + p64) @ q.T @ weight.double()).T
    (signal * target.double()).sum().backward()
    assert p.grad is not None and p64.grad is not None
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}[dtype]
    assert float((p.grad.double() - p64.grad).norm() / p64.grad.norm()) < 2 * rounding
    expected = signal.detach() + bias.double()
    assert float((y.detach().double() - expected).abs().max() / expected.abs().max()) < 2 * rounding


@pytest.mark.unwatched
def test_a_bias_is_read_when_the_map_is_called() -> None:
    toy = Toy(matrix("random", (4, 6), 0), torch.zeros(4))
    adapted = attach(toy)
    adapted.set_z({adapted.paths[0]: torch.full((4,), 2.0)})
    x = torch.randn(3, 6)
    before = toy(x)
    with torch.no_grad():
        toy.layers[0].proj.bias.fill_(5.0)
    torch.testing.assert_close(toy(x), before + 5)


def test_an_interrupt_leaves_a_quantised_map_its_bias() -> None:
    toy = Toy(matrix("random", (4, 6), 0), torch.ones(4))
    packed = Quantised(toy.layers[0].proj)
    toy.layers[0].proj = packed
    adapted = attach(toy)
    adapted.set_z({adapted.paths[0]: scales(4, 1)})
    x = torch.randn(3, 6)
    expected = toy(x)

    class Interrupting(Tensor):
        @classmethod
        def __torch_function__(cls, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy(x.as_subclass(Interrupting))
    assert packed.bias is not None
    torch.testing.assert_close(toy(x), expected)


# ---------------------------------------------------------------------- models with ways of their own
@pytest.mark.parametrize("settings", [{}, {"new_decoder_architecture": True, "num_kv_heads": 1}, {"parallel_attn": False}])
def test_sums_in_place_behind_a_scaled_map(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = transformers.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=96, bias=True, **settings)
    model = transformers.FalconForCausalLM(config).eval()
    adapted = attach(model)
    loss = model(tokens(), labels=tokens()).loss
    loss.backward()
    path = next(path for path in adapted.paths if path.endswith("dense"))
    gradient = adapted.trainable()[path].grad
    assert gradient is not None
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        adapted.trainable()[path].add_(step)
        moved = model(tokens(), labels=tokens()).loss
    assert float(moved - loss) == pytest.approx(1e-2 * float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "names", "left"),
    [
        ("Mamba", {"x_proj", "dt_proj", "out_proj"}, "in_proj"),
        ("FalconMamba", {"x_proj", "dt_proj", "out_proj"}, "in_proj"),
        ("Mamba2", {"out_proj"}, "in_proj"),
        ("Jamba", {"dt_proj"}, None),
    ],
)
def test_matrices_that_a_kernel_takes_are_refused_by_name(kind: str, names: set[str], left: str | None) -> None:
    state = {"Mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1}}.get(kind, {"state_size": 4})
    more = {"num_experts": 2, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1} if kind == "Jamba" else state
    model = build(kind, **more)
    with pytest.raises(T2Error, match=rf"hands the weights of {', '.join(sorted(names))} to a kernel .* Leave them out: modules .*in_proj"):
        attach(model)
    with pytest.raises(T2Error, match=sorted(names)[0]):
        attach(model, modules=sorted(names)[0])
    with pytest.raises(T2Error, match=sorted(names)[0]):
        attach(model, paths=[next(path for path in all_matrices(model) if path.endswith(sorted(names)[0]))])
    adapted = attach(model, modules=left or "in_proj")
    z = random_z(adapted)
    adapted.set_z(z)
    scaled = model(tokens()).logits
    with adapted.merged(z):
        torch.testing.assert_close(model(tokens()).logits, scaled, atol=1e-4, rtol=1e-3)


def test_ordinary_models_hand_no_weight_to_a_kernel() -> None:
    kinds = ["Bloom", "OPT", "GPTNeoX", "Phi3", "Gemma2", "Cohere", "Qwen3", "StableLm", "Falcon", "GPTJ", "CodeGen"]
    for kind in kinds:
        model = build(kind, **({"n_layer": 1, "n_head": 2, "n_embd": 32, "rotary_dim": 8} if kind in ("GPTJ", "CodeGen") else {}))
        assert not {name for module in model.modules() for name in bypassed(module)}, kind


# ---------------------------------------------------------------------- quantised
def test_a_quantised_base_trains_and_adapts() -> None:
    model = tiny_model("qwen2")
    for layer in model.model.layers:
        layer.mlp.down_proj = Quantised(layer.mlp.down_proj)
    adapted = attach(model)
    path = "model.layers.1.mlp.down_proj"
    assert path in adapted.paths and not adapted.mergeable
    ids = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(0))
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in adapted.trainable().values())
    z = random_z(adapted)
    with torch.no_grad():
        adapted.set_z(z)
        expected = model(ids).logits
        with adapted.fast(z):
            assert model.model.layers[0].self_attn.q_proj.weight is not None
            torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
            with adapted.disabled():
                base = model(ids).logits
        assert not torch.allclose(base, expected, atol=1e-2)
        adapted.set_z(None)
        torch.testing.assert_close(model(ids).logits, base)
        with adapted.fast({path: z[path]}):
            only = model(ids).logits
        adapted.set_z({path: z[path]})
        torch.testing.assert_close(model(ids).logits, only)


# ---------------------------------------------------------------------- lives
@pytest.mark.unwatched
@pytest.mark.parametrize("kind", ["tiny", "Mixtral"])
def test_a_model_is_freed_as_soon_as_it_is_let_go(kind: str) -> None:
    model = tiny_model("qwen2") if kind == "tiny" else build("Mixtral", num_local_experts=2)
    gc.collect()
    gc.disable()
    try:
        adapted = attach(model)
        with torch.no_grad(), adapted.merged(random_z(adapted)):
            model(tokens())
        with adapted.per_sequence({path: torch.ones(3, basis.rank) for path, basis in adapted.bases.items()}):
            pass
        freed = [weakref.ref(thing) for thing in (model, adapted, adapted.parameters, adapted.bases[adapted.paths[0]].q)]
        freed += [weakref.ref(parameter) for parameter in model.parameters()]
        del model, adapted
        assert all(reference() is None for reference in freed)
    finally:
        gc.enable()


def test_the_scaling_belongs_to_the_model() -> None:
    model = tiny_model()
    assert attached(model) is None
    paths = attach(model).paths  # the Adapted itself is let go
    found = attached(model)
    assert found is not None and found.paths == paths
    found.set_z(random_z(found))
    scaled = model(tokens()).logits
    found.detach()
    assert attached(model) is None and not torch.allclose(model(tokens()).logits, scaled, atol=1e-2)


@pytest.mark.unwatched
def test_a_copy_of_an_adapted_model_is_its_own() -> None:
    model = tiny_model("qwen2")
    adapted = attach(model)
    adapted.set_z(random_z(adapted))
    expected = model(tokens()).logits
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(tokens()).logits, expected)
    other = attached(twin)
    assert other is not None
    other.set_z(None)
    assert not torch.allclose(twin(tokens()).logits, expected, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_merged_maps_have_no_hooks_of_ours_and_get_them_back(family: str) -> None:
    model = tiny_model(family)
    adapted = attach(model)
    z = random_z(adapted)
    maps = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert maps
    adapted.set_z(z)
    scaled = model(tokens()).logits
    adapted.set_z(None)
    for context in (adapted.merged, adapted.fast):
        with context(z):
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in maps)
            torch.testing.assert_close(model(tokens()).logits, scaled, atol=1e-4, rtol=1e-4)
            with adapted.disabled():
                base = model(tokens()).logits
        assert torch.equal(model(tokens()).logits, base)
        assert all(module._forward_hooks or module._forward_pre_hooks for module in maps)
    adapted.set_z(z)
    assert torch.equal(model(tokens()).logits, scaled)
    with pytest.raises(KeyboardInterrupt), adapted.merged(z):
        raise KeyboardInterrupt
    assert torch.equal(model(tokens()).logits, scaled)
    adapted.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in maps)


@pytest.mark.unwatched
def test_hooks_of_others_see_what_they_saw_before_and_after_a_merge() -> None:
    model = tiny_model("llama")
    adapted = attach(model)
    z = random_z(adapted)
    down = model.model.layers[0].mlp.down_proj  # its narrow side is its output
    up = model.model.layers[0].mlp.up_proj
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output.clone())

    def answered() -> Tensor:
        seen.clear()
        model(tokens())
        return torch.cat([output.flatten() for output in seen])

    before = down.register_forward_hook(see)  # there before the merge: ours stays where it is
    adapted.set_z(z)
    scaled = answered()
    with adapted.merged(z):
        during = up.register_forward_hook(see)  # there after ours stepped aside: ours comes back before it
        answered()
    assert len(seen) == 2
    torch.testing.assert_close(answered()[-len(scaled) :], scaled)
    twice = answered()
    before.remove()
    during.remove()
    up.register_forward_hook(see)
    down.register_forward_hook(see)
    torch.testing.assert_close(answered(), twice)


@pytest.mark.unwatched
def test_a_copy_made_while_z_is_merged_is_unmerged_by_itself() -> None:
    model = tiny_model("llama")
    adapted = attach(model)
    z = random_z(adapted)
    adapted.set_z(z)
    scaled = model(tokens()).logits
    with adapted.merged(z):
        twin = copy.deepcopy(model)
    other = attached(twin)
    assert other is not None
    other.unmerge()
    torch.testing.assert_close(twin(tokens()).logits, scaled)
    assert torch.equal(model(tokens()).logits, scaled)
    other.set_z(None)
    assert not torch.allclose(twin(tokens()).logits, scaled, atol=1e-2)
