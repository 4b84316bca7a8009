"""What the training tests share: the letters tasks, a tiny base model on disk, and a loop of one step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2eval.environment.environment import Environment, make_task_manager
from t2eval.expert.card import Score
from t2eval.training.config import TrainConfig
from tests.tiny import save_tiny

TASKS = Path(__file__).parents[1] / "fixtures" / "training"


@pytest.fixture(scope="session")
def letters() -> Callable[[str], Environment]:
    """Environments of tests/fixtures/training by name."""
    manager = make_task_manager(TASKS, task="letters_generate")
    return lambda name: Environment(name, task_manager=manager)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model in the Hub layout."""
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture
def settings(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run of a few seconds."""
    monkeypatch.setenv("T2EVAL_CACHE", str(tmp_path / "cache"))
    return {
        "task": "letters_generate",
        "include_path": TASKS,
        "model": str(base),
        "output": tmp_path / "out",
        "steps": 4,
        "batch_size": 8,
        "validation_limit": 4,
        "test_limit": 6,
        "validate_every": 2,
        "save_every": 2,
        "lr": 0.05,
    }


@pytest.fixture
def improving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each validation of `train_expert` is better than the one before: what is trained is what is kept."""
    rounds = itertools.count()

    def outcomes(_self: Any, examples: Any) -> list[float]:
        return [1.0 - 0.5 ** next(rounds)] * len(examples)

    monkeypatch.setattr("t2eval.training.scores.Validator.outcomes", outcomes)


def constant_score() -> Score:
    """A validation that costs nothing."""
    return Score(score=0.5, stderr=0.0, n=4)


def one_step(**changes: Any) -> TrainConfig:
    """A configuration of one step of four answers."""
    return TrainConfig(**{"task": "letters_generate", "output": "unused", "steps": 1, "batch_size": 4, "lr": 0.05, **changes})
