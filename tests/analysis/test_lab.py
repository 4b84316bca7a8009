import json
from pathlib import Path

import pytest

from t2eval.analysis import lab as lab_module
from t2eval.analysis.lab import Lab, mean_spread
from t2eval.analysis.presets import PRESETS, preset
from t2eval.bench.rows import read
from t2eval.errors import T2Error, UsageError
from t2eval.training.config import TrainConfig
from tests.bench.fakes import FakeWorker

TRAINING = Path(__file__).parents[1] / "fixtures" / "training"


def test_presets_have_tasks_for_every_skill():
    for name, found in PRESETS.items():
        assert set(found.seen) == set(found.unseen) == {"math", "code", "reasoning"}, name
        assert len(found.tasks) == len(found.labels) == 6
    assert preset("paper").describe().startswith("preset paper: base meta-llama/")
    assert preset(quick=True).limit is not None
    assert preset("paper", model="mistralai/Mistral-7B-Instruct-v0.3").model.startswith("mistralai")


def test_presets_that_do_not_exist():
    with pytest.raises(UsageError, match="Unknown preset 'papre'. Did you mean 'paper'"):
        preset("papre")
    with pytest.raises(UsageError, match="give --preset paper"):
        preset("embedded", model="org/model")
    with pytest.raises(UsageError, match="--quick is a small form"):
        preset("paper", quick=True)


def test_a_folder_is_of_one_preset(tmp_path):
    Lab(tmp_path, preset(quick=True))
    Lab(tmp_path, preset(quick=True))
    with pytest.raises(UsageError, match="Choose another --output"):
        Lab(tmp_path, preset())


def test_a_piece_is_computed_once(tmp_path):
    made = []

    def compute():
        made.append(1)
        return {"b": (1, 2), "a": 0.5}

    lab = Lab(tmp_path, preset(), say=lambda _: None)
    assert lab.once("study/one two", compute) == {"a": 0.5, "b": [1, 2]}
    assert Lab(tmp_path, preset(), say=lambda _: None).once("study/one two", compute) == {"a": 0.5, "b": [1, 2]}
    assert made == [1]

    def broken():
        raise T2Error("no")

    with pytest.raises(T2Error):
        lab.once("other", broken)
    assert lab.once("other", lambda: 3) == 3


def test_cells_are_shared_between_items_and_not_repeated(tmp_path):
    """With real worker processes, on workers that need no model."""
    said = []
    lab = Lab(tmp_path, preset(quick=True), say=said.append, factory=FakeWorker)
    first = lab.cells(["base", "prompt"], ["t1", "t2"])
    assert [row.n for row in first.rows] == [60] * 4
    second = lab.cells(["base", "cls"], ["t2", "t3"])
    calls = (tmp_path / "cells" / "main" / "calls.txt").read_text().split()
    assert len(calls) == len(set(calls)) == 7
    assert [row.method for row in second.of("cls", "t3")] == ["cls"]
    summary = second.summary("base", "t2")
    values = list(second.examples("base", "t2").values())
    assert summary["score"] == pytest.approx(sum(values) / len(values))
    assert any("7" in line or "[4/4]" in line for line in said)


def test_a_failed_cell_is_an_error_and_the_rest_is_kept(tmp_path):
    trouble = tmp_path / "trouble"
    trouble.write_text("fail")
    lab = Lab(tmp_path / "out", preset(quick=True), say=lambda _: None, factory=FakeWorker)
    with pytest.raises(T2Error, match="1 cells of .* failed, the first embedded__cls__t2__seed0: KeyError: broken"):
        lab.cells(["cls"], ["t1", "t2"], model_args={"base": {"trouble": str(trouble)}})
    assert sum(row.status == "ok" for row in read(tmp_path / "out" / "cells" / "main")) == 1


def test_another_setting_needs_another_study(tmp_path, lab):
    lab.cells(["base"], lab.preset.tasks)
    with pytest.raises(UsageError, match="Unknown key"):
        lab.cells(["base"], lab.preset.tasks, study="x", tempo=3)


def test_spread_between_seeds():
    assert mean_spread([0.5]) is None
    assert mean_spread([1.0, 2.0, 4.0]) == pytest.approx(1.5275, abs=1e-4)


def test_a_training_has_the_presets_settings(lab):
    training = lab.training("swept", "code", 1, method="lora", objective="supervised", lr=5e-4)
    config = training.config()
    assert isinstance(config, TrainConfig)
    assert (config.task, config.seed, config.method, config.lr, config.steps) == ("embedded_code_seen", 1, "lora", 5e-4, 60)
    assert (config.resume, config.test, config.label) == (True, False, "code")
    assert config.output == lab.folder("swept", 1) / "code"
    assert str(config.output).replace("seed-1", "seed-{seed}") == str(lab.folder("swept") / "code")
    assert lab.training("svf", "dispatch", 0).config().task == "embedded_dispatch"


def test_the_paper_preset_trains_what_its_cells_need(tmp_path, fakes, monkeypatch):
    monkeypatch.setattr(lab_module, "_device", lambda: "cpu")
    lab = Lab(tmp_path, preset("paper"), say=lambda _: None)
    cells = lab.cells(["base", "fewshot", "ia3"], lab.preset.tasks)
    assert len(cells.rows) == 18
    made = {str(path.parent.relative_to(tmp_path / "training")) for path in tmp_path.glob("training/*/*/*/training.json")}
    skills = ("math", "code", "reasoning")
    assert made == {*(f"svf/seed-0/{name}" for name in (*skills, "dispatch")), *(f"ia3/seed-0/{name}" for name in skills)}
    config = lab.training("svf", "math", 0).config()
    assert (config.model, config.task, config.kl, config.batch_size) == (lab.preset.model, "t2_gsm8k", (0.0, 0.1, 0.2, 0.3), 256)
    assert config.apply_chat_template


def test_a_real_training_is_done_once_and_leaves_its_curve(tmp_path):
    from t2eval.analysis.curves import points
    from tests.tiny import save_tiny

    lab = Lab(tmp_path / "out", preset(quick=True), say=lambda _: None)
    settings = {"task": "letters_generate", "include_path": str(TRAINING), "model": str(save_tiny(tmp_path / "base"))}
    sizes = {"steps": 2, "batch_size": 4, "validation_limit": 4, "validate_every": 1, "lr": 0.05}
    training = lab.training("svf", "math", 0, **settings, **sizes)
    assert not training.finished
    lab.train([training])
    stamp = (training.output / "training.json").stat().st_mtime_ns
    lab.train([training])
    assert (training.output / "training.json").stat().st_mtime_ns == stamp
    curve = points(training, skill="math")
    assert [row["step"] for row in curve] == [0, 1, 2]
    assert {row["n"] for row in curve} == {4}
    assert curve[0]["score"] == json.loads((training.output / "training.json").read_text())["scores"]["before"]["validation"]["score"]
    assert [row["step"] for row in curve if row["chosen"]] == [training.record["chosen_step"]]
