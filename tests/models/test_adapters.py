"""PEFT adapters as experts: alone, mixed, dispatched and searched; the base's bits; what cannot be served is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model

from t2eval.basemodel.folders import embedded_baseline_dir, embedded_library_dir
from t2eval.basemodel.load import load_base
from t2eval.environment.loading import make_task_manager
from t2eval.errors import T2Error, UsageError
from t2eval.expert.adapter import Adapter, write_adapter_card
from t2eval.models.mounts import AdapterMix, Mounts
from t2eval.models.text import T2Cls, T2Expert, T2Fewshot, T2Prompt
from t2eval.strategies.dispatch import DISPATCH_LABEL, Question
from tests.tiny import save_tiny

IDS = torch.tensor([[5, 6, 7, 8]])


def saved(base: Path, folder: Path, config: Any, seed: int = 0) -> Path:
    model, _ = load_base(str(base))
    torch.manual_seed(seed)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    peft.save_pretrained(folder)
    return folder


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def pair(base: Path) -> tuple[Path, Path]:
    return saved(base, base.parent / "one", lora(), 1), saved(base, base.parent / "two", lora(r=3, lora_alpha=5), 2)


def test_a_mix_of_loras_is_the_sum_of_what_each_does(base: Path, pair: tuple[Path, Path]) -> None:
    model, _ = load_base(str(base))
    adapters = [Adapter.load(folder) for folder in pair]
    kept = {name: (parameter, parameter.data_ptr(), parameter.detach().clone()) for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    deltas: list[dict[str, torch.Tensor]] = []
    for folder in pair:
        merged = PeftModel.from_pretrained(load_base(str(base))[0], folder).merge_and_unload()
        deltas.append({name: value.detach() - kept[name][2] for name, value in merged.named_parameters()})
    wanted, _ = load_base(str(base))
    with torch.no_grad():
        for name, parameter in wanted.named_parameters():
            parameter.add_(0.7 * deltas[0][name] - 0.4 * deltas[1][name])
        mounts = Mounts(model)
        mix = AdapterMix(tuple(zip(adapters, (0.7, -0.4), strict=True)))
        with mounts.applied(mix):
            assert torch.allclose(model(IDS).logits, wanted(IDS).logits, atol=1e-4)
        with mounts.ready(adapters):
            for _ in range(2):
                with mounts.fast(AdapterMix(tuple(zip(adapters, (0.1, 0.2), strict=True)))):
                    model(IDS)
                with mounts.fast(mix):
                    assert torch.allclose(model(IDS).logits, wanted(IDS).logits, atol=1e-4)
        with pytest.raises(RuntimeError, match="on the way"), mounts.applied(AdapterMix.alone(adapters[0])):
            raise RuntimeError("on the way")
    assert dict(model.named_modules()) == modules and not hasattr(model, "peft_config")
    for name, parameter in model.named_parameters():
        assert parameter is kept[name][0] and parameter.data_ptr() == kept[name][1] and torch.equal(parameter, kept[name][2]), name


def test_an_adapter_that_writes_into_the_base_leaves_its_bits(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "qwen2")
    folder = saved(base, tmp_path / "biased", lora(bias="all", init_lora_weights="pissa"))
    model, _ = load_base(str(base))
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    logits = model(IDS).logits
    with Mounts(model).applied(AdapterMix.alone(Adapter.load(folder))):
        assert not torch.allclose(model(IDS).logits, logits, atol=1e-4)
    assert all(tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_served_is_refused_by_name(base: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    get_peft_model(load_base(str(base))[0], PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(prefix)
    with pytest.raises(T2Error, match="PREFIX_TUNING adapter, which cannot be an expert: it puts tokens"):
        T2Expert(pretrained=str(base), experts=str(prefix))
    loha = saved(base, tmp_path / "loha", LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(UsageError, match="t2-fewshot mixes experts, and adapter 'loha' .*PEFT mixes LoRA and IA3 adapters, not LOHA"):
        T2Fewshot(pretrained=str(base), experts=f"{loha}+{pair[0]}")
    dora = saved(base, tmp_path / "dora", lora(use_dora=True))
    with pytest.raises(UsageError, match="alphas= mixes experts, and adapter 'dora' .*magnitudes"):
        T2Expert(pretrained=str(base), experts=str(dora), alphas="0.5")
    ia3 = saved(base, tmp_path / "ia3", IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
    with pytest.raises(UsageError, match="one kind; these adapters are IA3 and LORA"):
        T2Fewshot(pretrained=str(base), experts=f"{ia3}+{pair[0]}")
    with pytest.raises(UsageError, match="granularity=layer: PEFT mixes adapters as a whole"):
        T2Fewshot(pretrained=str(base), experts="+".join(map(str, pair)), granularity="layer")
    with pytest.raises(UsageError, match="Adapter 'one' has no label.*t2 expert label"):
        T2Prompt(pretrained=str(base), experts="+".join(map(str, pair)))
    with pytest.raises(UsageError, match="labels= has 1 labels for 2 folders"):
        T2Prompt(pretrained=str(base), experts="+".join(map(str, pair)), labels="math")
    config = json.loads((pair[0] / "adapter_config.json").read_text())
    other = saved(base, tmp_path / "other", lora())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "someone/other"}))
    with pytest.raises(T2Error, match=r"Adapter 'other' was trained on someone/other, and this is .*base"):
        T2Expert(pretrained=str(base), experts=str(other))
    T2Expert(pretrained=str(base), experts=str(other), allow_basis_mismatch=True)
    (other / "adapter_model.safetensors").write_bytes((other / "adapter_model.safetensors").read_bytes()[:100])
    with pytest.raises(T2Error, match="damaged or cut off"):
        Adapter.load(other)


def test_the_response_cache_tells_adapters_apart(base: Path, pair: tuple[Path, Path]) -> None:
    tables = set()
    for folder in pair:
        lm = T2Expert(pretrained=str(base), experts=str(folder))
        tables.add(json.dumps(lm.identity(), default=str, sort_keys=True))
        told = lm.t2_info()["experts"][0]
        assert told["name"] == folder.name and told["sha256"] == Adapter.load(folder).sha256 and told["peft_type"] == "LORA"
    assert len(tables) == 2
    write_adapter_card(pair[0], "math", "Sums.")
    assert json.dumps(T2Expert(pretrained=str(base), experts=str(pair[0])).identity(), default=str, sort_keys=True) not in tables


def test_an_adapter_classifies(base: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As the classification expert of cls: decisions are those of the base with the adapter merged, and the base keeps its bits."""
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in pair]
    skilled = [saved(base, tmp_path / f"skill-{label}", lora(), seed) for seed, label in ((3, "math"), (4, "code"))]
    for folder, label in zip([*skilled, copies[1]], ("math", "code", DISPATCH_LABEL), strict=True):
        write_adapter_card(folder, label, f"About {label}.")
    experts = "+".join(map(str, skilled))
    merged = PeftModel.from_pretrained(load_base(str(base))[0], copies[1]).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    load_base(str(base))[1].save_pretrained(tmp_path / "merged")
    asked = [Question("a b c"), Question("x y")]
    wanted = T2Prompt(pretrained=str(tmp_path / "merged"), experts=experts, allow_basis_mismatch=True).decide(asked, chat=False)
    plain = T2Prompt(pretrained=str(base), experts=experts).decide(asked, chat=False)
    lm = T2Cls(pretrained=str(base), experts=f"{experts}+{copies[1]}")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    found = lm.decide(asked, chat=False)
    for own, theirs, without in zip(found, wanted, plain, strict=True):
        assert own.weights == pytest.approx(theirs.weights, abs=1e-4) and set(own.weights) == {"math", "code", "others"}
        assert own.weights != pytest.approx(without.weights, abs=1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize("kind", [T2Expert, T2Prompt, T2Cls, T2Fewshot])
def test_every_strategy_over_the_shipped_loras(kind: Any) -> None:
    folders = [embedded_baseline_dir("lora", skill) for skill in ("math", "code", "reasoning")]
    given: dict[str, Any] = {"experts": "+".join(map(str, folders)), "batch_size": 16, "pretrained": "embedded"}
    if kind is T2Expert:
        given["experts"] = str(folders[0])
    if kind is T2Cls:
        given["experts"] += f"+{embedded_library_dir(0) / 'dispatch'}"  # a z expert classifies, adapters answer
    if kind is T2Fewshot:
        given |= {"shots": 2, "population": 4, "iterations": 1}
    lm = kind(**given)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    manager = make_task_manager(task="embedded_math_seen")
    results = simple_evaluate(model=lm, tasks=["embedded_math_seen"], limit=6, bootstrap_iters=0, task_manager=manager)
    told = lm.t2_info()
    assert {each["name"] for each in told["experts"]} >= {"lora-math"}
    if kind is T2Expert:
        plain = simple_evaluate(
            model="hf", model_args=f"pretrained={lm.model.config.name_or_path},peft={folders[0]}", tasks=["embedded_math_seen"], limit=6,
            bootstrap_iters=0, batch_size=16, device="cpu", task_manager=manager,
        )  # fmt: skip
        own, theirs = (each["results"]["embedded_math_seen"] for each in (results, plain))
        assert {key: value for key, value in own.items() if key != "alias"} == {k: v for k, v in theirs.items() if k != "alias"}
    if kind is T2Fewshot:
        assert told["adaptation"]["embedded_math_seen"]["form"] == "peft" and len(told["alphas"]["embedded_math_seen"]) == 3
    if kind in (T2Prompt, T2Cls):
        assert sum(told["dispatch"]["embedded_math_seen"].values()) == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
