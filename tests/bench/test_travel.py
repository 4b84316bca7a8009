"""Travel: experts, adapters and tasks reach a machine that shares no disk; what cannot is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from t2eval.bench import training, travel
from t2eval.bench.config import BenchConfig
from t2eval.bench.plan import make_plan
from t2eval.bench.training import Job
from t2eval.bench.travel import CellSetup, TrainSetup, here
from t2eval.bench.worker import Worker
from t2eval.errors import T2Error
from t2eval.paths import experts_dir
from t2eval.training import train as train_module
from t2eval.training.config import TrainConfig
from t2eval.workers.cargo import gathered, pack, unpack
from tests.bench.fakes import FakeWorker, write_record


@pytest.fixture
def config(tmp_path: Path) -> BenchConfig:
    """A benchmark whose experts, adapters and tasks lie in folders of this machine."""
    shutil.copytree(experts_dir() / "library" / "seed-0", tmp_path / "driver" / "library" / "0")
    shutil.copytree(experts_dir() / "baselines" / "seed-0" / "lora-math", tmp_path / "driver" / "adapters" / "lora-math-0")
    tasks = tmp_path / "driver" / "tasks"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text("task: mine\ninclude: other.yaml\n")
    (tasks / "other.yaml").write_text("metadata: {t2: {label: math}}\n")
    return BenchConfig(
        methods=("expert", "lora"), tasks=("embedded_math_unseen",), limit=2, experts=str(tmp_path / "driver/library/{seed}"),
        baselines=str(tmp_path / "driver/adapters/{method}-{label}-{seed}"),
        model_args={"expert": {"experts": str(tmp_path / "driver/library/0")}},
    )  # fmt: skip


def test_what_lies_there_already_stays_where_it_is(config: BenchConfig, tmp_path: Path) -> None:
    files = CellSetup(FakeWorker, config, tmp_path / "out").files()
    of_adapters = {"adapter_model.safetensors", "adapter_config.json", "t2_adapter.json"}
    assert {path.name for path in files} == {"expert.safetensors", "expert.json", "prompts.safetensors", *of_adapters}
    cargo = pack(files, put=bytes)
    assert unpack(cargo, bytes, tmp_path / "scratch") is None
    assert not (tmp_path / "scratch").exists()
    files[0].write_bytes(b"another expert of that name")
    assert unpack(cargo, bytes, tmp_path / "scratch") == tmp_path / "scratch", "other contents do not stand for these"


def test_cells_run_where_nothing_of_this_machine_is(config: BenchConfig, tmp_path: Path) -> None:
    setup = CellSetup(Worker, config, tmp_path / "out")
    cargo = pack(setup.files(), put=bytes)
    (tmp_path / "driver").rename(tmp_path / "away")
    root = unpack(cargo, bytes, tmp_path / "scratch" / "files")
    moved = setup.moved(tmp_path / "scratch" / "work", root)
    assert str(moved.config.experts) == f"{tmp_path}/scratch/files{tmp_path}/driver/library/{{seed}}"
    answer = moved()
    for cell in make_plan(config).cells:
        row, files = answer(cell)
        assert row.status == "ok", row.error
        assert row.samples in files and not (tmp_path / "scratch" / "work" / row.samples).exists()
        assert not (tmp_path / "out").exists(), "this machine's process alone writes there"
        assert row.hashes.get("experts") or row.hashes.get("adapter")


def test_tasks_travel_unless_they_are_too_large(config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = config.model_copy(update={"include_path": str(tmp_path / "driver" / "tasks")})
    setup = CellSetup(FakeWorker, own, tmp_path)
    assert {"mine.yaml", "other.yaml"} <= {path.name for path in setup.files()}
    root = tmp_path / "scratch"
    assert setup.moved(tmp_path, root).config.include_path == f"{root}{tmp_path}/driver/tasks"
    monkeypatch.setattr(travel, "_MOST", 10)
    with pytest.raises(T2Error, match=r"include_path: .*/driver/tasks has 0.0 GB in 2 files, and at most .* travel .* Keep data out of it"):
        setup.files()


def test_a_base_model_of_another_machine_is_refused_with_the_reason(config: BenchConfig, tmp_path: Path) -> None:
    lost = config.model_copy(update={"model": str(tmp_path / "driver" / "llama")})
    with pytest.raises(T2Error, match=r"model: .*/driver/llama is a folder of the machine .* Base models do not travel"):
        CellSetup(FakeWorker, lost, tmp_path).moved(tmp_path / "work", tmp_path / "files")()


def test_names_of_the_hub_stay_as_they_are(config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = config.model_copy(
        update={"model": "model", "experts": "hf:owner-name", "model_args": {"cls": {"experts": "driver/library/0"}}}
    )
    assert (here(relative).model, here(relative).model_args) == (
        str(tmp_path / "model"),
        {"cls": {"experts": str(tmp_path / "driver/library/0")}},
    )
    assert CellSetup(FakeWorker, relative, tmp_path).moved(tmp_path, Path("/root")).config.experts == "hf:owner-name"
    assert here(config.model_copy(update={"model": "org/model"})).model == "org/model"


def test_a_training_elsewhere_comes_back_without_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("math", TrainConfig(task="embedded_math_seen", output=tmp_path / "bench" / "experts" / "math"))

    def train(config: TrainConfig, progress: bool) -> None:
        assert config.output == tmp_path / "scratch" / job.output.relative_to("/")
        write_record(Job("math", config))
        (config.output / "checkpoints").mkdir()
        (config.output / "checkpoints" / "large").write_text("x")

    monkeypatch.setattr(train_module, "train_expert", train)
    files = TrainSetup(None).moved(tmp_path / "scratch", None)()(job)
    assert set(files) == {"training.json"}
    assert not job.finished
    training._keep(job.output, files)
    assert job.finished and json.loads(files["training.json"])["seconds"] == 1.0
    assert gathered(job.output) == files
