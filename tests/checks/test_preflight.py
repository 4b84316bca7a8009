"""Preflight: everything that is missing in one message, before anything is loaded."""

from __future__ import annotations

import shutil
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from t2eval import cli, paths
from t2eval.basemodel import probe as hub
from t2eval.bench.plan import Plan, load_plan
from t2eval.checks import check, doctor, preflight
from t2eval.checks.check import Check
from t2eval.errors import T2Error, UsageError
from t2eval.training.config import TrainConfig
from tests.offline_datasets import datasets_cache, write_hub

MISSING = Check("sandbox", "missing", "no bwrap here", "apt-get install bubblewrap")


def plan_of(folder: Path, **settings: Any) -> Plan:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({"tasks": ["embedded_math_seen"], "methods": ["base"], **settings}))
    return load_plan(path)


@pytest.fixture
def task(tmp_path: Path) -> Any:
    """Makes a task of one's own that can be loaded by name."""
    folder = tmp_path / "tasks"
    folder.mkdir()

    def make(name: str, **settings: Any) -> dict[str, Any]:
        config = {"task": name, "output_type": "generate_until", "test_split": "test", "doc_to_text": "q", "doc_to_target": "a"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**config, **settings}))
        return {"tasks": [name], "include_path": str(folder), "labels": {name: "math"}}

    return make


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_gpus", lambda: [])


def _no_package(name: str) -> str:
    raise PackageNotFoundError(name)


def bare(error: type[Exception]) -> Exception:
    """Without the HTTP response, whose type depends on the release of huggingface_hub."""
    made = error.__new__(error)
    made.args = ("refused",)
    return made


def test_the_embedded_benchmark_lacks_nothing(tmp_path: Path) -> None:
    assert preflight.check_bench(load_plan("embedded"), tmp_path / "out") == []
    assert preflight.check_demo(tmp_path / "demo") == []
    assert preflight.check_training(TrainConfig(task="embedded_code_seen", output=tmp_path / "out")) == []


def test_training_needs_the_embedded_model_and_no_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(task="embedded_vqa_seen", output=tmp_path / "out")
    root = tmp_path / "experts"
    monkeypatch.setattr(paths, "experts_dir", lambda: root)
    with pytest.raises(T2Error, match=r"vlm lacks config\.json, model\.safetensors\. Install t2eval again, or `make embedded`"):
        preflight.check_training(config)
    (root / "vlm").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (root / "vlm" / name).write_text("{}")
    assert preflight.check_training(config) == []
    found = doctor.embedded_vlm()
    assert (found.status, "no experts in" in found.detail) == ("missing", True)
    (root / "vlm-library" / "seed-0" / "vision").mkdir(parents=True)
    (root / "vlm-library" / "seed-0" / "vision" / "expert.json").write_text("{}")
    assert doctor.embedded_vlm().status == "ok"
    assert "embedded vision-language model" in {check.name for check in doctor.examine()}


@pytest.mark.usefixtures("no_gpu")
def test_everything_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sandbox", lambda: MISSING)
    monkeypatch.setattr(check, "version", _no_package)  # whether ray is here or not
    with datasets_cache(tmp_path / "empty"), pytest.raises(T2Error) as caught:
        preflight.check_bench(load_plan("paper-llama3-8b"), tmp_path / "out")
    message = str(caught.value)
    for part in (
        "4 things are missing, and nothing was loaded",
        "openai/gsm8k (main) (for t2_gsm8k",
        "databricks/databricks-dolly-15k (for t2_dispatch): not in the cache, and the hub is switched off",
        "unset HF_HUB_OFFLINE",
        "t2_mbpp_pro, t2_humaneval run model-written programs, and there is no sandbox: no bwrap here. apt-get install bubblewrap",
        "The model meta-llama/Meta-Llama-3-8B-Instruct is neither a folder nor in the hub's cache",
        "There is no GPU here that torch can use, and the device is 'cuda'",
    ):
        assert part in message, (part, message)
    assert len(message.splitlines()) == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_gpu")
def test_data_model_and_gpu_are_other_machines_where_cells_run_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sandbox", lambda: MISSING)
    monkeypatch.setattr(check, "version", _no_package)  # whether ray is here or not
    with datasets_cache(tmp_path / "empty"), pytest.raises(T2Error) as caught:
        preflight.check_bench(load_plan("paper-llama3-8b"), tmp_path / "out", executor="ray")
    first, *lines = str(caught.value).splitlines()
    assert first == "2 things are missing, and nothing was loaded:"
    assert "run model-written programs, and there is no sandbox" in lines[0]
    assert lines[1] == "- The package ray is not installed (--executor ray). pip install 't2eval[ray]'"


