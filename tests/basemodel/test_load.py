"""Loading base models, and every way in which one cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from t2eval.basemodel import load as room
from t2eval.basemodel.folders import embedded_base_dir, embedded_baseline_dir, embedded_library_dir
from t2eval.basemodel.load import base_identity, load_base
from t2eval.errors import T2Error, UsageError
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_loads_a_folder(folder: Path) -> None:
    model, tokenizer = load_base(str(folder))
    ids = torch.arange(6)[None]
    torch.testing.assert_close(model(ids).logits, tiny_model()(ids).logits)
    assert not model.training and tokenizer.padding_side == "left" and tokenizer.pad_token == "<eos>"
    assert model.dtype == torch.float32
    half, _ = load_base(str(folder), dtype="bfloat16", device="cpu")
    assert half.dtype == torch.bfloat16
    assert base_identity(model) == {"id": str(folder), "revision": None, "architecture": "LlamaForCausalLM"} == base_identity(str(folder))


def test_sets_a_padding_token_where_there_is_none(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(folder, copy)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(copy)
    _, loaded = load_base(str(copy))
    assert (loaded.pad_token, loaded.padding_side) == ("<eos>", "left")
    tokenizer.eos_token = tokenizer.bos_token = None
    tokenizer.save_pretrained(copy)
    with pytest.raises(T2Error, match="no padding and no end-of-text token"):
        load_base(str(copy))


def test_the_embedded_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2eval.paths.experts_dir", lambda: tmp_path)
    for name in (None, "embedded"):
        with pytest.raises(T2Error, match=r"embedded base model is not in .*make embedded"):
            load_base(name)
    shutil.copytree(folder, embedded_base_dir())
    for name in (None, "embedded"):
        model, _ = load_base(name)
        assert base_identity(model) == base_identity(name) == {"id": "embedded", "revision": None, "architecture": "LlamaForCausalLM"}
    with pytest.raises(T2Error, match=r"embedded base model is not in .*base-seed-1"):
        load_base("embedded-seed-1")
    shutil.copytree(folder, embedded_base_dir("embedded-seed-1"))
    assert base_identity(load_base("embedded-seed-1")[0])["id"] == "embedded-seed-1" == base_identity("embedded-seed-1")["id"]
    with pytest.raises(UsageError, match="Did you mean 'embedded-seed-1'"):
        embedded_base_dir("embedded-seed-2")
    assert embedded_library_dir(2) == tmp_path / "library" / "seed-2"
    assert embedded_baseline_dir("ia3", "code", 1) == tmp_path / "baselines" / "seed-1" / "ia3-code"
    with pytest.raises(UsageError, match="Unknown baseline 'lra'. Did you mean 'lora'"):
        embedded_baseline_dir("lra", "code")
    with pytest.raises(UsageError, match="Unknown task family 'maths'. Did you mean 'math'"):
        embedded_baseline_dir("lora", "maths")


def test_missing_and_damaged_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(T2Error, match=r"no model folder .*/tiyn\. Did you mean .*/tiny\?"):
        load_base(str(folder.parent / "tiyn"))
    with pytest.raises(T2Error, match="no model folder ./nowhere"):
        load_base("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(T2Error, match=r"without config\.json"):
        load_base(str(tmp_path / "empty"))
    copy = tmp_path / "cut"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(T2Error, match=r"checkpoint in .*/cut cannot be loaded"):
        load_base(str(copy))
    weights.unlink()
    with pytest.raises(T2Error, match=r"checkpoint in .*/cut cannot be loaded"):
        load_base(str(copy))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    for call in (load_base, base_identity):
        with pytest.raises(T2Error, match=r"checkpoint in .*/cut cannot be loaded"):
            call(str(copy))


def test_an_unknown_dtype(folder: Path) -> None:
    with pytest.raises(UsageError, match="Unknown dtype 'bf16'.*bfloat16"):
        load_base(str(folder), dtype="bf16")
    with pytest.raises(UsageError, match="Unknown dtype 'float33'. Did you mean 'float32'"):
        load_base(str(folder), dtype="float33")


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (load_base, base_identity):
        with pytest.raises(T2Error, match=r"nobody/nothing is neither a folder nor in the local cache, and the Hub cannot be reached"):
            call("nobody/nothing")
    asked = []

    def broken(*_: Any, **options: Any) -> None:
        asked.append(options)
        raise OSError("Name or service not known")

    monkeypatch.setattr(room.HfApi, "model_info", broken)
    with pytest.raises(T2Error, match="Hub cannot be reached"):
        load_base("nobody/nothing", revision="main")
    assert asked == [{"revision": "main", "timeout": 10}]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "someone/model is gated: ask for access"),
        (RepositoryNotFoundError, "no model 'someone/model', neither a folder nor on the Hub"),
        (RevisionNotFoundError, "someone/model has no revision 'v9'"),
    ],
)
def test_the_hubs_own_answers(error: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = error.__new__(error)  # without the HTTP response, whose type depends on the release of huggingface_hub
    Exception.__init__(words, "the Hub's words")

    def answer(*_: Any, **__: Any) -> None:
        raise words

    monkeypatch.setattr(room.HfApi, "model_info", answer)
    with pytest.raises(T2Error, match=message):
        load_base("someone/model", revision="v9")


def http_error(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} of the Hub")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.fixture
def cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that is in the Hub's cache on this machine."""
    place = tmp_path / "hub" / "models--someone--model"
    shutil.copytree(folder, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return "someone/model"


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_hub_that_is_out_of_order_does_not_defeat_a_cached_model(status: int, cached: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise http_error(status)

    monkeypatch.setattr(room.HfApi, "model_info", broken)
    model, _ = load_base(cached)
    assert base_identity(model) == base_identity(cached)
    with pytest.raises(T2Error, match="someone/other is neither a folder nor in the local cache"):
        load_base("someone/other")


def test_a_hub_that_breaks_off_while_files_are_asked_for(cached: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = room.AutoConfig.from_pretrained, []

    def from_pretrained(source: str, **options: Any) -> Any:
        asked.append(options["local_files_only"])
        if not options["local_files_only"]:
            raise OSError("files cannot be had") from http_error(503)
        return real(source, **options)

    monkeypatch.setattr(room.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(room.AutoConfig, "from_pretrained", from_pretrained)
    load_base(cached)
    assert asked[0] is False and all(asked[1:])


def test_the_hubs_refusal_is_one_message(cached: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise http_error(403)

    monkeypatch.setattr(room.HfApi, "model_info", refuse)
    with pytest.raises(T2Error, match="The Hub does not give the model someone/model: 403 of the Hub"):
        load_base(cached)


def test_a_configuration_that_fits_no_model_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 10, "pad_token_id": 200}))
    with pytest.raises(T2Error, match=f"The checkpoint in {copy} cannot be loaded: "):
        load_base(str(copy))


def test_other_faults_are_not_dressed_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(room.AutoModelForCausalLM, "from_pretrained", bug)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        load_base(str(folder))


def test_balanced_leaves_the_placing_to_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.AutoModelForCausalLM.from_pretrained
    given: dict[str, Any] = {}

    def from_pretrained(source: str, **options: Any) -> Any:
        given.clear()
        given.update(options)
        return real(source, **options)

    monkeypatch.setattr(room.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch sees no CUDA GPU here. Give device auto or cpu"):
            load_base(str(folder), device="balanced")
        monkeypatch.setattr(room, "pick_device", lambda _: torch.device("cpu"))
    model, _ = load_base(str(folder), device="balanced")
    assert given["device_map"] == "balanced"
    ids = torch.arange(6)[None].to(model.device)
    torch.testing.assert_close(model(ids).logits.cpu(), tiny_model()(ids.cpu()).logits)
    load_base(str(folder), device="cpu")
    assert "device_map" not in given


def test_a_checkpoint_in_half_precision_is_widened_on_a_cpu_and_that_is_said_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = tmp_path / "half"
    tiny_model().to(torch.bfloat16).save_pretrained(half)
    tiny_tokenizer().save_pretrained(half)
    with caplog.at_level("INFO", "t2eval"):
        models = [load_base(str(half), device="cpu")[0] for _ in range(2)]
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.float32}
    assert [record.message for record in caplog.records] == [
        f"{half} is stored in bfloat16 and loaded in float32: the same values, and faster on a CPU. dtype=bfloat16 keeps it so."
    ]
    narrow, _ = load_base(str(half), device="cpu", dtype="bfloat16")
    assert narrow.dtype == torch.bfloat16
    for name, weight in narrow.state_dict().items():
        torch.testing.assert_close(models[0].state_dict()[name], weight.float(), rtol=0, atol=0)
