"""Experts on the hub: pushed and pulled through `huggingface_hub` itself, against a hub on this machine."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard, constants, parse_eval_result_entries

from t2eval import cli
from t2eval.basemodel.load import load_base
from t2eval.basemodel.probe import HubData
from t2eval.bench.config import BenchConfig, parse_config
from t2eval.bench.inputs import expert_facts, pinned_config
from t2eval.bench.plan import load_plan
from t2eval.errors import T2Error, UsageError
from t2eval.expert import hub
from t2eval.expert.card import Score, TrainingRecord
from t2eval.expert.expert import Expert
from t2eval.expert.library import load_library
from t2eval.expert.location import parse_location, source_of
from t2eval.expert.machine_paths import refuse_paths, without_paths
from t2eval.expert.upload import pack, push
from t2eval.paths import experts_dir
from t2eval.svf.attachment import attach
from tests.fakes.hub import TOKEN, FakeHub, running
from tests.tiny import save_tiny

PNG = b"\x89PNG\r\n\x1a\n and more"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts, `math` (trained on a task) and `code`, of a base model that is a folder of this machine."""
    base = tmp_path_factory.mktemp("base") / "model"
    save_tiny(base)
    folder = base.parent / "library"
    adapted = attach(load_base(str(base))[0])
    generator = torch.Generator().manual_seed(1)
    record = TrainingRecord(
        task="t2_gsm8k", seed=0, objective="reinforce", steps=1, seconds=1.0, metric="exact_match",
        splits={"test": {"source": "test", "n": 4}},
        hyperparameters={"model": str(base), "recipe": ["~/recipes/math.yaml", {"path": "../up/here.yaml"}], "rate": "a/b", "hub": "me/x"},
        scores={"after": {"test": Score(score=0.75, stderr=0.25, n=4), "validation": Score(score=0.5, n=2)}},
    )  # fmt: skip
    for label in ("math", "code"):
        z = {path: 1 + 0.3 * torch.randn(basis.sigma.numel(), generator=generator) for path, basis in adapted.bases.items()}
        about = f"{label} questions, see {base}/x.json and https://example.org/a/b."
        training = record if label == "math" else None
        Expert.from_adapted(
            adapted, z, name=label, label=label, description=about, base_id=str(base), training=training
        ).save(folder / label)  # fmt: skip
    (folder / "math" / "learning_curve.png").write_bytes(PNG)
    (folder / "math" / "log.jsonl").write_text(str(base))
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub, with `huggingface_hub` logged in to it, and an empty cache."""
    with running() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage has a protocol of its own; over LFS the hub works too
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.forget()
        yield found
        hub.forget()


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")


# ---------------------------------------------------------------------- push
def test_an_expert_is_pushed_and_loads_as_the_same_z(library: Path, server: FakeHub) -> None:
    done = push(pack(library / "math", "someone/math"), "someone/math", private=True)
    assert done.location.is_pinned and done.others == ()
    tree = server.tree("someone/math")
    assert sorted(tree) == [".gitattributes", "README.md", "expert.json", "expert.safetensors", "learning_curve.png"]
    assert server.repositories["models/someone/math"].private
    (pulled,) = load_library("hf://someone/math")
    own = Expert.load(library / "math")
    assert pulled.sha256 == own.sha256 and pulled.source == str(done.location) and own.source is None
    assert all(torch.equal(pulled.z[path], own.z[path]) for path in own.z)


def test_a_library_is_one_repository_with_a_folder_an_expert(library: Path, server: FakeHub) -> None:
    server.put("someone/experts", {"old/expert.json": b"{}", "notes.txt": b""})
    done = push(pack(library, "someone/experts", base_model="someone/tiny"), "someone/experts", revision="v2")
    assert done.others == ("old",)
    tree = server.tree("someone/experts", "v2")
    assert {"math/expert.json", "code/expert.safetensors", "README.md", "math/learning_curve.png"} <= set(tree)
    assert "math/expert.json" not in server.tree("someone/experts")  # the main branch is as it was
    assert server.repositories["models/someone/experts"].messages == ["Upload 2 experts with t2eval"]
    assert [expert.name for expert in load_library("hf://someone/experts@v2/math+hf://someone/experts@v2/code")] == ["code", "math"]
    card = ModelCard(tree["README.md"].decode())
    assert card.data.base_model == ["someone/tiny"] and "experts=hf://someone/experts" in card.content
    assert {(result.metric_name, result.metric_value) for result in card.data.eval_results} == {
        ("exact_match of math", 0.75), ("exact_match of math", 0.5)
    }  # fmt: skip


def test_no_path_of_this_machine_is_in_what_is_pushed(library: Path, tmp_path: Path) -> None:
    parcel = pack(library, "someone/experts")
    folder = str(library.parent)
    for name, content in parcel.files.items():
        text = content.decode("latin-1")
        assert folder not in text and "~/" not in text and "../" not in text, name
    card = json.loads(parcel.files["math/expert.json"])
    assert card["base_model"]["id"] == "model"
    assert card["description"] == "math questions, see x.json and https://example.org/a/b."
    assert card["training"]["hyperparameters"] == {
        "model": "model", "recipe": ["math.yaml", {"path": "here.yaml"}], "rate": "a/b", "hub": "me/x"
    }  # fmt: skip
    assert any("--base-model" in remark for remark in parcel.remarks)
    named = pack(library / "math", "someone/math", base_model="someone/tiny")
    assert json.loads(named.files["expert.json"])["base_model"]["id"] == "someone/tiny" and not named.remarks[1:]
    shipped = Expert.load(next(experts_dir().glob("library/*/*/expert.json")).parent).card
    assert without_paths(shipped) == shipped


@pytest.mark.parametrize("text", ["file:///data/somebody/model", r"\\server\share\model", r"C:\models\tiny", "see /data/somebody/x y"])
def test_a_path_in_any_form_is_taken_out_or_refused(library: Path, tmp_path: Path, text: str) -> None:
    expert = Expert.load(library / "code")
    described = replace(expert, card=expert.card.model_copy(update={"description": text})).save(tmp_path / "code")
    try:
        files = pack(described, "someone/code").files
    except T2Error as error:
        assert "expert.json names a path of this machine" in str(error) and "nothing was uploaded" in str(error)
        return
    for name in ("expert.json", "README.md"):
        assert "somebody" not in files[name].decode() and "share" not in files[name].decode() and "C:" not in files[name].decode()


def test_a_path_that_cannot_be_taken_out_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(T2Error, match=r"expert\.json names a path of this machine, '/srv/people/x'"):
        refuse_paths("expert.json", json.dumps({"modules": {"/srv/people/x": 1}}).encode())
    with pytest.raises(T2Error, match=r"curve\.png names a path"):
        refuse_paths("curve.png", PNG + os.getcwd().encode())
    refuse_paths("README.md", b"https://example.org/a/b, owner/name, a/b/c, hf://owner/name/math, 1/2/3")


def test_a_picture_that_is_a_link_or_no_picture_is_left_out(library: Path, tmp_path: Path) -> None:
    folder = Expert.load(library / "code").save(tmp_path / "code")
    (tmp_path / "secret").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret")
    (folder / "text.png").write_text("not a picture")
    assert set(pack(folder, "someone/code").files) == {"README.md", "expert.json", "expert.safetensors"}


def test_experts_of_two_bases_are_two_repositories(library: Path, tmp_path: Path) -> None:
    for name, base in (("a", "someone/one"), ("b", "someone/two")):
        expert = Expert.load(library / "code").renamed(name)
        base_model = expert.card.base_model.model_copy(update={"id": base})
        replace(expert, card=expert.card.model_copy(update={"base_model": base_model})).save(tmp_path / name)
    with pytest.raises(T2Error, match="a is an expert of someone/one, and b one of someone/two"):
        pack(tmp_path, "someone/experts")


# ---------------------------------------------------------------------- scores
def test_a_score_goes_to_the_leaderboard_of_a_benchmark(library: Path, server: FakeHub) -> None:
    tasks = [{"id": "other", "config": "socratic", "split": "test"}, {"id": "gsm8k", "config": "main", "split": "test"}]
    server.put("openai/gsm8k", {"eval.yaml": yaml.safe_dump({"name": "GSM8K", "tasks": tasks}).encode()}, kind="datasets")
    parcel = pack(library, "someone/experts", data={"t2_gsm8k": HubData("openai/gsm8k", "main")})
    (entry,) = parse_eval_result_entries(yaml.safe_load(parcel.files[".eval_results/math.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 0.75)
    assert "exact_match on 4 examples of test, standard error 0.2500" in str(entry.notes)
    results = ModelCard(parcel.files["math/README.md"].decode()).data.eval_results
    assert {(r.dataset_type, r.dataset_config, r.dataset_split) for r in results} == {
        ("openai/gsm8k", "main", "test"), ("t2_gsm8k", None, "validation")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "its test split is no data set of the hub"),
        ({"t2_gsm8k": HubData("openai/gsm8k", "main")}, "openai/gsm8k has no single task of configuration main"),
        ({"t2_gsm8k": HubData("some/data")}, "some/data is no benchmark of the hub"),
        ({"t2_gsm8k": HubData("no/data")}, "the hub does not say whether no/data is a benchmark"),
    ],
)
def test_a_score_that_no_leaderboard_shows_is_said(library: Path, server: FakeHub, data: dict[str, HubData], said: str) -> None:
    tasks = {"tasks": [{"id": "gsm8k", "config": "socratic"}]}
    server.put("openai/gsm8k", {"eval.yaml": yaml.safe_dump(tasks).encode()}, kind="datasets")
    server.put("some/data", {"README.md": b""}, kind="datasets")
    parcel = pack(library / "math", "someone/math", data=data)
    assert not [name for name in parcel.files if name.startswith(".eval")]
    assert any(said in remark for remark in parcel.remarks)


# ---------------------------------------------------------------------- pull
def test_what_is_no_file_of_an_expert_is_not_pulled(library: Path, server: FakeHub, tmp_path: Path) -> None:
    files = pack(library / "math", "someone/math").files
    odd = {"weights.pt": b"pickle", "math.py": b"import os", "a/b/c/d/expert.json": b"{}", "training.json": b"{}", "x y/expert.json": b"{}"}
    commit = server.put("someone/math", {**files, **odd})
    folder, source = hub.pull("hf://someone/math", tmp_path / "math")
    assert sorted(path.name for path in folder.rglob("*")) == ["README.md", "expert.json", "expert.safetensors"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert str(source) == f"hf://someone/math@{commit}"
    assert not server.asked(r"resolve.*(\.pt|\.py|training)")
    with pytest.raises(UsageError, match="not an empty folder"):
        hub.pull("hf://someone/math", tmp_path / "math")


def test_a_file_larger_than_an_experts_is_refused_before_it_is_downloaded(
    library: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("someone/math", pack(library / "math", "someone/math").files)
    monkeypatch.setitem(hub.LIMITS, "expert.safetensors", 100)
    with pytest.raises(T2Error, match=r"expert\.safetensors has .* more than any expert's"):
        hub.located("hf://someone/math")
    assert not server.asked("resolve")


def test_a_link_out_of_the_repository_is_refused(library: Path, server: FakeHub, tmp_path: Path) -> None:
    commit = server.put("someone/math", pack(library / "math", "someone/math").files)
    folder = hub.located("hf://someone/math")
    hub.forget()
    (tmp_path / "secret").write_text("{}")
    (folder / "expert.json").unlink()
    (folder / "expert.json").symlink_to(tmp_path / "secret")
    with pytest.raises(T2Error, match="leads out of"):
        hub.located(f"hf://someone/math@{commit}")


def test_a_damaged_expert_is_refused_when_it_is_pulled(library: Path, server: FakeHub, tmp_path: Path) -> None:
    files = pack(library / "math", "someone/math").files
    server.put("someone/math", {**files, "expert.safetensors": files["expert.safetensors"][:-8]})
    with pytest.raises(T2Error, match=r"damaged or cut off"):
        hub.pull("hf://someone/math", tmp_path / "math")
    assert not (tmp_path / "math").exists()


def test_a_place_without_an_expert_says_what_is_there(library: Path, server: FakeHub) -> None:
    server.put("someone/experts", pack(library, "someone/experts").files)
    with pytest.raises(T2Error, match=r"hf://someone/experts@\w+/maths holds no expert in maths\. It has code, math"):
        hub.located("hf://someone/experts/maths")
    server.put("someone/model", {"model.safetensors": b""})
    with pytest.raises(T2Error, match="holds no expert"):
        hub.located("hf://someone/model")


# ---------------------------------------------------------------------- revisions
def test_a_name_stands_for_one_commit_and_a_commit_needs_no_hub(library: Path, server: FakeHub, tmp_path: Path) -> None:
    math = pack(library / "math", "someone/math").files
    first = server.put("someone/math", math)
    folder = hub.located("hf://someone/math")
    second = server.put("someone/math", {**math, "README.md": b"# new"})
    assert hub.located("hf://someone/math") == folder and folder.name == first
    hub.forget()
    assert hub.located("hf://someone/math").name == second
    asked = len(server.requests)
    hub.forget()
    assert hub.located(f"hf://someone/math@{first}") == folder
    assert len(server.requests) == asked, "a commit in the cache was asked for again"


@pytest.mark.parametrize("how", ["down", "broken", "offline"])
def test_what_is_cached_is_used_where_the_hub_is_out_of_order_and_that_is_said_once(
    library: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    commit = server.put("someone/math", pack(library / "math", "someone/math").files)
    hub.located("hf://someone/math")
    hub.forget()
    if how == "down":
        server.close()
    elif how == "broken":
        server.fail("GET /api", 503)
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING, "t2eval.expert.hub"):
        assert hub.located("hf://someone/math").name == commit
        load_library("hf://someone/math")
    (said,) = [record.getMessage() for record in caplog.records if record.name == "t2eval.expert.hub"]
    assert f"hf://someone/math is used as it was cached, at commit {commit}" in said
    with pytest.raises(T2Error, match="HF_HUB_OFFLINE is set" if how == "offline" else "the hub cannot be reached"):
        hub.located("hf://someone/other")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "hf auth login"),
        (403, r"You may not have hf://someone/math read \(403\)"),
        (404, "There is no repository"),
        (500, "cannot be reached"),
    ],
)
def test_each_answer_of_the_hub_is_one_clear_message(library: Path, server: FakeHub, status: int, said: str) -> None:
    server.fail("/someone/math", status)
    result = invoke("expert", "pull", "hf://someone/math")
    assert result.exit_code == 1 and "Traceback" not in result.output and len(result.stderr.strip().splitlines()) == 1
    with pytest.raises(T2Error, match=said):
        hub.located("hf://someone/math")


def test_private_gated_and_missing_revisions_are_told_apart(library: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put("someone/math", pack(library / "math", "someone/math").files)
    with pytest.raises(T2Error, match="has no revision 'v9'"):
        hub.located("hf://someone/math@v9")
    logged_out(monkeypatch)
    server.repositories["models/someone/math"].gated = True
    with pytest.raises(T2Error, match="is gated: ask for access"):
        hub.located("hf://someone/math")
    server.repositories["models/someone/math"].private = True
    with pytest.raises(T2Error, match="or it is private"):
        hub.located("hf://someone/math")


@pytest.mark.parametrize(("status", "said"), [(403, "token that may write"), (500, "cannot be reached")])
def test_a_push_that_the_hub_refuses_is_one_message(library: Path, server: FakeHub, status: int, said: str) -> None:
    server.fail("POST /api/repos/create", status)
    with pytest.raises(T2Error, match=said):
        push(pack(library / "math", "someone/math"), "someone/math")


def test_a_push_without_a_login_says_so(library: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    logged_out(monkeypatch)
    with pytest.raises(T2Error, match="hf auth login"):
        push(pack(library / "math", "someone/math"), "someone/math")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = invoke("expert", "push", library / "code", "nobody/code", "--base-model", "someone/tiny")
    assert result.exit_code == 1 and "HF_HUB_OFFLINE is set" in result.stderr and "Traceback" not in result.output


# ---------------------------------------------------------------------- commands
def test_a_dry_run_prints_the_files_and_writes_nothing(library: Path, server: FakeHub) -> None:
    result = invoke("expert", "push", library, "someone/experts", "--dry-run")
    assert result.exit_code == 0 and "Would upload 8 files" in result.stdout and "math/expert.safetensors" in result.stdout
    assert not server.asked("POST") and "models/someone/experts" not in server.repositories
    pushed = invoke("expert", "push", library, "someone/experts", "--json")
    place = json.loads(pushed.stdout)["place"]
    assert pushed.exit_code == 0 and parse_location(place).is_pinned
    listed = invoke("expert", "pull", "hf://someone/experts/math", "--dry-run", "--json")
    assert json.loads(listed.stdout)["place"] == f"{place}/math"
    assert set(json.loads(listed.stdout)["files"]) == {f"math/{name}" for name in ("README.md", "expert.json", "expert.safetensors")}
    assert not server.asked("experts/resolve")
    shown = invoke("expert", "list", "hf://someone/experts", "--json")
    assert [item["name"] for item in json.loads(shown.stdout)] == ["code", "math"]


@pytest.mark.parametrize("name", ["someone", "hf://someone/math@v1", "some one/math", "a/b/c"])
def test_a_wrong_repository_is_refused_by_name(library: Path, name: str) -> None:
    result = invoke("expert", "push", library / "math", name, "--dry-run")
    assert result.exit_code == 2 and name in result.stderr


def test_a_name_of_the_hub_without_its_scheme_is_recognised() -> None:
    with pytest.raises(T2Error, match="For a repository of the hub write hf://someone/math"):
        load_library("someone/math")


# ---------------------------------------------------------------------- benchmarks
def test_a_benchmark_pins_its_experts(library: Path, server: FakeHub, tmp_path: Path) -> None:
    files = pack(library, "someone/experts").files
    seeds = {f"seed-{seed}/{name}": content for seed in (0, 1) for name, content in files.items()}
    commit = server.put("someone/experts", seeds)
    (tmp_path / "b.yaml").write_text("tasks: [embedded_math_seen]\nseeds: [0, 1]\nexperts: hf://someone/experts/seed-{seed}\n")
    plan = load_plan(tmp_path / "b.yaml")
    config = pinned_config(plan.config)
    assert config.experts == f"hf://someone/experts@{commit}/seed-{{seed}}"
    assert [folder.parent.name for folder in config.expert_folders(1)] == ["seed-1", "seed-1"]
    facts = expert_facts("fewshot", config.experts_argument(1))
    assert facts["hashes"]["sources"] == {name: f"hf://someone/experts@{commit}/seed-1/{name}" for name in ("code", "math")}
    assert facts["hashes"]["experts"]["math"] == Expert.load(library / "math").sha256


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"baselines": "hf://someone/lora"}, "only experts are read from the hub"),
        ({"experts": "hf://someone/experts@seed-{seed}"}, "not before it"),
        ({"experts": "hf://someone"}, "no place on the hub"),
    ],
)
def test_what_a_benchmark_cannot_read_from_the_hub_is_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pinned_config(parse_config({"tasks": ["x"], **settings}))


def test_a_benchmark_without_the_hub_is_as_it_was() -> None:
    config = BenchConfig(tasks=("x",), experts="/some/where+/else/seed-{seed}")
    assert pinned_config(config) == config


def test_a_folder_of_the_cache_knows_where_it_comes_from() -> None:
    commit = "0123456789" * 4
    assert str(source_of(f"/c/models--a--b--c/snapshots/{commit}/seed-0/math")) == f"hf://a/b--c@{commit}/seed-0/math"
    assert source_of("/c/models--a--b/blobs/x") is None and source_of("/somewhere/math") is None


def test_results_name_the_commit(library: Path, server: FakeHub) -> None:
    from t2eval.models.text import T2Expert

    commit = server.put("someone/experts", pack(library, "someone/experts").files)
    base = str(library.parent / "model")
    lm = T2Expert(pretrained=base, experts="hf://someone/experts/math", device="cpu")
    (expert,) = lm.t2_info()["experts"]
    assert expert["source"] == f"hf://someone/experts@{commit}/math"


def test_another_process_reads_the_hub_by_its_environment(library: Path, server: FakeHub, tmp_path: Path) -> None:
    server.put("someone/math", pack(library / "math", "someone/math").files)
    program = "from t2eval.expert import hub; print(hub.pull.__module__, hub.located('hf://someone/math'))"
    settings = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **settings}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert source_of(done.stdout.split()[-1]) is not None and str(tmp_path / "home") in done.stdout
