"""Experts as files: what is written, and every way in which one may not fit."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert, Score, TrainingRecord, mix
from t2eval.expert.import_sakana import from_sakana
from t2eval.expert.model_card import model_card
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from tests.tiny import tiny_model

RECORD = TrainingRecord(
    task="gsm8k",
    seed=7,
    objective="reinforce",
    steps=10,
    seconds=12.5,
    metric="exact_match",
    scores={
        "before": {"test": Score(score=0.4, stderr=0.02, n=600)},
        "after": {"validation": Score(score=0.6, stderr=float("nan"), n=1), "test": Score(score=0.5, stderr=0.02, n=600)},
    },
)


@pytest.fixture(scope="module")
def adapted() -> Adapted:
    return attach(tiny_model())


def z_of(adapted: Adapted, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {path: 1 + 0.2 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}


def make(adapted: Adapted, name: str = "math", seed: int = 0, **changes: Any) -> Expert:
    settings = {"label": name, "description": f"About {name}.", "base_id": "someone/tiny", "revision": "abc", "training": RECORD, **changes}
    return Expert.from_adapted(adapted, z_of(adapted, seed), name=name, **settings)


def test_saves_and_loads(adapted: Adapted, tmp_path: Path) -> None:
    expert = make(adapted)
    folder = expert.save(tmp_path / "library" / "math")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "expert.json", "expert.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["math"]
    loaded = Expert.load(folder)
    assert loaded.card == expert.card and list(loaded.z) == list(expert.z)
    assert all(torch.equal(loaded.z[path], z) and z.dtype == torch.float32 for path, z in expert.z.items())
    assert loaded.sha256 == expert.sha256 == hashlib.sha256((folder / "expert.safetensors").read_bytes()).hexdigest()
    assert (loaded.name, loaded.label, loaded.description) == ("math", "math", "About math.")
    assert set(load_file(folder / "expert.safetensors")) == {f"z/{path}" for path in adapted.paths}
    card = json.loads((folder / "expert.json").read_text())
    keys = "format_version name label description base_model modules parameterisation basis_fingerprint training versions"
    assert set(card) == set(keys.split())
    assert card["base_model"] == {"id": "someone/tiny", "revision": "abc", "architecture": "LlamaForCausalLM"}
    assert card["modules"]["model.layers.0.mlp.gate_proj"] == {"shape": [80, 32], "side": "input", "rank": 32}
    assert card["training"]["scores"]["after"]["test"] == {"score": 0.5, "stderr": 0.02, "n": 600}
    assert card["training"]["scores"]["after"]["validation"]["stderr"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.check(adapted)


def test_model_card_has_a_model_index(adapted: Adapted, tmp_path: Path) -> None:
    make(adapted).save(tmp_path / "math")
    data = ModelCard.load(tmp_path / "math" / "README.md").data
    assert data.base_model == "someone/tiny" and "t2eval" in data.tags
    found = {(result.dataset_type, result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results}
    assert found == {("gsm8k", "test", "exact_match"): 0.5, ("gsm8k", "validation", "exact_match"): 0.6}
    make(adapted, "bare", training=None, base_id="/home/me/model").save(tmp_path / "bare")
    bare = ModelCard.load(tmp_path / "bare" / "README.md").data
    assert bare.base_model is None and bare.eval_results is None
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "--model t2-expert --model_args pretrained=/home/me/model," in text
    card = make(adapted, "seeing", base_id="me/llava").card
    seeing = card.model_copy(update={"base_model": card.base_model.model_copy(update={"architecture": "LlavaForConditionalGeneration"})})
    assert "--model t2-expert-vlm --model_args pretrained=me/llava," in model_card(seeing)


def test_saving_keeps_other_files_and_never_leaves_half(adapted: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "math"
    folder.mkdir()
    (folder / "log.jsonl").write_text("{}\n")
    first = make(adapted)
    first.save(folder)
    assert (folder / "log.jsonl").read_text() == "{}\n" and Expert.load(folder).sha256 == first.sha256
    second = make(adapted, seed=1)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "expert.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        for target in (folder, tmp_path / "new"):
            with pytest.raises(T2Error, match=r"Cannot save expert 'math' to .*No space left"):
                second.save(target)
    assert Expert.load(folder).sha256 == first.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["math"]
    second.save(folder)
    assert Expert.load(folder).sha256 == second.sha256
    with pytest.raises(T2Error, match="Cannot save expert"):
        second.save(folder / "log.jsonl" / "below")


def test_scales_the_model_as_its_z_does(adapted: Adapted, tmp_path: Path) -> None:
    expert = Expert.load(make(adapted).save(tmp_path / "math"))
    ids = torch.arange(5)[None]
    adapted.set_z(z_of(adapted))
    expected = adapted.model(ids).logits
    adapted.set_z(None)
    adapted.set_expert(expert)
    assert torch.equal(adapted.model(ids).logits, expected)
    other = make(adapted, "code", 1)
    adapted.set_alphas([expert, other], [0.25, 0.75])
    mixed = adapted.model(ids).logits
    adapted.set_z({path: 0.25 * z + 0.75 * other.z[path] for path, z in expert.z.items()})
    torch.testing.assert_close(adapted.model(ids).logits, mixed, atol=1e-5, rtol=1e-5)
    assert mix([expert, other], [1, 0], "paper").keys() == expert.z.keys()
    torch.testing.assert_close(mix([expert, other], [0.5, 0.5], "offset"), mix([expert, other], [0.5, 0.5]))
    adapted.set_z(None)


def edit_card(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        card = json.loads((folder / "expert.json").read_text())
        change(card)
        (folder / "expert.json").write_text(json.dumps(card))

    return apply


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "expert.safetensors")
        change(tensors)
        save_file(tensors, folder / "expert.safetensors")

    return apply


UP = "model.layers.0.mlp.up_proj"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no card": (lambda f: (f / "expert.json").unlink(), "has no expert.json"),
    "no tensors": (lambda f: (f / "expert.safetensors").unlink(), "has no expert.safetensors"),
    "bad JSON": (lambda f: (f / "expert.json").write_text("{"), "expert.json' cannot be read: it is no JSON"),
    "binary card": (lambda f: (f / "expert.json").write_bytes(b"\xff\xfe\x00"), "expert.json' cannot be read: line 1 is not UTF-8"),
    "not an object": (lambda f: (f / "expert.json").write_text("[]"), "no format_version"),
    "newer": (edit_card(lambda c: c.update(format_version=99)), "format version 99; this t2eval reads up to 1"),
    "missing key": (edit_card(lambda c: c.pop("label")), "label: Field required"),
    "unknown key": (edit_card(lambda c: c.update(colour="red")), "colour: Extra inputs"),
    "no modules": (edit_card(lambda c: c.update(modules={})), "modules is empty"),
    "wrong side": (edit_card(lambda c: c["modules"][UP].update(side="output")), rf"modules\.{UP}.*has side input and rank 32"),
    "no fingerprint": (edit_card(lambda c: c["basis_fingerprint"].pop(UP)), f"{UP} is in only one of modules and basis_fingerprint"),
    "short fingerprint": (
        edit_card(lambda c: c["basis_fingerprint"].update({UP: [1.0]})),
        f"basis_fingerprint of {UP} is not 8 finite numbers",
    ),
    "cut off": (lambda f: (f / "expert.safetensors").write_bytes((f / "expert.safetensors").read_bytes()[:-9]), "damaged or cut off"),
    "empty": (lambda f: (f / "expert.safetensors").write_bytes(b""), "damaged or cut off"),
    "missing tensor": (edit_tensors(lambda t: t.pop(f"z/{UP}")), f"lacks the tensor z/{UP}"),
    "extra tensor": (edit_tensors(lambda t: t.update({"z/lm_head": torch.ones(3)})), "holds the tensor z/lm_head"),
    "foreign tensor": (edit_tensors(lambda t: t.update({"w": torch.ones(3)})), "holds the tensor w"),
    "not finite": (edit_tensors(lambda t: t[f"z/{UP}"].fill_(float("inf"))), f"z of {UP} holds values that are not finite"),
    "dtype": (edit_tensors(lambda t: t.update({f"z/{UP}": t[f"z/{UP}"].half()})), f"z of {UP} is torch.float16, not torch.float32"),
    "hidden name": (edit_card(lambda c: c.update(name="../maths")), "name: Value error, a name is a plain file name"),
    "two lines": (edit_card(lambda c: c.update(label="math\nothers")), "label: Value error, a label is one line"),
    "version is no number": (edit_card(lambda c: c.update(format_version=True)), "no format_version"),
    "empty matrix": (edit_card(lambda c: c["modules"][UP].update(shape=[0, 3], side="output", rank=0)), "greater than 0"),
    "deep": (lambda f: (f / "expert.json").write_text("[" * 100_000), "expert.json' cannot be read: it nests deeper"),
    "NaN": (lambda f: (f / "expert.json").write_text('{"format_version": NaN}'), "expert.json' cannot be read: NaN is no JSON"),
    "FIFO card": (lambda f: ((f / "expert.json").unlink(), os.mkfifo(f / "expert.json")), "no regular file"),
    "FIFO tensors": (lambda f: ((f / "expert.safetensors").unlink(), os.mkfifo(f / "expert.safetensors")), "no regular file"),
    "device": (lambda f: ((f / "expert.json").unlink(), (f / "expert.json").symlink_to("/dev/zero")), "a link that leads out"),
    "directory": (lambda f: ((f / "expert.json").unlink(), (f / "expert.json").mkdir()), "no regular file"),
    "complex": (edit_tensors(lambda t: t.update({f"z/{UP}": t[f"z/{UP}"].to(torch.complex64)})), f"z of {UP} is torch.complex64"),
    "length": (edit_tensors(lambda t: t.update({f"z/{UP}": torch.ones(31)})), rf"z of {UP} has shape \(31,\), not \(32,\)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_experts_are_named(adapted: Adapted, tmp_path: Path, damage: str) -> None:
    folder = make(adapted).save(tmp_path / "math")
    change, message = DAMAGE[damage]
    try:
        change(folder)
    except KeyError as error:  # safetensors before 0.6 has no complex numbers: then no file of it has any either
        assert damage == "complex" and "complex64" in str(error)
        return
    with pytest.raises(T2Error, match=message):
        Expert.load(folder)


def test_missing_experts_have_near_matches(adapted: Adapted, tmp_path: Path) -> None:
    make(adapted).save(tmp_path / "math")
    with pytest.raises(T2Error, match=r"no directory .*/maths\. Did you mean .*/math\?"):
        Expert.load(tmp_path / "maths")
    with pytest.raises(T2Error, match="is not a directory"):
        Expert.load(tmp_path / "math" / "README.md")


def mismatched(adapted: Adapted, change: Callable[[dict[str, Any]], object]) -> Expert:
    from t2eval.expert.card import ExpertCard

    expert = make(adapted)
    card = expert.card.model_dump()
    change(card)
    z = {path: z[: card["modules"][path]["rank"]] if path in card["modules"] else z for path, z in expert.z.items()}
    z.update({path: torch.ones(m["rank"]) for path, m in card["modules"].items() if path not in z})
    return Expert({path: z[path] for path in card["modules"]}, ExpertCard.model_validate(card), b"")


def rename(card: dict[str, Any], old: str, new: str) -> None:
    for key in ("modules", "basis_fingerprint"):
        card[key][new] = card[key].pop(old)


MISMATCH: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "architecture": (
        lambda c: c["base_model"].update(architecture="GPT2LMHeadModel"),
        r"\(GPT2LMHeadModel\), but this model is LlamaForCausalLM",
    ),
    "module": (lambda c: rename(c, UP, f"{UP}s"), f"scales {UP}s, which this model does not have. Near it: {UP}"),
    "deeper model": (
        lambda c: rename(c, UP, "model.layers.9.mlp.up_proj"),
        "scales model.layers.9.mlp.up_proj, which this model does not have",
    ),
    "shape": (lambda c: c["modules"].update({UP: {"shape": (96, 32), "side": "input", "rank": 32}}), rf"{UP} has shape \(96, 32\)"),
    "side": (lambda c: c["modules"].update({UP: {"shape": (32, 80), "side": "output", "rank": 32}}), r"\(side output\) in the expert"),
}


@pytest.mark.parametrize("difference", MISMATCH)
def test_mismatches_are_named_before_anything_changes(adapted: Adapted, difference: str) -> None:
    change, message = MISMATCH[difference]
    expert = mismatched(adapted, change)
    adapted.set_z(z_of(adapted, 5))
    ids = torch.arange(5)[None]
    before = adapted.model(ids).logits
    with pytest.raises(T2Error, match=message):
        adapted.set_expert(expert)
    with pytest.raises(T2Error, match=message):
        adapted.set_alphas([make(adapted), expert], [1, 1])
    assert torch.equal(adapted.model(ids).logits, before)
    adapted.set_z(None)


def test_a_matrix_that_is_not_adapted() -> None:
    both, mlp = attach(tiny_model()), attach(tiny_model(), modules="mlp")
    with pytest.raises(T2Error, match=r"self_attn\.q_proj, which is not adapted here: attach with modules='all'"):
        make(both).check(mlp)
    make(mlp).check(both)
    both.set_expert(make(mlp))
    assert bool((both.active_z()["model.layers.0.self_attn.q_proj"] == 1).all())


def test_basis_mismatches(adapted: Adapted) -> None:
    expert = make(adapted)
    rounded = attach(tiny_model(dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match=r"the singular basis of model\.layers\.\d\.\S+ differs from the one it was trained in by \d\.\d%"):
        expert.check(rounded)
    other = attach(tiny_model(seed=1))
    with pytest.raises(T2Error, match=r"singular basis of model\.\S+ differs .*allow_basis_mismatch=true"):
        other.set_expert(expert)
    with pytest.warns(UserWarning, match="singular basis"):
        other.set_expert(expert, allow_basis_mismatch=True)
    assert torch.allclose(other.active_z()[UP], expert.z[UP])
    nudged = tiny_model()
    with torch.no_grad():
        nudged.get_parameter(f"{UP}.weight").add_(0.3 * torch.randn(80, 32))
    with pytest.raises(T2Error, match=f"singular basis of {UP} differs"):
        expert.check(attach(nudged))


def test_architecture_may_differ_where_it_is_allowed(adapted: Adapted) -> None:
    mistral = attach(tiny_model("mistral"))
    expert = make(adapted)
    with pytest.raises(T2Error, match="this model is MistralForCausalLM"):
        expert.check(mistral)
    with pytest.warns(UserWarning, match="this model is MistralForCausalLM"):
        expert.check(mistral, allow_basis_mismatch=True)


def test_wrong_z_makes_no_expert(adapted: Adapted) -> None:
    make_from = Expert.from_adapted
    settings = {"label": "x", "description": "x", "base_id": "x"}
    for z, message in (
        ({"model.layers.0.mlp.up": torch.ones(32)}, f"Did you mean '{UP}'"),
        ({UP: torch.ones(31)}, r"shape \(31,\)"),
        ({UP: torch.full((32,), float("nan"))}, "not finite"),
        ({}, "has no z"),
    ):
        with pytest.raises(T2Error, match=message):
            make_from(adapted, z, name="x", **settings)
    for name in ("a/b", "..", "", ".hidden"):
        with pytest.raises(UsageError, match="plain file name"):
            make_from(adapted, z_of(adapted), name=name, **settings)


HOSTILE: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
    "sparse": (lambda z: z.to_sparse(), "is sparse_coo, not dense"),
    "meta": (lambda z: z.to("meta"), "has no values"),
    "complex": (lambda z: z.to(torch.complex64), "holds complex64 values"),
    "boolean": (lambda z: z > 0, "holds bool values"),
    "quantised": (lambda z: torch.quantize_per_tensor(z, 0.1, 0, torch.qint8), "is quantised"),
    "list": (lambda z: z.tolist(), "is a list, not a tensor"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore")
def test_z_is_a_plain_tensor_of_real_numbers(adapted: Adapted, tmp_path: Path, kind: str) -> None:
    change, message = HOSTILE[kind]
    odd: Any = change(torch.ones(32))
    settings = {"name": "x", "label": "x", "description": "x", "base_id": "x"}
    for use in (
        lambda: Expert.from_adapted(adapted, {UP: odd}, **settings),
        lambda: adapted.set_z({UP: odd}),
        lambda: adapted.merge({UP: odd}),
    ):
        with pytest.raises(T2Error, match=message):
            use()
    assert not adapted.is_merged
    if isinstance(odd, torch.Tensor):
        torch.save({f"{UP}.weight": odd}, tmp_path / "params.pt")
        with pytest.raises(T2Error, match=f"{message}|cannot be read as tensors only"):
            from_sakana(tmp_path / "params.pt", adapted, **settings)


def reference_file(path: Path, adapted: Adapted, numbered: bool) -> dict[str, torch.Tensor]:
    paths = [p for p in adapted.paths if "mlp" in p]
    raw = {f"{p}.weight": (0.1 + 0.5 * torch.randn(adapted.bases[p].rank)).bfloat16() for p in paths}
    named = {name: raw[name] for name in adapted.model.state_dict() if name in raw}
    stored = {f"learnable_params_module_list.{i}": p for i, p in enumerate(named.values())} if numbered else raw
    torch.save(stored, path)
    return raw


@pytest.mark.parametrize("numbered", [False, True])
def test_imports_the_references_checkpoints(adapted: Adapted, tmp_path: Path, numbered: bool) -> None:
    raw = reference_file(tmp_path / "params.pt", adapted, numbered)
    expert = from_sakana(tmp_path / "params.pt", adapted, name="m", label="math", description="d", base_id="someone/tiny")
    assert expert.card.parameterisation == "sigmoid-renorm" and set(expert.z) == {name.removesuffix(".weight") for name in raw}
    for name, p in raw.items():
        weight = adapted.model.get_parameter(name).double()
        u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
        mask = torch.sigmoid(p.double())
        dense = (u * (sigma * mask)) @ vh * sigma.sum() / (sigma * mask).sum()
        path = name.removesuffix(".weight")
        with adapted.merged({path: expert.z[path]}):
            torch.testing.assert_close(adapted.model.get_parameter(name).double(), dense, atol=1e-4, rtol=1e-4)
    loaded = Expert.load(expert.save(tmp_path / "m"))
    loaded.check(adapted)


def test_refuses_what_is_no_reference_checkpoint(adapted: Adapted, tmp_path: Path) -> None:
    path = tmp_path / "params.pt"
    good = reference_file(path, adapted, False)
    settings = {"name": "m", "label": "m", "description": "d", "base_id": "b"}
    name = next(iter(good))
    cases: list[tuple[object, str]] = [
        ({**good, "model.layers.7.mlp.up_proj.weight": torch.ones(32)}, "Unknown adapted matrix 'model.layers.7.mlp.up_proj'"),
        ({**good, name: torch.ones(5)}, r"has shape \(5,\)"),
        ({**good, name: torch.full((32,), float("nan"))}, "not finite"),
        ({"learnable_params_module_list.0": torch.ones(32)}, "holds 1 matrices; this model has 6"),
        ({"adaptive_weights": torch.ones(3)}, "weighted combination"),
        ({"learnable_params_module_list.x": torch.ones(32), **{str(i): torch.ones(32) for i in range(5)}}, "beside numbered ones, 0 to 5"),
        ({f"learnable_params_module_list.{i}": torch.ones(32) for i in range(4, 10)}, "beside numbered ones, 0 to 5"),
        ({1: torch.ones(32)}, "Unknown adapted matrix '1'"),
        ([1, 2], "not a dictionary of tensors"),
        ({}, "not a dictionary of tensors"),
        (Path("x"), "cannot be read as tensors only"),
    ]
    for content, message in cases:
        torch.save(content, path)
        with pytest.raises(T2Error, match=message):
            from_sakana(path, adapted, **settings)
    path.write_bytes(b"no archive")
    with pytest.raises(T2Error, match="cannot be read as tensors only"):
        from_sakana(path, adapted, **settings)
    with pytest.raises(T2Error, match=r"no file .*Did you mean .*params\.pt"):
        from_sakana(tmp_path / "param.pt", adapted, **settings)
