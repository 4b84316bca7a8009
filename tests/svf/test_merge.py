"""W' in the place of a weight: in any order with switching off, in half precision, with the base weights on the host."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from t2eval.errors import T2Error, UsageError
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.bases import Basis, decompose
from t2eval.svf.merge import change, compose, compose_into
from tests.svf.test_adapted import PATH, Toy, dense_composition, matrix, scales
from tests.tiny import tiny_model


def ids() -> Tensor:
    return torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(5))


def random_z(adapted: Adapted, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {path: 1 + 0.3 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}


# ---------------------------------------------------------------------- orders
@pytest.mark.parametrize("keep_base", ["device", "host"])
@torch.no_grad()
def test_merging_and_switching_off_in_any_order(keep_base: str) -> None:
    model = tiny_model("qwen2")
    weights = {name: (held, held.clone()) for name, held in model.named_parameters()}
    adapted = attach(model, keep_base=keep_base)
    base, z = model(ids()).logits, random_z(adapted)

    def is_base() -> bool:
        return torch.equal(model(ids()).logits, base)

    with adapted.merged(z):
        merged = model(ids()).logits
    assert not torch.allclose(merged, base, atol=1e-2) and is_base()

    adapted.merge(z)
    with adapted.disabled():
        assert is_base()
        adapted.unmerge()
        assert is_base()
    assert is_base()

    with adapted.disabled():
        adapted.merge(z)
        assert is_base()
    assert torch.equal(model(ids()).logits, merged)
    adapted.unmerge()
    assert is_base()

    with adapted.disabled(), adapted.disabled():
        adapted.merge(z)
        with adapted.disabled():
            assert is_base()
        assert is_base()
        adapted.unmerge()
    assert is_base()

    with adapted.disabled():
        adapted.merge(random_z(adapted, 1))
        adapted.unmerge()
        adapted.merge(z)
    assert torch.equal(model(ids()).logits, merged)
    with adapted.disabled():
        pass
    assert torch.equal(model(ids()).logits, merged)
    adapted.detach()
    assert is_base()
    assert all(model.get_parameter(name) is held and torch.equal(held, before) for name, (held, before) in weights.items())


@pytest.mark.parametrize("keep_base", ["device", "host"])
@torch.no_grad()
def test_an_interrupt_at_any_moment_leaves_the_base_weights(keep_base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    adapted = attach(model, keep_base=keep_base)
    before = {name: held.clone() for name, held in model.named_parameters()}
    real, calls = torch.addmm, 0

    def stop_at(number: int) -> None:
        nonlocal calls
        calls = 0

        def addmm(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                raise KeyboardInterrupt
            return real(*arguments, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(torch, "addmm", addmm)

    for number in (1, 5, 14):
        stop_at(number)
        with pytest.raises(KeyboardInterrupt):
            adapted.merge(random_z(adapted))
        assert not adapted.is_merged
        assert all(torch.equal(model.get_parameter(name), held) for name, held in before.items())


@torch.no_grad()
@pytest.mark.unwatched
def test_base_weights_on_the_host() -> None:
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight  # shared: replaced, not written over
    adapted = attach(model, layers="0", keep_base="host")
    reference = attach(tied := _tied_twin(model), layers="0")
    z = random_z(adapted)
    path = adapted.paths[0]
    held = model.get_parameter(f"{path}.weight")
    for seed in range(3):
        z = random_z(adapted, seed)
        adapted.merge(z)
        reference.merge(z)
        assert model.get_parameter(f"{path}.weight") is held  # the same memory
        assert torch.equal(model(ids()).logits, tied(ids()).logits)
        with pytest.raises(T2Error, match="unmerge first"):
            adapted.keep_base = "device"
        adapted.unmerge()
        reference.unmerge()
    held.mul_(2)  # a base that was changed in between is the one that comes back
    adapted.merge(z)
    adapted.unmerge()
    assert torch.equal(held, 2 * tied.get_parameter(f"{path}.weight"))
    adapted.keep_base = "device"
    with adapted.merged(z):
        assert model.get_parameter(f"{path}.weight") is not held
    with pytest.raises(UsageError, match="Unknown place of the base weights 'hots'. Did you mean 'host'"):
        adapted.keep_base = "hots"  # type: ignore[assignment]
    with pytest.raises(UsageError, match="Unknown place of the base weights 'disk'"):
        attach(tiny_model(), keep_base="disk")  # type: ignore[arg-type]


def _tied_twin(model: nn.Module) -> nn.Module:
    twin = tiny_model()
    twin.load_state_dict(model.state_dict())
    twin.model.layers[1].mlp.down_proj.weight = twin.model.layers[0].mlp.down_proj.weight
    return twin


# ---------------------------------------------------------------------- numbers
def reference_composition(weight: Tensor, z: Tensor) -> Tensor:
    """U diag(σ z) Vᵀ by products in bfloat16, as the reference implementation composes a bfloat16 model."""
    u, sigma, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    u, sigma, vh = u.bfloat16(), sigma.bfloat16(), vh.bfloat16()
    return (u @ torch.diag_embed(sigma * z.bfloat16())) @ vh


@pytest.mark.parametrize("kept", ["all", "few"])
@pytest.mark.parametrize("shape", [(96, 96), (64, 160), (160, 64)])
@pytest.mark.parametrize("work", [torch.float32, torch.bfloat16])
def test_the_error_is_no_larger_than_the_references(work: torch.dtype, shape: tuple[int, int], kept: str) -> None:
    """`work` in bfloat16, with Q in bfloat16, is what an accelerator does."""
    for seed in range(3):
        weight = (matrix("random", shape, seed) / 8).bfloat16()
        exact = decompose(weight)
        basis = Basis(exact.q.to(work), exact.sigma, exact.side, exact.shape)
        z = scales(basis.rank, seed)
        if kept == "few":
            z[10:] = 1
        truth = dense_composition(weight, exact, z)
        ours = torch.empty_like(weight)
        wanted = change(z, weight.device)
        assert wanted is not None and (wanted.places is None) == (kept == "all")
        compose_into(ours, weight, basis, wanted, work)
        error = (ours.double() - truth).norm() / truth.norm()
        reference = (reference_composition(weight, z).double() - truth).norm() / truth.norm()
        assert float(error) <= float(reference)
        if work == torch.float32:  # one rounding
            assert float(error) < 2**-8


@pytest.mark.parametrize("shape", [(20, 20), (12, 40), (40, 12)])
def test_both_orders_of_products_give_the_same(shape: tuple[int, int]) -> None:
    weight = matrix("random", shape, 0)
    basis = decompose(weight)
    for kept in range(1, basis.rank + 1):
        z = torch.ones(basis.rank)
        z[-kept:] = scales(kept, kept)
        torch.testing.assert_close(compose(weight, basis, z).double(), dense_composition(weight, basis, z), atol=2e-5, rtol=1e-5)


def test_what_half_precision_cannot_hold_is_refused() -> None:
    for dtype, size in ((torch.float16, 1e6), (torch.bfloat16, 3e38)):
        toy = Toy(matrix("random", (8, 12), 0).to(dtype), None)
        held = toy.layers[0].proj.weight
        adapted = attach(toy)
        with ExitStack() as stack:
            stack.enter_context(pytest.raises(T2Error, match=rf"z of {PATH} is up to .* {dtype} cannot hold"))
            stack.enter_context(adapted.merged({PATH: torch.full((8,), size)}))
        assert toy.layers[0].proj.weight is held and not adapted.is_merged
        adapted.merge({PATH: torch.full((8,), 100.0)})
        assert bool(torch.isfinite(toy.layers[0].proj.weight).all())


def test_a_device_without_room_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(matrix("random", (8, 12), 0), None)
    adapted = attach(toy)

    def full(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty_like", full)
    with pytest.raises(T2Error, match="no room for merged weights beside the base's: attach with keep_base='host'"):
        adapted.merge({PATH: torch.full((8,), 2.0)})
    assert not adapted.is_merged
