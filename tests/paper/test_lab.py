import json
from pathlib import Path

import pytest

from t2eval.bench.rows import read
from t2eval.errors import T2Error, UsageError
from t2eval.paper.item import items, of_preset
from t2eval.paper.lab import Lab
from t2eval.paper.presets import PRESETS, preset
from t2eval.strategies.search import SearchConfig
from tests.bench.fakes import FakeWorker

TRAINING = Path(__file__).parents[1] / "fixtures" / "training"


def test_presets_have_tasks_for_every_skill():
    for name in PRESETS:
        found = preset(name)
        assert set(found.seen) == set(found.unseen) == ({"reasoning"} if name == "smollm2" else {"math", "code", "reasoning"}), name
        assert set(found.tasks) == set(found.bench.tasks)
        assert set(found.labels) == set(found.tasks)
    assert preset("paper").describe().startswith("preset paper: base meta-llama/")
    assert preset("paper").search == {"preset": "paper"}
    assert preset(quick=True).describe().endswith("at most 30 test examples a task, trainings of 4 steps")


def test_the_real_model_at_a_cpus_size_names_what_it_does_not_carry():
    found, whole = preset("smollm2"), preset("smollm2-whole")
    assert (found.library, whole.library) == (("reasoning",), ("math", "code", "reasoning", "dispatch"))
    assert found.seeds == found.mixed_seeds == (0, 1, 2)
    assert set(found.left_out) | set(whole.left_out) <= set(items())
    assert set(whole.left_out) == {"table5", "table9", "figure5", "figure11"}
    pointed = {name for name, reason in found.left_out.items() if "smollm2-whole" in reason}
    assert pointed == set(found.left_out) - set(whole.left_out)  # never to a preset that does not carry it either
    assert [entry.name for entry in of_preset("smollm2") if entry not in of_preset("embedded")] == ["limits"]


def test_a_quick_search_is_shorter_than_the_default():
    assert preset(quick=True).search["iterations"] < SearchConfig().iterations


def test_presets_that_do_not_exist():
    with pytest.raises(UsageError, match="Unknown preset 'papre'. Did you mean 'paper'"):
        preset("papre")
    with pytest.raises(UsageError, match="--quick is a small form"):
        preset("paper", quick=True)


def test_a_folder_is_of_one_preset(tmp_path):
    Lab(tmp_path, preset(quick=True)).close()
    lab = Lab(tmp_path, preset(quick=True))
    with pytest.raises(T2Error, match="Another run of `t2 paper` is at work in"):
        Lab(tmp_path, preset(quick=True))
    lab.close()
    with pytest.raises(UsageError, match="Choose another --output"):
        Lab(tmp_path, preset())
    Lab(tmp_path, preset(quick=True)).close()
    assert not (tmp_path / ".lock").exists()


def test_a_piece_is_computed_once(tmp_path):
    made = []

    def compute():
        made.append(1)
        return {"b": (1, 2), "a": 0.5}

    lab = Lab(tmp_path, preset(), say=lambda _: None)
    key = {"model": "embedded", "sizes": {"shots": (3, 5)}}
    assert lab.once("study/one two", compute, key=key) == {"a": 0.5, "b": [1, 2]}
    lab.close()
    assert Lab(tmp_path, preset(), say=lambda _: None).once("study/one two", compute, key=key) == {"a": 0.5, "b": [1, 2]}
    assert made == [1]

    def broken():
        raise T2Error("no")

    with pytest.raises(T2Error):
        lab.once("other", broken, key=None)
    assert lab.once("other", lambda: 3, key=None) == 3


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"model": "m", "sizes": {"shots": [3, 6]}}, r"was made with sizes.shots = \[3, 5\], and this run has \[3, 6\]"),
        ({"model": "n", "sizes": {"shots": [3, 5]}}, 'was made with model = "m", and this run has "n"'),
        ({"model": "m", "sizes": {"shots": [3, 5]}, "draws": None}, "was made with draws = nothing, and this run has null"),
        ({"sizes": {"shots": [3, 5]}}, 'was made with model = "m", and this run has nothing'),
        ("m", 'was made with key = {.*}, and this run has "m"'),
    ],
)
def test_a_piece_of_other_settings_is_refused(tmp_path, key, message):
    lab = Lab(tmp_path, preset(), say=lambda _: None)
    lab.once("piece", lambda: 1, key={"model": "m", "sizes": {"shots": (3, 5)}})
    with pytest.raises(UsageError, match=f"{message}. Choose another --output, or delete .*pieces/piece.json"):
        lab.once("piece", lambda: 2, key=key)
    (tmp_path / "pieces" / "piece.json").unlink()
    assert lab.once("piece", lambda: 2, key=key) == 2


@pytest.mark.parametrize("kept", [[1], {"a": 1}])
def test_a_piece_that_does_not_say_its_settings_is_refused(tmp_path, kept):
    lab = Lab(tmp_path, preset(), say=lambda _: None)
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "piece.json").write_text(json.dumps(kept))
    with pytest.raises(UsageError, match="does not say what settings it was made with. Choose another --output, or delete"):
        lab.once("piece", lambda: 2, key=None)


def test_cells_are_shared_between_items_and_not_repeated(tmp_path):
    """With real worker processes, on workers that need no model."""
    said = []
    lab = Lab(tmp_path, preset(quick=True), say=said.append, factory=FakeWorker)
    first = lab.cells(["base", "prompt"], ["t1", "t2"])
    assert [row.n for row in first.rows] == [30] * 4
    second = lab.cells(["base", "cls"], ["t2", "t3"])
    calls = (tmp_path / "cells" / "main" / "calls.txt").read_text().split()
    assert len(calls) == len(set(calls)) == 7
    assert [row.method for row in second.of("cls", "t3")] == ["cls"]
    summary = second.summary("base", "t2")
    values = list(second.examples("base", "t2").values())
    assert summary["score"] == pytest.approx(sum(values) / len(values))
    assert sum("seed 0:" in line for line in said) == 7
    said.clear()
    lab.cells(["base", "cls"], ["t2", "t3"])
    assert said == []


