"""An adapter's base is checked by its weights where the card notes them, and by its name only where it does not, which is said once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from t2eval.basemodel.folders import embedded_baseline_dir
from t2eval.basemodel.load import load_base
from t2eval.basemodel.sampled import sampled_digest
from t2eval.errors import T2Error
from t2eval.expert import adapter as adapter_module
from t2eval.expert.adapter import Adapter, write_adapter_card
from t2eval.svf.attachment import attach
from tests.tiny import tiny_model


@pytest.mark.unwatched  # it changes a weight
def test_the_digest_is_of_the_bases_own_weights_in_any_wider_dtype() -> None:
    narrow = tiny_model(dtype=torch.bfloat16)
    digest = sampled_digest(narrow)
    assert sampled_digest(tiny_model(dtype=torch.bfloat16).float()) == digest != sampled_digest(tiny_model())
    model = tiny_model()
    before = sampled_digest(model)
    attach(model)
    assert sampled_digest(model) == before
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert sampled_digest(model) != before


@pytest.mark.unwatched  # it changes a weight
def test_other_weights_of_the_same_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adapter_module, "_SAID", set())
    folder = tmp_path / "lora-math"
    shutil.copytree(embedded_baseline_dir("lora", "math", 0), folder)
    model, _ = load_base("embedded")
    write_adapter_card(folder, "math", "Sums.", (sampled_digest(model), "float32"))
    found = Adapter.load(folder)
    found.check(model)
    write_adapter_card(folder, "sums")  # another label: what is known of the base stays
    assert Adapter.load(folder).base_digest == found.base_digest and Adapter.load(folder).label == "sums"
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    with pytest.raises(T2Error, match="'lora-math' was trained on other weights of embedded than these"):
        found.check(model)
    found.check(model, allow=True)
    assert not caplog.text
    found.check(model.bfloat16())
    assert "was trained in float32, and this is bfloat16" in caplog.text
    (folder / "t2_adapter.json").write_text(json.dumps({"label": "math"}))
    for _ in range(2):
        Adapter.load(folder).check(model)
    assert caplog.text.count("checked by its name only (the first: lora-math)") == 1