def test_data_in_the_cache_is_no_obstacle(tmp_path: Path) -> None:
    write_hub(tmp_path / "cache", "allenai/ai2_arc")
    plan = plan_of(tmp_path, tasks=["t2_arc_easy"])
    with datasets_cache(tmp_path / "cache"):
        assert preflight.check_bench(plan, tmp_path / "out") == []
    with datasets_cache(tmp_path / "empty"), pytest.raises(T2Error, match="One thing is missing"):
        preflight.check_bench(plan, tmp_path / "out")


def test_what_the_hub_says_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "offline", lambda: False)

    def answer(error: Exception | None) -> str | None:
        def auth_check(self: HfApi, name: str) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(HfApi, "auth_check", auth_check)
        return hub.model_obstacle("org/model")

    assert answer(None) is None
    gated = answer(bare(GatedRepoError)) or ""
    assert "ask for access at https://huggingface.co/org/model, then run `hf auth login`" in gated
    assert "There is no model 'org/model'" in (answer(bare(RepositoryNotFoundError)) or "")
    assert "the Hub cannot be reached (no route)" in (answer(ConnectionError("no route")) or "")


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def dataset_info(self: HfApi, name: str, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(hub, "offline", lambda: False)
    plan = plan_of(tmp_path, tasks=["t2_arc_easy", "t2_gsm8k"])
    with datasets_cache(tmp_path / "empty"), pytest.raises(T2Error) as caught:
        preflight.check_bench(plan, tmp_path / "out")
    assert asked == ["allenai/ai2_arc"]
    assert "allenai/ai2_arc (ARC-Easy) (for t2_arc_easy); openai/gsm8k (main) (for t2_gsm8k): not in the cache" in str(caught.value)


def test_packages_that_a_task_or_a_setting_asks_for(tmp_path: Path, task: Any) -> None:
    settings = task("needy", metadata={"t2": {"requires": ["no-such-package>=2", "numpy"], "sizes": {"test": 5}}})
    with pytest.raises(T2Error, match=r"no-such-package is not installed \(task needy\)\. pip install 'no-such-package>=2'"):
        preflight.check_bench(plan_of(tmp_path, **settings), tmp_path / "out")
    config = TrainConfig(task="embedded_math_seen", output=tmp_path / "x", report_to=("no-such-logger",))
    with pytest.raises(T2Error, match=r"no-such-logger is not installed \(report_to\)"):
        preflight.check_training(config)


def test_programs_without_protection_are_refused_with_the_rest(tmp_path: Path, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = task("unsafe", unsafe_code=True, metadata={"t2": {"requires": ["no-such-package"]}})
    with pytest.raises(T2Error) as caught:
        preflight.check_bench(plan_of(tmp_path, **{**settings, "model": "org/absent"}), tmp_path / "out")
    assert "runs model-written programs without protection" in str(caught.value)
    assert "The model org/absent" in str(caught.value)


def test_names_that_do_not_exist_are_wrong_usage(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, train={"skills": {"math": {"task": "embedded_math_seen", "stepz": 1}}}, methods=["expert"])
    with pytest.raises(UsageError, match="Did you mean 'steps'"):
        preflight.check_bench(plan, tmp_path / "out")
    with pytest.raises(UsageError, match="Unknown executor 'slurm'"):
        preflight.check_bench(load_plan("embedded"), tmp_path / "out", executor="slurm")


def test_warnings_do_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage(2, 1, 1))
    monkeypatch.setattr(preflight, "_host_memory", lambda: 1_000_000)
    section = {"skills": {"math": {"task": "embedded_math_seen"}}, "settings": {"test": False}}
    warnings = preflight.check_bench(plan_of(tmp_path, methods=["base", "expert"], train=section), tmp_path / "out")
    assert any("bases may take 0.0 GB (read)" in line and "T2EVAL_CACHE" in line for line in warnings)
    assert any(line.startswith("evaluation may take") for line in warnings)
    assert any(line.startswith("training may take") for line in warnings)


def test_experts_that_nobody_makes_are_a_warning(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods=["base", "prompt", "lora"], experts="none", baselines="none/{method}-{label}")
    with pytest.raises(T2Error, match=f"experts: {tmp_path / 'none'} is not a folder. Mend the path"):
        preflight.check_bench(plan, tmp_path / "out")
    (tmp_path / "none").mkdir()
    warnings = preflight.check_bench(plan, tmp_path / "out")
    assert any(f"There are no experts in {tmp_path / 'none'}" in line for line in warnings)
    assert any("There is no lora adapter of seed 0" in line for line in warnings)


def test_nearest_without_the_vectors_of_prompts_is_named(tmp_path: Path) -> None:
    shipped = paths.experts_dir() / "library" / "seed-0"  # its classification expert has none, and needs none
    assert preflight.check_bench(plan_of(tmp_path, methods=["nearest"], experts=str(shipped)), tmp_path / "out") == []
    shutil.copytree(shipped, tmp_path / "library")
    (tmp_path / "library" / "code" / "prompts.safetensors").unlink()
    lacking = rf"no prompts.safetensors in {tmp_path / 'library' / 'code'}, by which .* `t2 expert vectors LIBRARY` makes it"
    with pytest.raises(T2Error, match=lacking):
        preflight.check_bench(plan_of(tmp_path, methods=["nearest"], experts="library"), tmp_path / "out")
    mine = {"name": "mine", "strategy": "nearest", "experts": str(tmp_path / "library")}
    with pytest.raises(T2Error, match=f"methods, mine: there is {lacking}"):
        preflight.check_bench(plan_of(tmp_path, methods=["base", mine]), tmp_path / "out")
    trained = {"skills": {"math": {"task": "embedded_math_seen"}}}
    (warning,) = preflight.check_bench(plan_of(tmp_path, methods=["nearest"], train=trained), tmp_path / "out")
    assert "nearest chooses by prompts.safetensors" in warning


@pytest.mark.usefixtures("no_gpu")
def test_the_commands_check_first_and_end_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.yaml").write_text("tasks: [embedded_math_seen]\nmethods: [base]\ndevice: cuda\n")
    commands = {
        "Set `device: cpu`": ["bench", str(tmp_path / "b.yaml"), "--output", str(tmp_path / "out")],
        "Give --device cpu": ["train-expert", "--task", "embedded_math_seen", "--device", "cuda", "--output", str(tmp_path / "out")],
    }
    for remedy, command in commands.items():
        result = CliRunner().invoke(cli.main, command)
        assert result.exit_code == 1, result.output
        assert f"There is no GPU here that torch can use, and the device is 'cuda'. {remedy}," in result.stderr
    monkeypatch.setattr(doctor, "sandbox", lambda: MISSING)
    result = CliRunner().invoke(cli.main, ["demo", "--output", str(tmp_path / "demo")])
    assert (result.exit_code, "apt-get install bubblewrap" in result.stderr) == (1, True)
    assert not (tmp_path / "out").exists() and not (tmp_path / "demo").exists()


def test_the_folder_of_a_single_expert_is_a_library(tmp_path: Path) -> None:
    expert = paths.experts_dir() / "library" / "seed-0" / "math"
    assert preflight.check_bench(plan_of(tmp_path, methods=["base", "expert"], experts=str(expert)), tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": {"shots": 3}}, "Unknown model_args of 'base', which has no options of t2eval's: 'shots'"),
        ({"lora": {"max_lenght": 3}}, "Did you mean 'max_length'"),
        ({"fewshot": {"dispatch": "score"}}, "'dispatch' is an option of t2-prompt and t2-cls"),
        ({"fewshot": {"shots": 0}}, "shots=0: it must be at least 1"),
        ({"expert": {"batch_size": 3}}, "'batch_size' is a setting of the benchmark file itself"),
    ],
)
def test_arguments_that_a_method_does_not_take_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    plan = plan_of(tmp_path, methods=["base", "expert", "fewshot", "lora"], model_args=arguments)
    with pytest.raises(UsageError, match=message):
        preflight.check_bench(plan, tmp_path / "out")


def test_bounds_of_a_benchmark_file(tmp_path: Path) -> None:
    for settings, name in (({"seeds": [-1]}, "seeds"), ({"limit": 0}, "limit"), ({"dtype": "float33"}, "float33")):
        with pytest.raises(UsageError, match=name):
            plan_of(tmp_path, **settings)
