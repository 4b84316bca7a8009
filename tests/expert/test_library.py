"""The library: mixing, merging into a plain model, importing and sharing experts, as functions and as commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from t2eval import cli
from t2eval.basemodel.load import load_base
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.expert.export import export_merged
from t2eval.expert.import_sakana import import_sakana
from t2eval.expert.library import adapted_base, load_library, save_mix
from t2eval.svf.attachment import attach
from t2eval.svf.merge import compose
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.tiny_vlm import tiny_processor, tiny_vlm

TOKENS = torch.tensor([[5, 9, 40, 7, 100, 3]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def library(base: Path) -> Path:
    """Two experts, `math` and `code`, of the tiny base model."""
    folder = base.parent / "library"
    model, _ = load_base(str(base))
    adapted = attach(model)
    generator = torch.Generator().manual_seed(1)
    for label in ("math", "code"):
        z = {path: 1 + 0.3 * torch.randn(basis.sigma.numel(), generator=generator) for path, basis in adapted.bases.items()}
        Expert.from_adapted(adapted, z, name=label, label=label, description=f"{label} questions", base_id=str(base)).save(folder / label)
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_a_library_is_folders_of_experts(library: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(library, tmp_path / "library")
    (folder / "notes").mkdir()
    math, code = folder / "math", folder / "code"
    for source in (folder, str(folder), f"{math}+{code}", [math, str(code)]):
        assert [expert.name for expert in load_library(source)] == ["code", "math"]
    assert [expert.name for expert in load_library(math)] == ["math"]
    with pytest.raises(T2Error, match="Two experts of the library .* have the name 'math'"):
        load_library([folder, math])
    with pytest.raises(T2Error, match="holds no expert"):
        load_library(folder / "notes")
    with pytest.raises(T2Error, match=r"Did you mean .*/math\?"):
        load_library(folder / "meth")
    with pytest.raises(UsageError, match="No expert was given"):
        load_library("+")
    (code / "expert.json").unlink()
    with pytest.raises(T2Error, match=r"code has no expert\.json"):
        load_library(folder)


@pytest.mark.parametrize("form", ["paper", "offset"])
def test_a_mix_is_an_expert_of_its_own(library: Path, tmp_path: Path, form: str) -> None:
    done = invoke(
        "expert", "mix", library / "math", library / "code", "--alphas", "0.7,0.2", "--form", form, "--output", tmp_path / "mixed"
    )
    assert done.exit_code == 0, done.output
    mixed = Expert.load(tmp_path / "mixed")
    math, code = Expert.load(library / "math"), Expert.load(library / "code")
    for path, z in mixed.z.items():
        expected = 0.7 * math.z[path] + 0.2 * code.z[path] + (0.1 if form == "offset" else 0.0)
        torch.testing.assert_close(z, expected)
    assert mixed.name == "mixed"
    assert "0.7 math + 0.2 code" in mixed.description
    adapted, _, _ = adapted_base([mixed])
    mixed.check(adapted)


def test_a_mix_of_a_language_and_a_vision_models_experts_says_whose_it_is(library: Path, base: Path, tmp_path: Path) -> None:
    """The vision-language model contains the language model; the mix is of the first expert's base."""
    folder = tmp_path / "vlm"
    seeing = tiny_vlm(backbone=load_base(str(base))[0])
    seeing.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    adapted = attach(seeing)
    z = {path: torch.full((basis.rank,), 1.5) for path, basis in adapted.bases.items()}
    expert = Expert.from_adapted(adapted, z, name="pictures", label="pictures", description="", base_id=str(folder), revision="one")
    pictures = expert.save(tmp_path / "pictures")
    for first, second, own, other in ((library / "math", pictures, base, folder), (pictures, library / "math", folder, base)):
        output = tmp_path / f"{first.name}-{second.name}"
        done = invoke("expert", "mix", first, second, "--alphas", "0.5,0.5", "--output", output)
        assert done.exit_code == 0, done.output
        said = " ".join(done.output.split())
        assert f"Saved in {output}: an expert of {own}" in said
        assert f"some are of {other}, which has the same language model: the mix has the base of the first one" in said
        mixed = Expert.load(output)
        assert mixed.card.base_model.id == str(own)
        mixed.check(adapted_base([mixed])[0])
    named = save_mix([pictures], [1.0], tmp_path / "named", model=str(base)).card.base_model
    assert (named.id, named.revision) == (str(base), None), "the revision is the other model's"