def test_a_failed_cell_is_an_error_and_the_rest_is_kept(tmp_path):
    trouble = tmp_path / "trouble"
    trouble.write_text("fail")
    lab = Lab(tmp_path / "out", preset(quick=True), say=lambda _: None, factory=FakeWorker)
    with pytest.raises(T2Error, match="1 cells of .* failed, the first embedded__cls__t2__seed0: KeyError: broken"):
        lab.cells(["cls"], ["t1", "t2"], model_args={"base": {"trouble": str(trouble)}})
    assert sum(row.status == "ok" for row in read(tmp_path / "out" / "cells" / "main")) == 1


def test_studies_share_processes_that_end_with_the_lab(tmp_path):
    with Lab(tmp_path, preset(quick=True), workers=2, say=lambda _: None, factory=FakeWorker) as lab:
        lab.cells(["base", "prompt"], ["t1", "t2"])
        pids = lab.pool.pids
        lab.cells(["base", "cls"], ["t3"], study="other", model_args={"base": {"delay": 0.01}})
        assert lab.pool.pids == pids and len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_large_base_is_not_kept_in_memory(tmp_path):
    with Lab(tmp_path, preset("paper"), say=lambda _: None, factory=FakeWorker) as lab:
        lab.cells(["base"], ["t1"])
        assert lab.pool.pids == ()


def test_another_setting_needs_another_study(tmp_path, lab):
    lab.cells(["base"], lab.preset.tasks)
    with pytest.raises(UsageError, match="Unknown key"):
        lab.cells(["base"], lab.preset.tasks, study="x", tempo=3)


def test_a_training_follows_the_recipe_and_the_preset(lab):
    training = lab.training("swept", "code", 1, method="lora", objective="supervised", lr=5e-4)
    config = training.config
    assert (config.task, config.seed, config.method, config.lr, config.steps) == ("embedded_code_seen", 1, "lora", 5e-4, 60)
    assert (config.resume, config.test, config.label, config.model) == (True, False, "code", None)
    assert config.output == lab.folder("swept", 1) / "code"
    assert str(config.output).replace("seed-1", "seed-{seed}") == str(lab.folder("swept") / "code")
    dispatch = lab.training("svf", "dispatch", 0).config
    assert (dispatch.task, dispatch.method, dispatch.steps) == ("embedded_dispatch", "svf", 50)
    policy = lab.training("x", "math", 0, method="lora", objective="reinforce").config
    assert (policy.objective, policy.kl, policy.task) == ("reinforce", 0.1, "embedded_math_seen")


def test_a_quick_training_is_short(tmp_path):
    config = Lab(tmp_path, preset(quick=True), say=lambda _: None).training("svf", "math", 0).config
    assert (config.steps, config.validation_limit) == (4, 32)


def test_the_paper_preset_trains_what_its_cells_need(tmp_path, fakes):
    lab = Lab(tmp_path, preset("paper"), say=lambda _: None)
    lab.cells(["base"], lab.preset.tasks)
    first = json.loads((tmp_path / "cells" / "main" / "config.json").read_text())
    cells = lab.cells(["base", "fewshot", "ia3"], lab.preset.tasks)
    assert len(cells.rows) == 18
    grown = json.loads((tmp_path / "cells" / "main" / "config.json").read_text())
    assert {key for key in grown if grown[key] != first[key]} == {"methods"}, "the manifest would refuse to go on"
    assert grown["model_args"] == {"fewshot": {"preset": "paper"}}
    made = {str(path.parent.relative_to(tmp_path / "training")) for path in tmp_path.glob("training/*/*/*/training.json")}
    skills = ("math", "code", "reasoning")
    assert made == {*(f"svf/seed-0/{name}" for name in (*skills, "dispatch")), *(f"ia3/seed-0/{name}" for name in skills)}
    assert grown["dtype"] == "bfloat16" and grown["apply_chat_template"] and grown["train"] is None
    config = lab.training("svf", "math", 0).config
    assert (config.model, config.task, config.kl, config.batch_size) == (lab.preset.model, "t2_gsm8k", (0.0, 0.1, 0.2, 0.3), 256)
    assert (config.apply_chat_template, config.dtype, config.device) == (True, "bfloat16", "cuda")
    lora = lab.training("ablation-5", "math", 0, method="lora", objective="reinforce", lr=5e-2).config
    assert (lora.objective, lora.lr, lora.task) == ("reinforce", 5e-2, "t2_gsm8k")
    large = Lab(tmp_path / "large", preset("paper-llama3-70b"), say=lambda _: None)
    assert large.training("svf", "code", 0).config.layers == "half"


def test_a_real_training_is_done_once_and_leaves_its_curve(tmp_path):
    from t2eval.paper.curves import points
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
    for other in ({"lr": 0.5}, {"steps": 3}):
        ((name, now),) = other.items()
        changed = lab.training("svf", "math", 0, **{**settings, **sizes, **other})
        with pytest.raises(UsageError, match=rf"was trained with {name} = {sizes[name]}, and this run now says {now}\. .* or remove"):
            lab.train([training, changed])
    curve = points(training, skill="math")
    assert [row["step"] for row in curve] == [0, 1, 2]
    assert {row["n"] for row in curve} == {4}
    assert curve[0]["score"] == json.loads((training.output / "training.json").read_text())["scores"]["before"]["validation"]["score"]
    assert [row["step"] for row in curve if row["chosen"]] == [training.record["chosen_step"]]
