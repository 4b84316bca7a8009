"""LoRA export: the best approximation there is, in plain PEFT, and refused by name where no adapter can stand for an expert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from t2eval.basemodel.load import load_base
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.expert.lora import export_lora, refuse_unfit, short_targets, smallest_rank
from t2eval.expert.serving import sglang_command, vllm_command
from t2eval.svf.attachment import attach
from tests.svf.test_adapted import Quantised
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer
from tests.tiny_vlm import tiny_processor, tiny_vlm

TOKENS = torch.tensor([[5, 9, 40, 7, 100, 3]])


def phi3() -> PreTrainedModel:
    """A model with fused maps: `qkv_proj`, `gate_up_proj`."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    torch.manual_seed(0)
    return Phi3ForCausalLM(Phi3Config(vocab_size=VOCABULARY, **sizes, **ends)).eval()


def mixtral() -> PreTrainedModel:
    """A model with routed experts in one parameter."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(vocab_size=VOCABULARY, num_local_experts=2, **sizes, **ends)).eval()


def make(folder: Path, model: PreTrainedModel, *names: str, modules: str = "all") -> Path:
    """A base model in `folder/base`, and an expert of each name with random z in `folder/library`."""
    model.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    adapted = attach(load_base(str(folder / "base"))[0], modules)
    generator = torch.Generator().manual_seed(1)
    for name in names:
        z = {path: 1 + 0.3 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}
        expert = Expert.from_adapted(adapted, z, name=name, label=name, description="", base_id=str(folder / "base"))
        expert.save(folder / "library" / name)
    return folder / "library"


def merged(base: Path, expert: Path) -> PreTrainedModel:
    """The base model with W' in its weights."""
    adapted = attach(load_base(str(base))[0])
    adapted.bake(Expert.load(expert).z)
    return adapted.model


def deltas(model: PreTrainedModel, other: PreTrainedModel, paths: list[str]) -> dict[str, Tensor]:
    """W' - W by path, (out, in) or as they are stored."""
    return {path: model.get_parameter(f"{path}.weight").detach() - other.get_parameter(f"{path}.weight").detach() for path in paths}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3"])
@pytest.mark.parametrize("rank", [5, 20])
def test_an_adapter_is_the_best_approximation_of_its_rank(family: str, rank: int, tmp_path: Path) -> None:
    library = make(tmp_path, phi3() if family == "phi3" else tiny_model(family), "math")
    (made,) = export_lora(library / "math", tmp_path / "lora", rank=rank)
    base, _ = load_base(str(tmp_path / "base"))
    whole = merged(tmp_path / "base", library / "math")
    exact = deltas(whole, base, list(made.matrices))
    peft = PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    found = {path: peft.get_submodule(f"base_model.model.{path}").get_delta_weight("default").detach() for path in exact}
    squares = {path: delta.double().norm() ** 2 for path, delta in exact.items()}
    missed = 0.0
    for path, delta in exact.items():
        singular = torch.linalg.svdvals(delta.double())  # of whichever way round it is stored: the same
        best = singular[rank:].square().sum() / squares[path]  # Eckart and Young: no matrix of this rank misses less
        error = (found[path].double() - delta.double()).norm() ** 2 / squares[path]
        torch.testing.assert_close(error, best, rtol=1e-3, atol=1e-9)
        assert made.matrices[path].energy == pytest.approx(1 - float(best), abs=1e-5)
        assert made.matrices[path].error == pytest.approx(float(error) ** 0.5, abs=1e-5)
        missed += float(error * squares[path])
    assert made.total.error == pytest.approx((missed / float(sum(squares.values()))) ** 0.5, abs=1e-5)
    assert made.total.energy == pytest.approx(1 - missed / float(sum(squares.values())), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "phi3"])