def test_mixing_needs_one_alpha_an_expert(library: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 experts and 1 alphas"):
        save_mix([library / "math", library / "code"], [1.0], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_export_is_a_plain_model_with_the_experts_outputs(base: Path, library: Path, tmp_path: Path) -> None:
    done = invoke("expert", "export", library / "math", "--merged", "--output", tmp_path / "model")
    assert done.exit_code == 0, done.output
    expert = Expert.load(library / "math")
    adapted, _, tokenizer = adapted_base([expert])
    before = adapted.model(TOKENS).logits
    adapted.set_expert(expert)
    expected = adapted.model(TOKENS).logits
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain(TOKENS).logits, before, atol=1e-3)
    original = AutoModelForCausalLM.from_pretrained(base)
    assert plain.state_dict().keys() == original.state_dict().keys()
    assert (tmp_path / "model" / "tokenizer_config.json").is_file()


def test_export_keeps_the_checkpoints_dtype_and_its_card_names_the_expert(library: Path, tmp_path: Path) -> None:
    base = tmp_path / "half"
    tiny_model(dtype=torch.bfloat16).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    adapted = attach(load_base(str(base))[0])
    generator = torch.Generator().manual_seed(2)
    z = {path: 1 + 0.3 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}
    expert = Expert.from_adapted(adapted, z, name="sums", label="math", description="Sums.", base_id=str(base))
    expert.save(tmp_path / "sums")
    export_merged(tmp_path / "sums", tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto")
    assert {weight.dtype for weight in plain.parameters()} == {torch.bfloat16}
    original = tiny_model(dtype=torch.bfloat16)
    for path, basis in adapted.bases.items():
        expected = compose(original.get_parameter(f"{path}.weight"), basis, z[path]).bfloat16()
        assert torch.equal(plain.get_parameter(f"{path}.weight"), expected)
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "# half with the expert sums" in card and expert.sha256 in card and str(tmp_path) not in card
    assert not [left for left in tmp_path.iterdir() if left.name.startswith(".")]


def test_a_mixture_of_experts_is_exported_whole(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=3, bos_token_id=256, eos_token_id=257, pad_token_id=257,
    )  # fmt: skip
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    adapted = attach(load_base(str(tmp_path / "base"))[0])
    z = {path: 1 + 0.3 * torch.randn(basis.rank) for path, basis in adapted.bases.items()}
    Expert.from_adapted(adapted, z, name="m", label="m", description="", base_id=str(tmp_path / "base")).save(tmp_path / "m")
    adapted.set_z(Expert.load(tmp_path / "m").z)
    export_merged(tmp_path / "m", tmp_path / "plain")
    plain, _ = load_base(str(tmp_path / "plain"))
    torch.testing.assert_close(plain(TOKENS).logits, adapted.model(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_experts_of_two_models_are_not_used_together(library: Path, tmp_path: Path) -> None:
    for number, (other, said) in enumerate(
        (
            (tiny_model(num_hidden_layers=3), r"this is .*model \(LlamaForCausalLM\): it has no matrix model\.layers\.2\."),
            (tiny_model(intermediate_size=96), r"this is .*model \(LlamaForCausalLM\): matrix \S+ has shape \(96, 32\)"),
            (tiny_model("gpt2"), r"this is .*model \(LlamaForCausalLM\): it has no matrix transformer\.h\.0"),
        )
    ):
        adapted = attach(other)
        z = {path: torch.full((basis.rank,), 1.1) for path, basis in adapted.bases.items()}
        folder = tmp_path / f"expert-{number}"
        Expert.from_adapted(adapted, z, name="code", label="code", description="", base_id="someone/other").save(folder)
        with pytest.raises(T2Error, match=f"Expert 'code' was trained on someone/other, and {said}"):
            save_mix([library / "math", folder], [0.5, 0.5], tmp_path / "mixed")
        with pytest.raises(T2Error, match=f"Expert 'code' was trained on someone/other, and {said}"):
            export_merged(folder, tmp_path / "plain", model=str(library.parent / "model"))
    assert not (tmp_path / "mixed").exists() and not (tmp_path / "plain").exists()


def test_a_peft_adapter_is_called_that(library: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    for use in (lambda: Expert.load(adapter), lambda: load_library(adapter), lambda: load_library(f"{library / 'math'}+{adapter}")):
        with pytest.raises(T2Error, match=r"lora is a LORA adapter, not an expert: .*peft="):
            use()


def test_export_does_not_overwrite(library: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not an empty folder"):
        export_merged(library / "math", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_import_of_the_references_file(base: Path, tmp_path: Path) -> None:
    model, _ = load_base(str(base))
    adapted = attach(model, modules="mlp")
    raw = {f"{path}.weight": torch.randn(basis.sigma.numel()) for path, basis in adapted.bases.items()}
    torch.save(raw, tmp_path / "learned.pt")
    done = invoke("expert", "import", tmp_path / "learned.pt", "--model", base, "--label", "math", "--output", tmp_path / "imported")
    assert done.exit_code == 0, done.output
    imported = Expert.load(tmp_path / "imported")
    assert set(imported.z) == set(adapted.bases)
    assert (imported.label, imported.card.parameterisation) == ("math", "sigmoid-renorm")
    with pytest.raises(T2Error, match="absent.pt"):
        import_sakana(tmp_path / "absent.pt", tmp_path / "x", model=str(base))


def test_list_and_show(library: Path) -> None:
    listed = json.loads(invoke("expert", "list", library, "--json").stdout)
    assert [item["name"] for item in listed] == ["code", "math"]
    assert listed[1]["parameters"] == sum(z.numel() for z in Expert.load(library / "math").z.values())
    plain = invoke("expert", "list", f"{library / 'math'}+{library / 'code'}")
    assert plain.exit_code == 0
    assert "no scores recorded" in plain.stdout
    shown = invoke("expert", "show", library / "math")
    assert "math questions" in shown.stdout
    card = json.loads(invoke("expert", "show", library / "math", "--json").stdout)
    assert card["sha256"] == Expert.load(library / "math").sha256
    assert card["format_version"] == 1


def test_a_missing_expert_is_one_message(library: Path) -> None:
    for arguments in (["show", library / "maths"], ["list", library / "none"], ["export", library / "maths", "--merged", "--output", "x"]):
        result = invoke("expert", *arguments)
        assert result.exit_code in (1, 2)
        assert result.stderr.startswith("Error: ")
        assert str(library) in result.stderr
