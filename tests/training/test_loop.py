"""The loop: what it does at the edges: nothing to learn, no time, damaged checkpoints, memory, and what it tells of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from t2eval.cli.train import train_expert as train_command
from t2eval.environment.environment import Environment
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.store.lock import locked
from t2eval.training import loop as loop_module
from t2eval.training.checkpoints import found
from t2eval.training.config import TrainConfig
from t2eval.training.loop import Loop
from t2eval.training.methods import make_trainable
from t2eval.training.reinforce import Reinforce
from t2eval.training.supervised import Supervised
from t2eval.training.train import train_expert
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.conftest import constant_score


def _alike(monkeypatch: pytest.MonkeyPatch, outcome: float) -> None:
    monkeypatch.setattr(Environment, "score_many", lambda _self, pairs: [outcome] * len(pairs))


# ---------------------------------------------------------------------- nothing to learn
@pytest.mark.parametrize(("outcome", "words"), [(0.0, "every answer was wrong"), (1.0, "every answer was right")])
def test_equal_rewards_are_told_early_and_at_the_end(
    outcome: float, words: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _alike(monkeypatch, outcome)
    result = train_expert(TrainConfig(**{**settings, "steps": 5}, test=False), progress=True)
    assert result.chosen_step == 0, "a checkpoint that only ties with the base is not better than it"
    early, late = result.record.remarks
    assert early.startswith(f"Nothing to learn so far: {words} in the first 3 steps") and "metric" in early
    assert late == f"Nothing was learnt: {words} in the whole run, up to step 5."
    shown = capsys.readouterr().err
    assert shown.index(early) < shown.index(late)
    z = Expert.load(settings["output"]).z
    assert all(torch.equal(scale, torch.ones_like(scale)) for scale in z.values())


@pytest.mark.parametrize("best", [0.5, 0.4])
def test_what_is_no_better_than_the_base_is_not_kept(
    best: float, settings: dict[str, Any], letters: Callable[[str], Environment], tmp_path: Path
) -> None:
    config = TrainConfig(**{**settings, "validate_every": 1})
    trainable, values, remarks = make_trainable(tiny_model(), config), iter([0.5, best, 0.1, best, 0.2]), []
    base = trainable.state()

    def validated() -> Any:
        return constant_score().model_copy(update={"score": next(values)})

    objective = Supervised(letters("letters_generate"), tiny_tokenizer(), config)
    examples = letters("letters_generate").examples("train")
    reached = Loop(trainable, objective, examples, validated, config, tmp_path, print, remarks.append).run(resume=False)
    assert (reached.best_step, reached.best_score) == (0, 0.5)
    assert all(torch.equal(reached.best[name], base[name]) for name in base)
    assert remarks == ["No checkpoint was better in validation than the base model (0.500): what is saved answers as the base model does."]


def test_the_base_model_s_validation_takes_no_time_of_the_run(
    settings: dict[str, Any], letters: Callable[[str], Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: now[0])
    settings.pop("steps")
    config = TrainConfig(**{**settings, "max_seconds": 10, "validate_every": 1})

    def validated() -> Any:
        now[0] += 100.0
        return constant_score()

    environment = letters("letters_generate")
    objective = Supervised(environment, tiny_tokenizer(), config)
    trainable = make_trainable(tiny_model(), config)
    reached = Loop(trainable, objective, environment.examples("train"), validated, config, tmp_path, print).run(resume=False)
    assert reached.step == 1 and reached.elapsed == 100.0, "one step, and the validation behind it"


def test_a_run_without_a_step_says_so_and_keeps_the_base(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: float(next(clock)))
    settings.pop("steps")
    result = train_expert(TrainConfig(**{**settings, "max_seconds": 0.5}, test=False), progress=False)
    assert (result.steps, result.chosen_step) == (0, 0)
    assert result.scores["after"] == result.scores["before"]
    assert "No step was taken: max_seconds (0.5) had passed" in result.record.remarks[0]


# ---------------------------------------------------------------------- metrics that are no numbers
def test_a_document_without_a_number_is_named_and_stops_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scored = itertools.count()

    def score_many(_self: Any, pairs: Any) -> list[float]:
        rest = 0.0 if next(scored) == 0 else 1.0  # the first validation is the base model's
        return [float("nan"), *[rest] * (len(pairs) - 1)]

    monkeypatch.setattr(Environment, "score_many", score_many)
    result = train_expert(TrainConfig(**{**settings, "steps": 2}, test=False), progress=False)
    assert result.chosen_step == 2 and result.scores["after"]["validation"].score == 0.75
    named = [text for text in result.record.remarks if "exact_match" in text]
    assert len(named) == 1 and "of split 'validation' of task 'letters_generate' is nan: it counts as 0" in named[0]
    assert any("of split 'train' of task 'letters_generate'" in text for text in caplog.messages), "a reward too"
    json.loads((settings["output"] / "training.json").read_text(), parse_constant=_no_json)
    for line in (settings["output"] / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=_no_json)


def _no_json(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


# ---------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("damage", ["cut", "missing", "other", "progress"])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_is_used(damage: str, settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "test": False}
    undisturbed = train_expert(TrainConfig(**{**settings, "output": tmp_path / "undisturbed"}), progress=False)
    train_expert(TrainConfig(**settings), progress=False)
    output = settings["output"]
    for name in ("training.json", "expert.json"):
        (output / name).unlink()  # as if it had been killed at the end
    last = output / "checkpoints" / "checkpoint-4"
    if damage == "cut":
        (last / "optimizer.safetensors").write_bytes((last / "optimizer.safetensors").read_bytes()[:100])
    elif damage == "missing":
        (last / "trainable.safetensors").unlink()
    elif damage == "other":
        (last / "best.safetensors").write_bytes((output / "checkpoints" / "checkpoint-2" / "trainable.safetensors").read_bytes() + b" ")
    else:
        (last / "progress.json").write_text('{"step": 4,')
    resumed = train_expert(TrainConfig(**settings, resume=True), progress=False)
    named = {"cut": "optimizer", "missing": "trainable", "other": "best", "progress": "progress"}[damage]
    assert "Damaged checkpoint" in resumed.record.remarks[0] and named in resumed.record.remarks[0]
    assert "checkpoint-4" in resumed.record.remarks[0] and "Going on from step 2" in resumed.record.remarks[0]
    assert resumed.scores == undisturbed.scores
    assert [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    for path in found(output / "checkpoints"):
        for name in ("trainable.safetensors", "optimizer.safetensors"):
            assert (path / name).read_bytes() == (tmp_path / "undisturbed" / "checkpoints" / path.name / name).read_bytes()


def test_where_every_checkpoint_is_damaged_the_run_is_not_begun_anew(settings: dict[str, Any]) -> None:
    train_expert(TrainConfig(**settings, test=False), progress=False)
    (settings["output"] / "training.json").unlink()
    for path in found(settings["output"] / "checkpoints"):
        (path / "optimizer.safetensors").unlink()
    with pytest.raises(T2Error, match="No checkpoint of this run is whole.*checkpoint-4.*optimizer.safetensors is missing"):
        train_expert(TrainConfig(**settings, resume=True), progress=False)


# ---------------------------------------------------------------------- the output folder
def test_two_trainings_into_one_folder_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2eval.training.train.load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    settings["output"].mkdir()
    with locked(settings["output"], "training run"), pytest.raises(T2Error, match=str(settings["output"])):
        train_expert(TrainConfig(**settings), progress=False)


def test_resuming_nothing_is_refused(settings: dict[str, Any]) -> None:
    output = str(settings["output"])
    refused = CliRunner().invoke(train_command, ["--task", "letters_generate", "--output", output, "--resume"])
    assert isinstance(refused.exception, UsageError)
    assert "There is no training run to resume in" in str(refused.exception) and "Leave --resume out" in str(refused.exception)
    assert not settings["output"].exists()
    settings = {**settings, "steps": 1, "test": False, "resume": True}  # the library may be asked to begin or go on
    assert train_expert(TrainConfig(**settings), progress=False).record == train_expert(TrainConfig(**settings), progress=False).record


def test_an_output_that_is_a_file_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below"):
        with pytest.raises(UsageError, match="cannot be a directory: .*file is a file"):
            train_expert(TrainConfig(**{**settings, "output": output}), progress=False)


def test_a_name_that_cannot_be_a_file_is_refused_before_the_training(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2eval.training.train.load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(T2Error, match="a/b"):
        train_expert(TrainConfig(**settings, name="a/b"), progress=False)


def test_a_resumed_run_whose_task_or_base_is_another_one_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    from shutil import copytree

    tasks = tmp_path / "tasks"
    copytree(settings["include_path"], tasks)
    settings = {**settings, "include_path": tasks, "test": False}
    train_expert(TrainConfig(**settings), progress=False)
    (settings["output"] / "training.json").unlink()
    file = tasks / "letters_generate.yaml"
    file.write_text(file.read_text().replace("max_gen_toks: 3", "max_gen_toks: 2"))
    from t2eval.environment.loading import _task_manager

    _task_manager.cache_clear()
    with pytest.raises(UsageError, match="task"):
        train_expert(TrainConfig(**settings, resume=True), progress=False)
    noted = settings["output"] / "inputs.json"
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "version of torch": "1.0"}))
    file.write_text(file.read_text().replace("max_gen_toks: 2", "max_gen_toks: 3"))
    _task_manager.cache_clear()
    with pytest.raises(UsageError, match="version of torch"):
        train_expert(TrainConfig(**settings, resume=True), progress=False)


# ---------------------------------------------------------------------- what a person sees
def test_the_first_line_says_what_will_happen(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    train_expert(TrainConfig(**settings, test=False), progress=True)
    lines = capsys.readouterr().err.splitlines()
    first = next(line for line in lines if line.startswith("svf on "))
    for part in ("LlamaForCausalLM", "CPU", "float32", "letters_generate", "examples of train", "4 of validation", "4 steps of 8 answers"):
        assert part in first
    assert not any("━" in line for line in lines), "no bar where nobody sees it"


def test_an_expert_that_dispatch_could_not_tell_from_others_is_mentioned(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**settings, "task": "letters_choice", "steps": 1, "test": False}
    train_expert(TrainConfig(**settings), progress=True)
    said = capsys.readouterr().err
    assert "no label and description in metadata.t2" in said and "--label" in said and "--description" in said
    expert = Expert.load(settings["output"])
    assert (expert.label, expert.description) == ("letters_choice", "Questions like those of letters_choice.")
    train_expert(TrainConfig(**settings, overwrite=True, label="letters", description="Letters."), progress=True)
    assert "metadata.t2" not in capsys.readouterr().err and Expert.load(settings["output"]).label == "letters"


# ---------------------------------------------------------------------- memory
@pytest.mark.parametrize("method", ["svf", "lora"])
def test_checkpointed_activations_give_the_same_gradient(
    method: str, settings: dict[str, Any], letters: Callable[[str], Environment]
) -> None:
    environment, gradients = letters("letters_generate"), []
    for again in (False, True):
        config = TrainConfig(**{**settings, "method": method, "objective": "supervised", "checkpoint_activations": again})
        trainable = make_trainable(tiny_model(), config)
        if again:
            trainable.checkpoint_activations()
        torch.manual_seed(0)
        objective = Supervised(environment, tiny_tokenizer(), config)
        objective.step(trainable, environment.examples("train", limit=4), 0, lambda loss: loss.backward())
        gradients.append({name: parameter.grad for name, parameter in trainable.parameters().items()})
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_a_step_does_not_depend_on_how_many_answers_fit(settings: dict[str, Any], letters: Callable[[str], Environment]) -> None:
    environment, gradients = letters("letters_generate"), []
    for most in ("auto", 3):
        config = TrainConfig(**{**settings, "micro_batch": most})
        trainable = make_trainable(tiny_model(), config)
        objective = Reinforce(environment, tiny_tokenizer(), config)
        objective.step(trainable, environment.examples("train", limit=8), 7, lambda loss: loss.backward())
        gradients.append([parameter.grad for parameter in trainable.parameters().values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
