"""Sweeps: who goes on by halving, what the runs share, and that a stopped or damaged sweep ends as an undisturbed one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2eval.environment.environment import Environment
from t2eval.errors import UsageError
from t2eval.training import loop as loop_module
from t2eval.training.checkpoints import found
from t2eval.training.config import TrainConfig
from t2eval.training.halving import Rung, rungs, survivors, total_steps, total_validations
from t2eval.training.reinforce import Reinforce
from t2eval.training.scores import Validator
from t2eval.training.train import train_expert

RATES = [0.02, 0.05, 0.1, 0.2]


def _config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"task": "letters_generate", "output": "unused", "sweep": "halving", "steps": 8, "validate_every": 1, **changes})


# ---------------------------------------------------------------------- the rule
def test_the_rule_by_hand() -> None:
    paper = _config(steps=200, validate_every=10, lr=[1, 2, 3, 4, 5, 6], clip=[1e-3, 1], kl=0.0)
    assert rungs(paper) == (Rung(20, 12), Rung(50, 6), Rung(100, 3), Rung(200, 2))
    assert total_steps(paper) == 12 * 20 + 6 * 30 + 3 * 50 + 2 * 100
    assert total_validations(paper) == 1 + 12 * 2 + 6 * 3 + 3 * 5 + 2 * 10
    full = paper.model_copy(update={"sweep": "full"})
    assert (rungs(full), total_steps(full), total_validations(full)) == ((Rung(200, 12),), 2400, 1 + 12 * 20)
    assert rungs(_config(steps=25, validate_every=10, lr=RATES)) == (Rung(10, 4), Rung(25, 2))  # a validation at the end too
    assert total_validations(_config(steps=25, validate_every=10, lr=RATES)) == 1 + 4 + 2 + 2
    assert rungs(_config(steps=5, validate_every=10, lr=RATES)) == (Rung(5, 4),)
    assert rungs(_config(steps=200, lr=0.1)) == (Rung(200, 1),)


def test_survivors_by_their_best_their_latest_their_place_and_nothing_later() -> None:
    def run(*scores: float) -> list[Mapping[str, Any]]:
        return [{"step": step, "score": score} for step, score in enumerate(scores)]

    assert survivors({0: run(0.1, 0.2), 1: run(0.1, 0.4), 2: run(0.1, 0.3)}, Rung(1, 3), 2) == [1, 2]
    assert survivors({0: run(0.5, 0.1), 1: run(0.5, 0.3)}, Rung(1, 2), 1) == [1]
    assert survivors({3: run(0.5, 0.3), 5: run(0.5, 0.3)}, Rung(1, 2), 1) == [3]
    assert survivors({0: run(0.1, 0.2, 0.9), 1: run(0.1, 0.3)}, Rung(1, 2), 1) == [1]  # the 0.9 came after the stop


def test_halving_by_seconds_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"sweep: halving goes by steps, so give steps in place of max_seconds"):
        _config(lr=RATES, max_seconds=5)


# ---------------------------------------------------------------------- the runs
@pytest.fixture
def swept(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Four rates, eight steps; what is trained is told apart by a validation that depends on the weights alone."""

    def outcomes(self: Validator, examples: Any) -> list[float]:
        total = sum(float(tensor.double().abs().sum()) for tensor in self._trainable.state().values())
        return [total * 1000 % 1] * len(examples)

    monkeypatch.setattr(Validator, "outcomes", outcomes)
    monkeypatch.setattr(Environment, "score_many", lambda _self, pairs: [float(len(answer) % 2) for _, answer in pairs])
    changes = {"lr": RATES, "steps": 8, "validate_every": 1, "save_every": 1, "test": False, "kl": 0.0}
    return {**settings, **changes, "method": "lora", "lora_dropout": 0.5, "sweep": "halving"}


