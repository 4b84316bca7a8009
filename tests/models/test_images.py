"""The classes over hf-multimodal, through lm-eval's own evaluator on tiny vision-language models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.hf_vlms import HFMultimodalLM

from t2eval.environment.environment import Environment, make_task_manager
from t2eval.environment.multimodal import MultimodalLM
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.models import images as t2
from t2eval.models.plugin import MODELS
from t2eval.svf.attachment import attach
from t2eval.svf.matrices import find_matrix
from t2eval.svf.merge import compose
from t2eval.training.adapters import PeftTrainable, load_adapter
from t2eval.training.config import TrainConfig
from t2eval.training.methods import make_trainable
from tests.tiny import save_tiny, tiny_model
from tests.tiny_vlm import FAMILIES, save_tiny_vlm, tiny_processor, tiny_vlm

TASKS = Path(__file__).parents[1] / "fixtures" / "picture_tasks"
LABELS = ("dispatch", "math", "sight")
CLASSES = {"expert": t2.T2ExpertVlm, "prompt": t2.T2PromptVlm, "cls": t2.T2ClsVlm, "fewshot": t2.T2FewshotVlm}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each family a model in the Hub layout and a library of three experts that change its answers."""
    folders = {}
    for family in FAMILIES:
        folder = folders[family] = tmp_path_factory.mktemp(family)
        save_tiny_vlm(folder / "base", family)
        adapted = attach(tiny_vlm(family), cache_dir=folder / "bases")
        for index, label in enumerate(LABELS):
            generator = torch.Generator().manual_seed(index)
            z = {path: 1 + 0.4 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}
            Expert.from_adapted(adapted, z, name=f"e-{label}", label=label, description=f"About {label}.", base_id="tiny").save(
                folder / "library" / f"e-{label}"
            )
    return folders


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval lists all installed packages with pip after each evaluation: seconds that test nothing of ours."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)


def _make(kind: str, world: Path, **arguments: Any) -> Any:
    given = {"pretrained": str(world / "base"), "experts": str(world / "library"), "include_path": str(TASKS), "batch_size": 4}
    return CLASSES[kind](**{**given, **arguments})


def _evaluate(lm: Any, tasks: list[str], **more: Any) -> dict[str, Any]:
    manager = make_task_manager(TASKS, task="pictures")
    found = simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, verbosity="ERROR", **more)
    assert found is not None
    return dict(found)


def _answers(results: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in sorted(results["samples"][task], key=lambda sample: int(sample["doc_id"]))]


