"""Cells on a vision-language model: every method on a task with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from t2eval.basemodel.folders import embedded_baseline_dir, embedded_library_dir, embedded_vlm_baseline_dir, embedded_vlm_library_dir
from t2eval.bench.config import DEFAULT_METHODS as METHODS
from t2eval.bench.config import BenchConfig
from t2eval.bench.plan import make_plan
from t2eval.bench.rows import Row, read_samples
from t2eval.bench.worker import Worker
from t2eval.expert.expert import Expert
from t2eval.svf.attachment import attach
from t2eval.training.adapters import PeftTrainable
from t2eval.training.config import TrainConfig
from t2eval.training.methods import make_trainable
from tests.tiny_vlm import save_tiny_vlm, tiny_vlm

TASKS = Path(__file__).resolve().parents[1] / "fixtures" / "picture_tasks"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Worker, dict[str, Row], dict[str, Any]]:
    """Every method's row, the base's again at the end, the worker, and its weights before."""
    folder = tmp_path_factory.mktemp("bench")
    save_tiny_vlm(folder / "base")
    adapted = attach(tiny_vlm())
    for index, label in enumerate(("sight", "math", "dispatch")):
        torch.manual_seed(index)
        z = {path: 1 + 0.5 * torch.randn(basis.rank) for path, basis in adapted.bases.items()}
        expert = Expert.from_adapted(adapted, z, name=label, label=label, description=f"{label} questions", base_id=str(folder / "base"))
        expert.save(folder / ("words" if label == "math" else "library") / label)
    for method in ("lora", "dora", "ia3"):
        torch.manual_seed(3)
        trainable = make_trainable(tiny_vlm(), TrainConfig(task="any", output=folder, method=method))
        assert isinstance(trainable, PeftTrainable)
        with torch.no_grad():
            for parameter in trainable.parameters().values():
                parameter.add_(0.4 * torch.randn_like(parameter))
        target = folder / "baselines" / f"{method}-sight"
        target.mkdir(parents=True)
        trainable.save_adapter(target, {"id": str(folder / "base"), "revision": None})
    both = f"{folder / 'library'}+{folder / 'words'}"
    config = BenchConfig(
        model=str(folder / "base"), methods=METHODS, tasks=("pictures",), experts=str(folder / "library"), batch_size=4,
        baselines=str(folder / "baselines" / "{method}-{label}"), include_path=str(TASKS),
        model_args={
            "fewshot": {"shots": 2, "population": 4, "iterations": 2, "experts": both},
            "prompt": {"experts": both, "dispatch_image": True},
        },
    )  # fmt: skip
    worker = Worker(config, tmp_path_factory.mktemp("out"))
    worker.open()
    before = {name: tensor.clone() for name, tensor in worker.base.model.state_dict().items()}
    cells = list(make_plan(config).cells)
    found = {cell.method: worker.run(cell) for cell in cells}
    found["again"] = worker.run(cells[0])
    return worker, found, before


def test_every_method_works_on_images(rows: tuple[Worker, dict[str, Row], dict[str, Any]]) -> None:
    worker, found, before = rows
    assert {method: row.error for method, row in found.items() if row.status != "ok"} == {}
    assert set(found) == {*METHODS, "again"} and all(row.n == 6 for row in found.values())
    after = worker.base.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    answers = {method: [sample.response for sample in read_samples(worker.output, row)] for method, row in found.items()}
    assert answers["again"] == answers["base"]
    for method in ("expert", "fewshot", "lora", "dora", "ia3"):
        assert answers[method] != answers["base"], method
    assert set(found["prompt"].hashes["experts"]) == {"math", "sight"}, "both libraries"
    assert found["prompt"].t2 is not None and sum(found["prompt"].t2["dispatch"]["pictures"].values()) == 6
    assert found["prompt"].first_pass_seconds > 0


def test_the_embedded_model_has_its_language_models_experts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2eval.paths.experts_dir", lambda: tmp_path)
    config = BenchConfig(model="embedded-vlm", tasks=("any",))
    for folder in (embedded_library_dir(1), embedded_vlm_library_dir(1), embedded_vlm_baseline_dir("lora", "vision", 1)):
        folder.mkdir(parents=True)
    assert config.libraries(1) == [embedded_library_dir(1), embedded_vlm_library_dir(1)]
    assert config.library(1) == embedded_vlm_library_dir(1), "where experts are trained into"
    assert config.adapter("lora", "vision", 1) == embedded_vlm_baseline_dir("lora", "vision", 1)
    embedded_baseline_dir("lora", "math", 1).mkdir(parents=True)
    assert config.adapter("lora", "math", 1) == embedded_baseline_dir("lora", "math", 1), "the language model's, where there is no other"
    assert [folder.name for folder in config.adapters("lora", 1)] == ["lora-math", "lora-vision"]
    embedded_vlm_baseline_dir("lora", "math", 1).mkdir()
    assert config.adapter("lora", "math", 1) == embedded_vlm_baseline_dir("lora", "math", 1)


def test_an_expert_in_a_later_library_takes_the_place_of_its_namesake(tmp_path: Path) -> None:
    for library, names in (("words", ("math", "dispatch")), ("pictures", ("vision", "dispatch"))):
        for name in names:
            (tmp_path / library / "seed-0" / name).mkdir(parents=True)
            (tmp_path / library / "seed-0" / name / "expert.json").write_text("{}")
    words, pictures = tmp_path / "words" / "seed-0", tmp_path / "pictures" / "seed-0"
    config = BenchConfig(model="embedded-vlm", tasks=("any",), experts=f"{tmp_path}/words/seed-{{seed}}+{tmp_path}/pictures/seed-{{seed}}")
    assert set(config.expert_folders(0)) == {words / "math", pictures / "dispatch", pictures / "vision"}
    assert set(config.experts_argument(0).split("+")) == {str(folder) for folder in config.expert_folders(0)}
    alone = BenchConfig(model="embedded-vlm", tasks=("any",), experts=f"{tmp_path}/words/seed-{{seed}}")
    assert alone.experts_argument(0) == str(words), "experts of the language model alone"
    assert alone.experts_argument(7) == str(tmp_path / "words" / "seed-7"), "so that the message names what is not there"