def _states(folder: Path) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """The last checkpoint of each run, by its place and step."""
    last = {int(path.name): found(path / "checkpoints")[-1] for path in folder.glob("sweep/*")}
    return {(place, int(path.name.rpartition("-")[2])): load_file(path / "trainable.safetensors") for place, path in last.items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("objective", ["reinforce", "supervised"])
def test_survivors_are_runs_of_the_full_sweep_and_those_are_runs_alone(objective: str, swept: dict[str, Any], tmp_path: Path) -> None:
    swept = {**swept, "objective": objective}
    halved = train_expert(TrainConfig(**{**swept, "output": tmp_path / "halved"}), progress=False)
    full = train_expert(TrainConfig(**{**swept, "output": tmp_path / "full", "sweep": "full"}), progress=False)
    few, all_of = _states(halved.path), _states(full.path)
    assert sorted(step for _, step in few) == [1, 1, 2, 8] and {step for _, step in all_of} == {8}
    (winner,) = (place for place, step in few if step == 8)
    assert _same(few[winner, 8], all_of[winner, 8])
    assert not any(_same(all_of[0, 8], all_of[place, 8]) for place in (1, 2, 3)), "the runs are different runs"
    assert halved.record.sweep is not None and [entry["lr"] for entry in halved.record.sweep] == RATES
    assert [entry["steps"] for entry in halved.record.sweep] == [dict(few.keys())[place] for place in range(4)]
    assert halved.record.hyperparameters["lr"] == RATES[winner] and halved.steps == 8
    assert all(entry["steps"] == 8 for entry in full.record.sweep or [])

    # A run alone shares nothing with others, and ends the same.
    alone = train_expert(TrainConfig(**{**swept, "output": tmp_path / "alone", "lr": RATES[2]}), progress=False)
    assert _same(load_file(found(alone.path / "checkpoints")[-1] / "trainable.safetensors"), all_of[2, 8])


def test_halving_picks_the_full_sweep_s_point_where_learning_curves_do_not_cross(
    swept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is how far the adapter has come from nought, so a larger rate is ahead at every validation; the embedded base's own
    curves are compared by `benchmarks/halving.py`."""

    def outcomes(self: Validator, examples: Any) -> list[float]:
        moved = [float(tensor.abs().mean()) for name, tensor in self._trainable.state().items() if "lora_B" in name]
        return [min(1.0, sum(moved) / len(moved))] * len(examples)

    monkeypatch.setattr(Validator, "outcomes", outcomes)
    swept = {**swept, "objective": "supervised"}
    halved = train_expert(TrainConfig(**{**swept, "output": tmp_path / "halved"}), progress=False)
    full = train_expert(TrainConfig(**{**swept, "output": tmp_path / "full", "sweep": "full"}), progress=False)
    assert halved.record.hyperparameters["lr"] == full.record.hyperparameters["lr"] == max(RATES)
    assert halved.scores["after"]["validation"].score >= full.scores["after"]["validation"].score
    steps = [sum(entry["steps"] for entry in each.record.sweep or []) for each in (halved, full)]
    assert steps == [1 + 1 + 2 + 8, 4 * 8]


def test_the_base_is_validated_and_the_first_answers_are_sampled_once(swept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    validated, sampled = [], []
    validate, sample = Validator.outcomes, Reinforce.sample
    monkeypatch.setattr(Validator, "outcomes", lambda self, examples: validated.append(1) or validate(self, examples))
    monkeypatch.setattr(Reinforce, "sample", lambda self, *given: sampled.append(1) or sample(self, *given))
    config = TrainConfig(**swept)
    train_expert(config, progress=False)
    assert len(validated) == total_validations(config) == 1 + 4 + 2 + 2 + 4
    assert len(sampled) == total_steps(config) - 3 == 4 + 2 + 2 + 4 - 3


@pytest.mark.parametrize("stopped_after", [3, 6, 9])
def test_a_stopped_and_a_damaged_sweep_end_as_an_undisturbed_one(
    stopped_after: int, swept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = train_expert(TrainConfig(**{**swept, "output": tmp_path / "undisturbed"}), progress=False)
    saved, save = [], loop_module.checkpoints.save

    def killed(*given: Any) -> None:
        save(*given)
        saved.append(1)
        if len(saved) == stopped_after:
            raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop_module.checkpoints, "save", killed)
        train_expert(TrainConfig(**swept), progress=False)
    # All that one run had saved is lost too.
    for path in found(swept["output"] / "sweep" / "1" / "checkpoints"):
        (path / "best.safetensors").write_bytes(b"")
    resumed = train_expert(TrainConfig(**swept, resume=True), progress=False)
    assert "Run 2 of the sweep begins anew" in caplog.text
    assert resumed.record.sweep == undisturbed.record.sweep
    one, other = _states(undisturbed.path), _states(resumed.path)
    assert one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)


def test_a_sweep_that_has_lost_a_folder_trains_that_run_again(swept: dict[str, Any], tmp_path: Path) -> None:
    undisturbed = train_expert(TrainConfig(**{**swept, "output": tmp_path / "undisturbed"}), progress=False)
    train_expert(TrainConfig(**swept), progress=False)
    shutil.rmtree(swept["output"] / "sweep" / "0")
    (swept["output"] / "training.json").unlink()
    resumed = train_expert(TrainConfig(**swept, resume=True), progress=False)
    assert resumed.record.sweep == undisturbed.record.sweep