def _composed(family: str, world: Path, z: dict[str, torch.Tensor]) -> HFMultimodalLM:
    """lm-eval's own class, on a folder whose weights are the dense W'."""
    model = tiny_vlm(family)
    bases = attach(tiny_vlm(family), cache_dir=world / "bases").bases
    with torch.no_grad():
        for path, scale in z.items():
            module = model.get_submodule(path)
            module.weight.copy_(compose(find_matrix(model, path).weight(), bases[path], scale))
    folder = world / "composed"
    model.save_pretrained(folder)
    tiny_processor(family).save_pretrained(folder)
    return HFMultimodalLM(pretrained=str(folder), batch_size=4, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_expert_equals_plain_lm_eval_on_the_composed_model(family: str, worlds: dict[str, Path]) -> None:
    world = worlds[family]
    expert = Expert.load(world / "library" / "e-sight")
    lm = _make("expert", world, experts=str(world / "library" / "e-sight"))
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    found = _evaluate(lm, ["pictures", "pictures_text"])
    plain = _composed(family, world, expert.z)
    for task in ("pictures", "pictures_text"):
        assert _answers(found, task) == _answers(_evaluate(plain, [task]), task)
    seen = [str(answer) for answer in _answers(found, "pictures")]
    assert len(set(seen)) > 1, "one question, six pictures: the answers must differ"
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    record = found["config"]["t2"]
    assert record["strategy"] == "expert" and record["second_pass"]["tokens"] > 0
    json.dumps(record)


@pytest.mark.parametrize("family", FAMILIES)
def test_fewshot_searches_on_examples_with_images(family: str, worlds: dict[str, Path]) -> None:
    lm = _make("fewshot", worlds[family], shots=4, population=4, iterations=2)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    encoded: list[int] = []
    base = lm.model.base_model
    tower = base.vision_model if family == "idefics3" else base.vision_tower
    tower.register_forward_hook(lambda *_: encoded.append(1))
    environment = Environment("pictures", include_path=TASKS)
    requests = _evaluate(lm, ["pictures"], limit=1)
    record = requests["config"]["t2"]
    assert record["adaptation"]["pictures"]["split"] == environment.split_source("adaptation") == "validation"
    assert record["adaptation"]["pictures"]["examples"] == 4 and len(record["alphas"]["pictures"]) == 2
    assert record["adaptation"]["pictures"]["evaluations"] > 4 and record["first_pass"]["tokens"] > 0
    assert len(encoded) == 4 + 1, "each example once for all candidates, and the test document once"
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


def test_merged_candidates_and_rows_of_a_batch_agree(worlds: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = []
    for cheaper in (True, False):
        monkeypatch.setattr("t2eval.strategies.fewshot.together_is_cheaper", lambda *_, cheaper=cheaper, **__: not cheaper)
        lm = _make("fewshot", worlds["llava"], shots=4, population=4, iterations=2, ties="reference")
        _evaluate(lm, ["pictures"], limit=1)
        outcomes.append(lm.t2_info())
    for name in ("alphas", "adaptation"):
        assert outcomes[0][name] == outcomes[1][name]
    assert outcomes[0]["first_pass"]["tokens"] == outcomes[1]["first_pass"]["tokens"]


@pytest.mark.parametrize("kind", ["prompt", "cls"])
def test_dispatch_sees_the_image_only_where_asked(kind: str, worlds: dict[str, Path]) -> None:
    blind, seeing = _make(kind, worlds["llava"]), _make(kind, worlds["llava"], dispatch_image=True)
    for lm in (blind, seeing):
        record = _evaluate(lm, ["pictures"])["config"]["t2"]
        assert sum(record["dispatch"]["pictures"].values()) == 6
    known = [list(next(iter(lm._dispatchers.values()))._known) for lm in (blind, seeing)]
    assert [question.text for question in known[0]] == ["Q: what?\nA:"], "one question, without the place of its picture"
    assert len(known[1]) == 6
    weights = [tuple(choice.weights.values()) for choice in next(iter(seeing._dispatchers.values()))._known.values()]
    assert len(set(weights)) > 1, "the picture must be able to change the choice"
    assert seeing.t2_info()["first_pass"]["tokens"] > 6 * 16 > 0
    assert blind.t2_info()["first_pass"]["tokens"] < seeing.t2_info()["first_pass"]["tokens"]


def test_dispatch_by_generation_sees_images_too(worlds: dict[str, Path]) -> None:
    lm = _make("prompt", worlds["llava"], dispatch_image=True, dispatch="generate", dispatch_tokens=4)
    assert _evaluate(lm, ["pictures"])["config"]["t2"]["dispatch"]["pictures"] == {"others": 6}


def test_soft_mixes_are_per_document(worlds: dict[str, Path]) -> None:
    lm = _make("prompt", worlds["llava"], dispatch_image=True, mix="soft")
    found = _evaluate(lm, ["pictures"], limit=3)
    documents = [_evaluate(_make("prompt", worlds["llava"], dispatch_image=True, mix="soft", batch_size=1), ["pictures"], limit=3)]
    assert _answers(found, "pictures") == _answers(documents[0], "pictures") and len(lm._soft) == 3


def test_a_chat_template_is_used_in_both_passes(worlds: dict[str, Path]) -> None:
    lm = _make("fewshot", worlds["llava"], shots=2, population=3, iterations=1)
    found = _evaluate(lm, ["pictures"], limit=1, apply_chat_template=True)
    asked = found["samples"]["pictures"][0]["arguments"][0][0]
    environment = Environment("pictures", include_path=TASKS, tokenizer=tiny_processor(), apply_chat_template=True)
    assert asked == environment.examples("test", limit=1)[0].prompt == "user: <image>\nQ: what?\nA:\nassistant:"
    crooked = _make("fewshot", worlds["llava"], interleave=False)
    with pytest.raises(UsageError, match="interleave=false"):
        _evaluate(crooked, ["pictures"], limit=1, apply_chat_template=True)


# ---------------------------------------------------------------------- experts of the language model
def _language_expert(folder: Path, **changes: Any) -> tuple[Any, Expert]:
    model = tiny_model(seed=3)
    adapted = attach(model, cache_dir=folder / "bases")
    generator = torch.Generator().manual_seed(5)
    z = {path: 1 + 0.4 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}
    saved = Expert.from_adapted(adapted, z, name="words", label="math", description="Words.", base_id="a-llama", **changes)
    return model, Expert.load(saved.save(folder / "words"))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_of_the_language_model_loads_into_the_model_that_contains_it(family: str, tmp_path: Path) -> None:
    language, expert = _language_expert(tmp_path)
    model = tiny_vlm(family, backbone=language)
    adapted = attach(model, cache_dir=tmp_path / "bases")
    adapted.set_expert(expert)
    prefix = "model.text_model" if family == "idefics3" else "model.language_model"
    active = adapted.active_z()
    assert set(active) == {path.replace("model", prefix, 1) for path in expert.z}
    assert all(torch.allclose(active[path.replace("model", prefix, 1)], value) for path, value in expert.z.items())
    remapped = expert.remapped(model)
    assert remapped.is_remapped and remapped.sha256 == expert.sha256 and not expert.is_remapped and remapped.remapped(model) is remapped
    back = remapped.remapped(language)  # and an expert of the whole model loads into its language model
    assert list(back.z) == list(expert.z)


def test_an_expert_of_another_language_model_is_refused_by_its_basis(tmp_path: Path) -> None:
    _, expert = _language_expert(tmp_path)
    other = attach(tiny_vlm(), cache_dir=tmp_path / "bases")
    with pytest.raises(T2Error, match=r"singular basis of model\.language_model\.layers\..* differs.*a-llama"):
        other.set_expert(expert)
    deeper = attach(tiny_vlm(num_hidden_layers=1), cache_dir=tmp_path / "bases")
    with pytest.raises(T2Error, match="trained on a-llama"):
        deeper.set_expert(expert)
    wider = attach(tiny_vlm(intermediate_size=96), cache_dir=tmp_path / "bases")
    with pytest.raises(T2Error, match=r"gate_proj has shape \(80, 32\)"):
        wider.set_expert(expert)


def test_language_and_vision_experts_mix(worlds: dict[str, Path], tmp_path: Path) -> None:
    language, expert = _language_expert(tmp_path)
    model = tiny_vlm(backbone=language)
    half = attach(model, layers="half", cache_dir=tmp_path / "bases")
    z = {path: torch.full((basis.rank,), 1.2) for path, basis in half.bases.items()}
    Expert.from_adapted(half, z, name="sight", label="sight", description="Sight.", base_id="v").save(tmp_path / "sight")
    half.detach()
    lm = t2.T2ExpertVlm(
        pretrained=model, tokenizer=tiny_processor(), experts=f"{tmp_path / 'sight'}+{tmp_path / 'words'}", alphas="0.5+0.5", batch_size=4
    )
    assert len(_answers(_evaluate(lm, ["pictures"]), "pictures")) == 6
    mixed = lm._mixed
    path = "model.language_model.layers.1.mlp.up_proj"
    assert torch.allclose(mixed[path], 0.5 + 0.5 * expert.z["model.layers.1.mlp.up_proj"])


@pytest.mark.parametrize("method", ["lora", "ia3", "dora"])
def test_an_adapter_of_the_language_model_fits_the_model_that_contains_it(method: str, tmp_path: Path) -> None:
    language, _ = _language_expert(tmp_path / "base")
    config = TrainConfig(task="any", output=tmp_path, method=method)
    trainable = make_trainable(tiny_model(seed=3), config)
    assert isinstance(trainable, PeftTrainable)
    with torch.no_grad():
        for parameter in trainable.parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trainable.save_adapter(tmp_path, {"id": "a-llama", "revision": None})
    model = tiny_vlm(backbone=language).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[:258].copy_(language.get_input_embeddings().weight)
        model.lm_head.weight[:258].copy_(language.lm_head.weight)
        model.get_decoder().norm.load_state_dict(language.model.norm.state_dict())
    ids = torch.tensor([[70, 71, 72, 73]])
    with torch.no_grad():
        plain = model(ids).logits[..., :258]
        wanted = trainable.model.eval()(ids).logits
        adapted = load_adapter(model, tmp_path)
        found = adapted(ids).logits[..., :258]
        assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(plain, wanted, atol=1e-2)
        assert torch.allclose(adapted.unload()(ids).logits[..., :258], plain)


# ---------------------------------------------------------------------- mistakes
def test_what_does_not_go_is_said(worlds: dict[str, Path], tmp_path: Path) -> None:
    world = worlds["llava"]
    with pytest.raises(UsageError, match="batch_size=auto"):
        _make("expert", world, experts=str(world / "library" / "e-sight"), batch_size="auto")
    with pytest.raises(UsageError, match="dispatch_image.*t2-prompt-vlm and t2-cls-vlm"):
        _make("fewshot", world, dispatch_image=True)
    with pytest.raises(UsageError, match="reads text only"):
        _make("expert", world, pretrained=str(save_tiny(tmp_path / "text")), experts=str(world / "library" / "e-sight"))
    with pytest.raises(UsageError, match="needs its processor"):
        MultimodalLM(tiny_vlm(), tokenizer=tiny_processor().tokenizer)
    lm = _make("expert", world, experts=str(world / "library" / "e-sight"))
    with pytest.raises(UsageError, match="likelihood of a text after an image"):
        _evaluate(lm, ["pictures_choice"])
    with pytest.raises(T2Error, match="images and choices"):
        Environment("pictures_choice", include_path=TASKS)
    with pytest.raises(UsageError, match="num_fewshot=0"):
        Environment("pictures", include_path=TASKS, num_fewshot=2)
    with pytest.raises(T2Error, match="0 places for images"):
        _evaluate(_make("fewshot", world, shots=2), ["pictures_misplaced"])


def test_a_prompt_with_images_that_is_too_long_is_refused(worlds: dict[str, Path]) -> None:
    lm = _make("expert", worlds["llava"], experts=str(worlds["llava"] / "library" / "e-sight"), max_length=20)
    with pytest.raises(T2Error, match="cannot be shortened"):
        _evaluate(lm, ["pictures"], limit=1)


def test_a_column_of_images_is_decoded_only_when_it_is_looked_at() -> None:
    environment = Environment("pictures_column", include_path=TASKS)
    example = environment.examples("train")[3]
    assert "image" not in example.doc and example.doc["shade"] == 37 * 3
    assert environment.images_of(example)[0].size == (40, 30)
    drawn = Environment("pictures", include_path=TASKS)
    other = drawn.examples("train")
    assert drawn.images_of(other[3])[0].tobytes() == environment.images_of(example)[0].tobytes()
    assert len({each.key for each in other}) == len(other) and drawn.examples("train")[3].key == other[3].key


def test_text_only_use_imports_no_vision_code() -> None:
    code = (
        "import sys, t2eval.models, t2eval.training.scores, t2eval.bench.worker\n"
        "from lm_eval.api.registry import get_model\n"
        "get_model('hf')\n"
        "vision = ('lm_eval.models.hf_vlms', 't2eval.environment.multimodal', 't2eval.models.images')\n"
        "found = [name for name in vision if name in sys.modules]\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_class_is_registered_by_name() -> None:
    import importlib

    for name, target in MODELS.items():
        module, _, attribute = target.partition(":")
        assert getattr(importlib.import_module(module), attribute).__mro__, name
    assert {f"t2-{kind}-vlm" for kind in CLASSES} < set(MODELS)
