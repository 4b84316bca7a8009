"""TRL's trainers as they are on an attached model: z alone learns, is kept in checkpoints and resumed, and becomes an expert."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

trl = pytest.importorskip("trl", reason="needs pip install 't2eval[trl]'")

from datasets import Dataset  # noqa: E402

from t2eval.basemodel.load import load_base  # noqa: E402
from t2eval.errors import T2Error, UsageError  # noqa: E402
from t2eval.expert.expert import Expert  # noqa: E402
from t2eval.expert.export import export_merged  # noqa: E402
from t2eval.svf.adapted import Adapted  # noqa: E402
from t2eval.svf.attachment import attach  # noqa: E402
from t2eval.training.trl_callback import ExpertCallback, merged_weights  # noqa: E402
from tests.tiny import save_tiny  # noqa: E402

DATA = Dataset.from_dict({"prompt": ["a b", "c d", "e f", "g h"] * 2, "completion": [" x", " y", " z", " w"] * 2})
SETTINGS = {"report_to": "none", "use_cpu": True, "bf16": False, "learning_rate": 1e-2, "max_steps": 4, "save_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("trl") / "base")


def sft(base: Path, output: Path, folder: Path | None = None, *, parameterisation: str = "direct", **changes: Any) -> tuple[Any, Adapted]:
    model, tokenizer = load_base(str(base))
    adapted = attach(model, "mlp", parameterisation=parameterisation)
    callback = ExpertCallback(adapted, folder, name="letters", label="math", task="letters")
    settings = trl.SFTConfig(str(output), per_device_train_batch_size=2, **{**SETTINGS, **changes})
    return trl.SFTTrainer(model, args=settings, train_dataset=DATA, processing_class=tokenizer, callbacks=[callback]), adapted


def test_sft_learns_z_alone_and_writes_an_expert(base: Path, tmp_path: Path) -> None:
    trainer, adapted = sft(base, tmp_path)
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    trainer.train()
    expert = Expert.load(tmp_path / "expert")
    assert set(expert.z) == set(adapted.paths) and all(bool((z != 1).any()) for z in expert.z.values())
    assert {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]} == {
        id(parameter) for parameter in adapted.trainable().values()
    }
    assert all(torch.equal(value, before[name]) for name, value in adapted.model.state_dict().items())
    assert expert.card.training is not None
    assert (expert.card.training.task, expert.card.training.objective, expert.card.training.steps) == ("letters", "sft", 4)
    ids = trainer.processing_class("a b x", return_tensors="pt").input_ids
    labels = torch.where(torch.arange(ids.shape[1]) < 3, -100, ids)
    with torch.no_grad():
        trained = float(adapted.model(ids, labels=labels).loss)
        with adapted.disabled():
            assert trained < float(adapted.model(ids, labels=labels).loss)
    fresh = attach(load_base(str(base))[0], "mlp")
    fresh.set_expert(expert)  # it fits the base that it names
    tokens = torch.tensor([[5, 9, 40, 7]])
    torch.testing.assert_close(fresh.model(tokens).logits, adapted.model(tokens).logits)


@pytest.mark.parametrize("parameterisation", ["direct", "sigmoid-renorm"])
def test_a_checkpoint_holds_z_alone_and_goes_on_as_if_nothing_had_been(base: Path, tmp_path: Path, parameterisation: str) -> None:
    trainer, adapted = sft(base, tmp_path / "run", parameterisation=parameterisation)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    kept = load_file(checkpoint / "model.safetensors")
    assert set(kept) == {f"t2_scales/{path}" for path in adapted.paths}
    assert sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) < 2 * 4 * 6 * 80
    assert not (checkpoint / "config.json").exists() and Expert.load(checkpoint).name == "letters"
    resumed, _ = sft(base, tmp_path / "run", tmp_path / "resumed", parameterisation=parameterisation)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not [each for each in said if "missing keys" in str(each.message)]
    whole, again = Expert.load(tmp_path / "run" / "expert"), Expert.load(tmp_path / "resumed")
    assert all(torch.equal(whole.z[path], again.z[path]) for path in whole.z)
    assert not all(torch.equal(whole.z[path], Expert.load(checkpoint).z[path]) for path in whole.z)

    other, _ = load_base(str(base))
    ExpertCallback(attach(other, "attention"), name="o", label="o")
    with pytest.raises(T2Error, match="scales other matrices"):
        other.load_state_dict(kept, strict=False)


def test_grpo_rolls_out_and_learns(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_base(str(base))
    adapted = attach(model)
    asked: list[str] = []

    def rewarded(completions: list[str], **_: Any) -> list[float]:
        asked.extend(completions)
        return [float(len(set(text))) for text in completions]

    settings = trl.GRPOConfig(
        str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=6, beta=0.1, **{**SETTINGS, "max_steps": 2}
    )
    callback = ExpertCallback(adapted, name="letters", label="math")
    data = DATA.remove_columns("completion")
    trl.GRPOTrainer(model, rewarded, settings, data, processing_class=tokenizer, callbacks=[callback]).train()
    assert len(asked) == 8
    assert any(bool((z != 1).any()) for z in Expert.load(tmp_path / "expert").z.values())
    assert set(load_file(tmp_path / "checkpoint-2" / "model.safetensors")) == {f"t2_scales/{path}" for path in adapted.paths}


def test_what_would_be_silently_wrong_is_refused(base: Path, tmp_path: Path) -> None:
    trainer, adapted = sft(base, tmp_path)
    adapted.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(T2Error, match=r"Beside z 1 parameters of the model would be trained.*embed_tokens"):
        trainer.train()
    callback = ExpertCallback(adapted, name="m", label="m")
    with pytest.raises(T2Error, match="use_vllm=True copies the base weights"):
        callback.on_init_end(trl.GRPOConfig(str(tmp_path), use_vllm=True, **SETTINGS), None, None)
    with pytest.raises(UsageError, match="plain file name"):
        ExpertCallback(adapted, name="a/b", label="m")


def test_merged_weights_are_those_of_a_merged_checkpoint(base: Path, tmp_path: Path) -> None:
    model, _ = load_base(str(base))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = attach(model)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.normal_(0, 0.2)
    ExpertCallback(adapted, name="m", label="m").expert().save(tmp_path / "m")
    export_merged(tmp_path / "m", tmp_path / "plain")
    plain, _ = load_base(str(tmp_path / "plain"))
    with merged_weights(adapted) as weights:
        handed = {name: tensor.clone() for name, tensor in weights}
    assert set(handed) == {name for name, _ in plain.named_parameters()}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(handed[name], parameter.detach())
    assert any(not torch.equal(handed[name], before[name]) for name in handed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_example_of_the_page_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (root / "docs" / "trl.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 26
    shorter = code.replace("max_steps=40", "max_steps=1").replace("batch_size=64", "batch_size=16")
    assert shorter.count("max_steps=1,") == shorter.count("batch_size=16") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(shorter, str(root / "docs" / "trl.md"), "exec"), {"__name__": "page"})
    assert Expert.load(tmp_path / "runs" / "grpo" / "expert").card.base_model.id == "embedded"
    assert os.listdir(tmp_path / "runs" / "grpo")
