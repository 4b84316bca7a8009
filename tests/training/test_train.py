"""One training run: what it changes, what it saves, how it resumes, and how it fails."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file

from t2eval.basemodel.load import load_base
from t2eval.environment.environment import Environment
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.svf.attachment import attach
from t2eval.training import checkpoints as checkpoints_module
from t2eval.training import loop as loop_module
from t2eval.training.checkpoints import last_checkpoint
from t2eval.training.config import TrainConfig
from t2eval.training.loop import Loop
from t2eval.training.methods import make_trainable
from t2eval.training.reinforce import Reinforce
from t2eval.training.supervised import Supervised
from t2eval.training.train import apart_from_test, train_expert
from tests.tiny import save_tiny_gguf, tiny_model, tiny_tokenizer
from tests.training.conftest import constant_score, one_step

COMBINATIONS = list(itertools.product(["svf", "lora", "ia3", "dora"], ["reinforce", "supervised"], ["all", "mlp", "attention"]))


@pytest.mark.parametrize(("method", "objective", "modules"), COMBINATIONS)
def test_every_combination_takes_a_step_and_changes_only_its_own(
    method: str, objective: str, modules: str, letters: Callable[[str], Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2EVAL_CACHE", str(tmp_path))
    environment, tokenizer = letters("letters_generate"), tiny_tokenizer()
    config = one_step(method=method, objective=objective, modules=modules, baseline="batch_mean", kl=0.1)
    trainable = make_trainable(tiny_model(), config)
    chosen = Reinforce if objective == "reinforce" else Supervised
    # rewards that differ within the batch, whatever the random model says
    monkeypatch.setattr(environment, "score_many", lambda pairs: [float(place % 2) for place in range(len(pairs))])
    before = {name: parameter.detach().clone() for name, parameter in trainable.model.named_parameters()}
    own = {name for name, parameter in trainable.model.named_parameters() if parameter.requires_grad}
    assert own and all(not parameter.requires_grad for name, parameter in trainable.model.named_parameters() if name not in own)
    places = [name.replace("~", ".") for name in own] if method != "svf" else list(trainable.parameters())
    assert all(("mlp" in name) != ("self_attn" in name) for name in places)
    assert {"mlp" in name for name in places} == {"all": {True, False}, "mlp": {True}, "attention": {False}}[modules]

    run = Loop(trainable, chosen(environment, tokenizer, config), environment.examples("train"), constant_score, config, tmp_path, print)
    run.run(resume=False)
    after = dict(trainable.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name].detach())}
    assert changed and changed <= own
    assert run.progress.step == 1 and last_checkpoint(tmp_path / "checkpoints") is not None


def test_a_run_leaves_an_expert_whose_score_lm_eval_reproduces(settings: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = []
    result = train_expert(TrainConfig(**settings, name="copier"), progress=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all({"reward", "kl", "loss", "lr", "seconds_left"} <= set(row) for row in rows) and "validation" in rows[1]
    output = settings["output"]
    assert (output / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]

    expert = Expert.load(output)
    assert (expert.name, expert.label, expert.description) == ("copier", "letters", "Copies a letter.")
    training = expert.card.training
    assert training is not None and training.scores["after"]["test"] == result.scores["after"]["test"]
    assert training.task == "letters_generate" and training.steps == 4 and training.hyperparameters["kl"] == 0.1
    assert result.comparison is not None and 0 <= result.comparison["p_value"] <= 1 and result.comparison["n"] == 6

    model, tokenizer = load_base(str(settings["model"]))
    adapted = attach(model)
    adapted.set_expert(expert)
    with adapted.merged(expert.z):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64)
        environment = Environment("letters_generate", include_path=settings["include_path"])
        again: Any = simple_evaluate(lm, tasks=[environment.task], task_manager=environment.manager, limit=6)
    assert again["results"]["letters_generate"]["exact_match,first-letter"] == result.scores["after"]["test"].score
    outcomes = json.loads((output / "test_outcomes.json").read_text())
    assert sum(row["after"] for row in outcomes) / 6 == pytest.approx(result.scores["after"]["test"].score)
    assert train_expert(TrainConfig(**settings, name="copier", resume=True)).record == result.record  # nothing left to do


def test_a_gguf_file_is_trained_on_with_the_base_weights_on_the_host(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    short = {**settings, "steps": 1, "test": False, "device": "cpu"}
    plain = train_expert(TrainConfig(**short), progress=False)
    folder = save_tiny_gguf(tmp_path / "packed")
    changes = {"model": str(folder), "gguf_file": "tiny.gguf", "keep_base": "host", "output": tmp_path / "other"}
    packed = train_expert(TrainConfig(**{**short, **changes}), progress=False)
    assert packed.scores["before"] == plain.scores["before"] and packed.trainable_parameters == plain.trainable_parameters
    assert packed.record.hyperparameters["gguf_file"] == "tiny.gguf"
    adapted = make_trainable(tiny_model(), TrainConfig(**{**short, "keep_base": "host"})).adapted  # type: ignore[attr-defined]
    assert adapted.keep_base == "host"


def test_a_baseline_leaves_a_peft_adapter_and_the_same_record(settings: dict[str, Any], improving: None) -> None:
    from peft import PeftModel

    result = train_expert(TrainConfig(**settings, method="lora", objective="supervised", test=False), progress=False)
    record = json.loads((settings["output"] / "training.json").read_text())
    assert (record["method"], record["objective"], record["comparison"]) == ("lora", "supervised", None)
    model, _ = load_base(str(settings["model"]))
    loaded = PeftModel.from_pretrained(model, settings["output"])
    own = {name: tensor for name, tensor in loaded.named_parameters() if "lora_" in name}
    assert sum(tensor.numel() for tensor in own.values()) == result.trainable_parameters
    assert {name.rsplit(".", 3)[0].rsplit(".", 1)[-1] for name in own} == {"q_proj", "v_proj"}
    assert any(tensor.abs().sum() > 0 for name, tensor in own.items() if "lora_B" in name)
    card = (settings["output"] / "README.md").read_text()
    assert "A lora adapter of" in card and "| validation | after |" in card and str(settings["output"]) not in card


def test_validation_chooses_the_first_best_checkpoint(
    settings: dict[str, Any], letters: Callable[[str], Environment], tmp_path: Path
) -> None:
    config = TrainConfig(**{**settings, "steps": 5, "validate_every": 1})
    environment = letters("letters_generate")
    trainable = make_trainable(tiny_model(), config)
    values, states = iter([0.1, 0.2, 0.6, 0.6, 0.1, 0.5]), []

    def validated() -> Any:
        states.append(trainable.state())
        return constant_score().model_copy(update={"score": next(values)})

    objective = Supervised(environment, tiny_tokenizer(), config)
    reached = Loop(trainable, objective, environment.examples("train"), validated, config, tmp_path, print).run(resume=False)
    assert (reached.best_step, reached.best_score) == (2, 0.6)
    assert all(torch.equal(reached.best[name], states[2][name]) for name in reached.best)


def test_a_sweep_keeps_the_best_run(settings: dict[str, Any]) -> None:
    result = train_expert(TrainConfig(**{**settings, "kl": [0.0, 0.5], "steps": 2}, test=False), progress=False)
    sweep = result.record.sweep
    assert sweep is not None
    assert [entry["kl"] for entry in sweep] == [0.0, 0.5]
    best = max(sweep, key=lambda entry: entry["validation"])
    assert result.record.hyperparameters["kl"] == best["kl"]
    assert result.scores["after"]["validation"].score == best["validation"]
    kept = [
        load_file(settings["output"] / "sweep" / str(number) / "checkpoints" / "checkpoint-2" / "trainable.safetensors")
        for number in (0, 1)
    ]
    assert not all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0]), "the two runs are different runs"


# ---------------------------------------------------------------------- resuming
def test_a_killed_run_resumes_to_the_same_expert_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "steps": 6, "test": False}
    undisturbed = train_expert(TrainConfig(**{**settings, "output": tmp_path / "undisturbed"}), progress=False)
    step = random.Random(os.getpid()).randint(1, 6)
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings, default=str))
    root = Path(__file__).parents[2]
    script = [sys.executable, "-m", "tests.training.killed_run", str(file), str(step)]
    killed = subprocess.run(script, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (settings["output"] / "expert.json").exists()
    (settings["output"] / "checkpoints" / ".unfinished" / "checkpoint-9").mkdir(parents=True)  # killed in the midst of saving one
    resumed = train_expert(TrainConfig(**settings, resume=True), progress=False)
    one, two = (load_file(path / "expert.safetensors") for path in (undisturbed.path, resumed.path))
    assert one and all(torch.equal(one[name], two[name]) for name in one), f"killed at step {step}"
    last = [load_file(path / "checkpoints" / "checkpoint-6" / "trainable.safetensors") for path in (undisturbed.path, resumed.path)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0]), f"killed at step {step}"
    assert resumed.scores == undisturbed.scores
    assert [json.loads(line)["step"] for line in (resumed.path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_saves_the_step_and_dropout_resumes_exactly(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "method": "lora", "objective": "supervised", "lora_dropout": 0.5, "test": False, "save_every": 100}
    undisturbed = train_expert(TrainConfig(**{**settings, "output": tmp_path / "undisturbed"}), progress=False)

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="Stopped after step [23], which is saved"):
        train_expert(TrainConfig(**settings), progress=interrupt)
    assert last_checkpoint(settings["output"] / "checkpoints") is not None
    resumed = train_expert(TrainConfig(**settings, resume=True), progress=False)
    one, two = (load_file(path / "adapter_model.safetensors") for path in (undisturbed.path, resumed.path))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_time_budget_ends_the_run_and_the_schedule(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: float(next(clock)))
    rows: list[dict[str, Any]] = []
    settings.pop("steps")
    train_expert(TrainConfig(**settings, max_seconds=60, objective="supervised", test=False), progress=rows.append)
    assert 1 < len(rows) < 60 and rows[-1]["seconds_left"] == 0.0 and rows[-1]["seconds"] >= 60
    rates = [row["lr"] for row in rows]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.1 * rates[0]
    assert "validation" in rows[-1]


# ---------------------------------------------------------------------- failing
def test_a_full_disk_is_told_and_leaves_earlier_checkpoints(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoints_module.save_file

    def full(tensors: Any, path: Path) -> None:
        if "checkpoint-4" in str(path):  # or the folder that will be it
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints_module, "save_file", full)
    with pytest.raises(T2Error, match=r"Could not write the checkpoint of step 4 .*No space left on device.*run again with resume"):
        train_expert(TrainConfig(**settings), progress=False)
    checkpoints = settings["output"] / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2"]
    monkeypatch.setattr(checkpoints_module, "save_file", real)
    assert train_expert(TrainConfig(**settings, resume=True, test=False), progress=False).steps == 4


def test_an_output_in_use_is_refused_and_other_settings_too(settings: dict[str, Any]) -> None:
    output = settings["output"]
    output.mkdir()
    (output / "mine.txt").write_text("kept")
    (output / "expert.json").write_text("{}")
    with pytest.raises(UsageError, match=r"already holds a training run \(expert.json\)"):
        train_expert(TrainConfig(**settings), progress=False)
    (output / "settings.json").write_text(json.dumps({**TrainConfig(**settings).hyperparameters, "lr": 1.0}))
    with pytest.raises(UsageError, match="begun with lr = 1.0, and this run has 0.05"):
        train_expert(TrainConfig(**settings, resume=True), progress=False)
    train_expert(TrainConfig(**{**settings, "steps": 1}, overwrite=True, test=False), progress=False)
    assert (output / "mine.txt").read_text() == "kept" and Expert.load(output).z
    shutil.rmtree(output)


def test_a_run_that_failed_before_its_first_step_holds_nothing(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are no training: the next command begins, with or without resume, with other settings too."""

    def bad(*_: Any) -> Any:
        raise ValueError("a document without an answer")

    for later in ({}, {"resume": True}, {"lr": 0.01}, {"lr": 0.02, "resume": True}):
        with monkeypatch.context() as patched, pytest.raises(ValueError, match="without an answer"):
            patched.setattr("t2eval.training.scores.Validator.outcomes", bad)
            train_expert(TrainConfig(**settings), progress=False)
        assert sorted(path.name for path in settings["output"].iterdir()) == ["inputs.json", "settings.json"]
        config = TrainConfig(**{**settings, "steps": 1, "test": False, **later})
        assert train_expert(config, progress=False).record.hyperparameters["lr"] == config.lr
        with pytest.raises(UsageError, match=r"already holds a training run \(training.json\)"):
            train_expert(TrainConfig(**settings), progress=False)
        shutil.rmtree(settings["output"])