def test_a_whole_rank_is_the_expert_and_merges_in_peft(family: str, tmp_path: Path) -> None:
    library = make(tmp_path, phi3() if family == "phi3" else tiny_model(family), "math")
    (made,) = export_lora(library / "math", tmp_path / "lora", energy=1.0)
    assert made.rank == made.full_rank == 32 and made.total.energy == pytest.approx(1) and made.total.error < 1e-5
    expected = merged(tmp_path / "base", library / "math")(TOKENS).logits
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert not torch.allclose(original(TOKENS).logits, expected, atol=1e-2)
    peft = PeftModel.from_pretrained(original, str(tmp_path / "lora"))
    torch.testing.assert_close(peft(TOKENS).logits, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(peft.merge_and_unload()(TOKENS).logits, expected, rtol=1e-3, atol=1e-3)


def test_every_matrix_has_the_rank_of_the_file(tmp_path: Path) -> None:
    """SGLang copies each into a place of the configuration's rank, so that narrow matrices (a grouped k_proj) are filled up."""
    library = make(tmp_path, tiny_model(), "math")
    export_lora(library / "math", tmp_path / "lora", rank=24)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (24, 24, {}, {})
    assert sorted(config["target_modules"]) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all((tensor.shape[0] if "lora_A" in name else tensor.shape[1]) == 24 for name, tensor in tensors.items())
    narrow = tensors["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"]  # of rank 16
    assert bool((narrow[16:] == 0).all()) and bool((narrow[:16] != 0).any(dim=1).all())
    assert "rank 24" in (tmp_path / "lora" / "README.md").read_text()


def test_energy_gives_the_smallest_rank_that_keeps_it(tmp_path: Path) -> None:
    library = make(tmp_path, tiny_model(), "math")
    (made,) = export_lora(library / "math", tmp_path / "a", energy=0.9)
    (less,) = export_lora(library / "math", tmp_path / "b", rank=made.rank - 1)
    assert less.total.energy < 0.9 <= made.total.energy
    assert smallest_rank([torch.tensor([3.0, 4.0]), torch.tensor([12.0])], 160 / 169) == 1
    assert smallest_rank([torch.tensor([3.0, 4.0]), torch.tensor([12.0])], 161 / 169) == 2
    assert smallest_rank([torch.tensor([1.0, 1.0, 0.0])], 1.0) == 2


def test_a_library_becomes_one_folder_with_the_servers_command_lines(tmp_path: Path) -> None:
    library = make(tmp_path, tiny_model(), "math", "code")
    made = export_lora(library, tmp_path / "adapters", rank=9)
    assert [each.folder for each in made] == [tmp_path / "adapters" / "code", tmp_path / "adapters" / "math"]
    base, _ = load_base(str(tmp_path / "base"))
    peft = PeftModel.from_pretrained(base, str(tmp_path / "adapters" / "math"), adapter_name="math")
    peft.load_adapter(str(tmp_path / "adapters" / "code"), adapter_name="code")
    answers = {}
    for name in ("math", "code"):
        peft.set_adapter(name)
        answers[name] = peft(TOKENS).logits
    assert not torch.allclose(answers["math"], answers["code"], atol=1e-2)
    folders = {each.expert.name: each.folder for each in made}
    modules = f"code={tmp_path}/adapters/code math={tmp_path}/adapters/math"
    assert vllm_command(str(tmp_path / "base"), folders, 9) == (
        f"vllm serve {tmp_path}/base --enable-lora --lora-modules {modules} --max-lora-rank 16 --max-loras 2"
    )
    assert vllm_command("someone/model", folders, 300).split("--max-lora-rank ")[1].startswith("320 ")
    assert vllm_command("someone/model", folders, 513) is None
    assert f"--enable-lora --lora-paths {modules} --max-loras-per-batch 3" in sglang_command(str(tmp_path / "base"), folders)


def test_a_matrix_that_an_expert_leaves_is_no_target(tmp_path: Path) -> None:
    library = make(tmp_path, tiny_model(), "math", modules="q_proj,down_proj")
    expert = Expert.load(library / "math")
    for path in expert.z:
        if "layers.1" in path:
            expert.z[path].fill_(1.0)
    adapted = attach(load_base(str(tmp_path / "base"))[0], modules="q_proj,down_proj")
    some = Expert.from_adapted(adapted, expert.z, name="some", label="math", description="", base_id=str(tmp_path / "base"))
    some.save(tmp_path / "some")
    (made,) = export_lora(tmp_path / "some", tmp_path / "lora", rank=32)
    assert all("layers.0." in path for path in made.matrices) and len(made.matrices) == 2
    peft = PeftModel.from_pretrained(load_base(str(tmp_path / "base"))[0], str(tmp_path / "lora"))
    adapted.set_z(some.z)
    torch.testing.assert_close(peft(TOKENS).logits, adapted.model(TOKENS).logits, rtol=1e-3, atol=1e-3)
    nothing = {path: torch.ones_like(z) for path, z in expert.z.items()}
    Expert.from_adapted(adapted, nothing, name="no", label="no", description="", base_id=str(tmp_path / "base")).save(tmp_path / "no")
    with pytest.raises(T2Error, match="Expert 'no' changes nothing"):
        export_lora(tmp_path / "no", tmp_path / "none", rank=4)
    assert not (tmp_path / "none").exists()


def test_the_language_model_alone_of_one_with_a_vision_tower(tmp_path: Path) -> None:
    tiny_vlm("llava").save_pretrained(tmp_path / "base")
    tiny_processor("llava").save_pretrained(tmp_path / "base")
    adapted = attach(load_base(str(tmp_path / "base"))[0], modules="attention")
    z = {path: 1 + 0.3 * torch.randn(basis.rank) for path, basis in adapted.bases.items()}
    Expert.from_adapted(adapted, z, name="v", label="v", description="", base_id=str(tmp_path / "base")).save(tmp_path / "v")
    (made,) = export_lora(tmp_path / "v", tmp_path / "lora", energy=1)
    targets = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["target_modules"]
    assert sorted(targets) == sorted(made.matrices)  # q_proj alone would mean the vision tower's too
    peft = PeftModel.from_pretrained(load_base(str(tmp_path / "base"))[0], str(tmp_path / "lora"))
    adapted.set_z(z)
    torch.testing.assert_close(peft(input_ids=TOKENS).logits, adapted.model(input_ids=TOKENS).logits, rtol=1e-3, atol=1e-3)
    assert short_targets(tiny_model(), ["model.layers.0.mlp.up_proj"]) == ["model.layers.0.mlp.up_proj"]


# ---------------------------------------------------------------------- refused
def test_what_no_adapter_can_stand_for_is_refused_by_name(tmp_path: Path) -> None:
    library = make(tmp_path, mixtral(), "math")
    with pytest.raises(T2Error, match=r"model\.layers\.0\.mlp\.experts\.\S+ is one of many in one parameter.*--merged"):
        export_lora(library / "math", tmp_path / "lora", rank=4)
    assert not (tmp_path / "lora").exists()

    library = make(tmp_path / "dense", tiny_model(), "math")
    expert = Expert.load(library / "math")
    tied = tiny_model()
    tied.model.layers[1].mlp.up_proj.weight = tied.model.layers[0].mlp.up_proj.weight
    with pytest.raises(T2Error, match=r"model\.layers\.0\.mlp\.up_proj shares its weight with another module.*--merged"):
        refuse_unfit(tied, expert)
    twice = tiny_model()
    twice.model.layers[1].mlp = twice.model.layers[0].mlp
    with pytest.raises(T2Error, match=r"model\.layers\.0\.mlp\.gate_proj shares its weight"):
        refuse_unfit(twice, expert_of(expert, "model.layers.0.mlp.gate_proj"))
    packed = tiny_model()
    packed.model.layers[0].self_attn.q_proj = Quantised(packed.model.layers[0].self_attn.q_proj)
    with pytest.raises(T2Error, match=r"layers\.0\.self_attn\.q_proj is quantised.*t2-expert\)\.$"):
        refuse_unfit(packed, expert)
    refuse_unfit(tiny_model(), expert)


def expert_of(expert: Expert, path: str) -> Expert:
    """An expert of one of its matrices."""
    return Expert({path: expert.z[path]}, expert.card, b"")


def test_wrong_wishes(tmp_path: Path) -> None:
    library = make(tmp_path, tiny_model(), "math")
    for wish, said in (
        ({}, "give one of the two"),
        ({"rank": 4, "energy": 0.5}, "give one of the two"),
        ({"rank": 0}, "1 to 32, at which the adapter is exact, not 0"),
        ({"rank": 33}, "1 to 32, at which the adapter is exact, not 33"),
        ({"energy": 0.0}, "above 0 and up to 1, not 0"),
        ({"energy": 90.0}, "above 0 and up to 1, not 90"),
    ):
        with pytest.raises(UsageError, match=said):
            export_lora(library / "math", tmp_path / "lora", **wish)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not an empty folder"):
        export_lora(library / "math", tmp_path / "full", rank=4)
