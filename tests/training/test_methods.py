"""Methods: what a registry entry is worth, and adapters that do not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

from t2eval.basemodel.load import load_base
from t2eval.errors import T2Error
from t2eval.training.adapters import load_adapter
from t2eval.training.config import TrainConfig
from t2eval.training.methods import METHODS, Method, make_trainable
from t2eval.training.record import RunRecord
from t2eval.training.train import train_expert
from t2eval.training.trainable import Names, Trainable
from tests.tiny import tiny_model


class _Shift(Trainable):
    """A toy: one number that is added to the logits of the token `a`."""

    def __init__(self, model: Any, config: TrainConfig) -> None:
        self.model = model.requires_grad_(False)
        self.shift = nn.Parameter(torch.zeros(1))
        self._on = True
        model.lm_head.register_forward_hook(self._add)

    def _add(self, _module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        marks = torch.zeros(logits.shape[-1])
        marks[ord("a")] = 1.0
        return logits + self.shift * marks if self._on else logits

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"shift": self.shift}

    def base(self) -> Any:
        trainable = self

        class Off:
            def __enter__(self) -> None:
                trainable._on = False

            def __exit__(self, *_: object) -> None:
                trainable._on = True

        return Off()

    def fast(self) -> Any:
        return torch.no_grad()

    def save(self, folder: Path, record: RunRecord, names: Names) -> None:
        save_file({"shift": self.shift.detach()}, folder / "shift.safetensors")


def test_a_method_is_one_entry(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, improving: None) -> None:
    rates = {"reinforce": {"lr": 0.25}, "supervised": {"lr": 0.5}}
    monkeypatch.setitem(METHODS, "shift", Method("one number", _Shift, rates))
    settings.pop("lr")
    for objective, rate in (("reinforce", 0.25), ("supervised", 0.5)):
        output = settings["output"] / objective
        given = {**settings, "output": output, "method": "shift", "objective": objective}
        result = train_expert(TrainConfig(**given, kl=0.0, test=False), progress=False)
        assert result.record.hyperparameters["lr"] == rate and result.trainable_parameters == 1
        assert (result.record.method, RunRecord.read(output)) == ("shift", result.record)
        assert (output / "shift.safetensors").is_file() and result.chosen_step > 0
    assert TrainConfig(task="t", output="o", method="shift", preset="paper").lr == METHODS["lora"].paper["lr"]
    with pytest.raises(T2Error, match="Unknown method 'shfit'. Did you mean 'shift'"):
        TrainConfig(task="t", output="o", method="shfit")


def test_the_command_line_takes_the_methods_of_the_registry() -> None:
    from t2eval.cli.train import train_expert as command

    text = CliRunner().invoke(command, ["--help"]).output
    assert all(name in text for name in METHODS)


@pytest.mark.parametrize("method", ["vera", "tinylora", "loraxs", "full"])
def test_a_further_baseline_trains_with_either_objective(method: str, settings: dict[str, Any], improving: None, tmp_path: Path) -> None:
    for objective in ("supervised", "reinforce"):
        given = {**settings, "output": tmp_path / objective, "steps": 1, "method": method, "objective": objective, "test": False}
        result = train_expert(TrainConfig(**given), progress=False)
        assert result.trainable_parameters > 0 and (result.path / METHODS[method].weights).is_file()
    model, _ = load_base(str(settings["model"]))
    kept = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    with METHODS[method].mounted(model, tmp_path / "supervised"):
        pass
    for name, parameter in model.named_parameters():
        assert parameter is kept[name][0] and torch.equal(parameter, kept[name][1]), name


def test_loraxs_trains_a_whole_small_matrix(settings: dict[str, Any]) -> None:
    model, _ = load_base(str(settings["model"]))
    trainable = make_trainable(model, TrainConfig(**{**settings, "method": "loraxs", "lora_rank": 3}))
    layer = next(module for module in trainable.model.modules() if hasattr(module, "tinylora_P"))
    vector = next(iter(trainable.parameters().values()))
    with torch.no_grad():
        vector.copy_(torch.arange(9.0))
    assert torch.equal(layer._compute_R("default"), torch.arange(9.0).view(3, 3)), "R is the trained numbers themselves"


# ---------------------------------------------------------------------- adapters that do not load
@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("damage", ["cut", "lacks one", "of another shape", "one too many"])
def test_an_adapter_that_does_not_load_leaves_the_model_as_it_was(
    damage: str, method: str, settings: dict[str, Any], improving: None, tmp_path: Path
) -> None:
    train_expert(TrainConfig(**{**settings, "steps": 1}, method=method, objective="supervised", test=False), progress=False)
    file = settings["output"] / "adapter_model.safetensors"
    whole = file.read_bytes()
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "lacks one":
        save_file({key: value for key, value in tensors.items() if key != name}, file)
    elif damage == "of another shape":
        save_file({**tensors, name: torch.zeros(3, 3)}, file)
    else:
        save_file({**tensors, name.replace("layers.0", "layers.7"): tensors[name].clone()}, file)
    model, _ = load_base(str(settings["model"]))
    model.train()
    ids = torch.tensor([[1, 2, 3]])
    before = {path: (type(module), module) for path, module in model.named_modules()}
    flags = {path: parameter.requires_grad for path, parameter in model.named_parameters()}
    logits = model(ids).logits
    with pytest.raises(T2Error, match=str(settings["output"])):
        load_adapter(model, settings["output"])
    assert {path: (type(module), module) for path, module in model.named_modules()} == before
    assert {path: parameter.requires_grad for path, parameter in model.named_parameters()} == flags
    assert model.training and not hasattr(model, "peft_config")
    assert torch.equal(model(ids).logits, logits)
    file.write_bytes(whole)
    assert not torch.equal(load_adapter(model, settings["output"])(ids).logits, logits), "and the whole one still loads"


def test_an_adapter_of_another_architecture_is_named(settings: dict[str, Any], improving: None) -> None:
    train_expert(TrainConfig(**{**settings, "steps": 1}, method="lora", objective="supervised", test=False), progress=False)
    other = tiny_model("gpt2")
    before = dict(other.named_modules())
    with pytest.raises(T2Error, match="does not fit this GPT2LMHeadModel"):
        load_adapter(other, settings["output"])
    assert dict(other.named_modules()) == before