def test_a_task_without_a_training_split_is_told(settings: dict[str, Any]) -> None:
    with pytest.raises(T2Error, match="no training split"):
        train_expert(TrainConfig(**{**settings, "task": "letters_untrained"}), progress=False)
    assert not settings["output"].exists(), "a mistake leaves nothing that the next attempt would stumble over"


def test_a_diverged_loss_is_told(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervised, "learn", lambda *_: {"loss": float("nan")})
    with pytest.raises(T2Error, match="loss of step 1 is nan: training diverged. Lower lr"):
        train_expert(TrainConfig(**settings, objective="supervised"), progress=False)


def test_rows_that_are_test_rows_too_are_not_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    def example(split: str, text: str, choices: tuple[str, ...] = ("a", "b")) -> Any:
        return SimpleNamespace(split=split, doc={"text": text}, choices=choices)

    task = SimpleNamespace(doc_to_text=lambda doc: doc["text"])
    tested = [example("test", "How far?"), example("test", "How near?")]
    environment: Any = SimpleNamespace(name="t", task=task, t2={}, images=False, has_test=True, examples=lambda split: tested)
    train = [example("train", "How far?"), example("train", "How far?", ("c", "d")), example("train", "How tall?")]
    assert apart_from_test(environment, [train, train[1:]], True) == [train[1:], train[1:]]
    assert "Left out: 1 of 3 examples of split 'train' of 't', which are test rows too." in "".join(capsys.readouterr())
    for name, value in (("has_test", False), ("images", True), ("t2", {"label": "dispatch"})):
        other: Any = SimpleNamespace(**{**vars(environment), name: value})
        assert apart_from_test(other, [train], True) == [train], name
