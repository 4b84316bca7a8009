"""The library: mixing, merging into a plain model, importing and sharing experts, as functions and as commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from t2eval import cli
from t2eval.basemodel.load import load_base
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.expert.library import adapted_base, convert_reference, export_merged, load_library, push, save_mix
from t2eval.svf.adapted import attach
from tests.tiny import save_tiny

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
        convert_reference(tmp_path / "absent.pt", tmp_path / "x", model=str(base))


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


def test_push_says_that_the_hub_cannot_be_reached(library: Path) -> None:
    with pytest.raises(T2Error, match=r"(?s)could not be uploaded.*HF_HUB_OFFLINE") as caught:
        push(library / "math", "nobody/math")
    assert "hf auth login" in str(caught.value)
    result = invoke("expert", "push", library / "math", "nobody/math")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
