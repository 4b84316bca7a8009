"""Training configuration: presets, sweeps, recipes, and mistakes told in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2eval.errors import T2Error, UsageError
from t2eval.training.config import TrainConfig


def test_presets_fill_what_is_unset() -> None:
    paper = TrainConfig(task="t", output="o", preset="paper")
    assert (paper.lr, paper.batch_size, paper.clip, paper.kl, paper.baseline) == (2e-3, 256, 1e-3, (0.0, 0.1, 0.2, 0.3), "none")
    assert len(paper.points) == 4 and {point.kl for point in paper.points} == {0.0, 0.1, 0.2, 0.3}
    lora = TrainConfig(task="t", output="o", preset="paper", method="lora")
    assert len(lora.points) == 12 and (lora.lora_rank, lora.lora_alpha, lora.lora_dropout) == (16, 32, 0.05)
    small = TrainConfig(task="t", output="o", lr=None, batch_size=8)
    assert (small.lr, small.batch_size, small.kl, small.baseline) == (4e-3, 8, 0.1, "batch_mean")
    assert len(small.points) == 1 and small.points[0] == small


def test_a_time_budget_alone_does_not_end_by_steps() -> None:
    assert TrainConfig(task="t", output="o", max_seconds=60).steps > 10_000
    assert TrainConfig(task="t", output="o", max_seconds=60, steps=5).steps == 5


def test_a_recipe_is_read_and_overridden(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: letters\nkl: [0, 2e-1]\nlr: 1e-3\n")
    config = TrainConfig.from_yaml(recipe, output=tmp_path, seed=3, steps=None)
    assert (config.task, config.kl, config.lr, config.seed) == ("letters", (0.0, 0.2), 1e-3, 3)
    assert "output" not in config.hyperparameters and config.hyperparameters["kl"] == [0.0, 0.2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rolouts": 2}, "Unknown setting 'rolouts'. Did you mean 'rollouts'"),
        ({"method": "lorra"}, "Unknown method 'lorra'. Did you mean 'lora'"),
        ({"steps": 0}, r"steps: it must be at least 1 \(given: 0\)"),
        ({"rollouts": 3}, "64 answers cannot be shared by 3 rollouts"),
        ({"baseline": "leave_one_out"}, "rollouts must be 2 or more"),
        ({"lr": [1e-3, -1]}, "lr: values must be above 0"),
        ({"lr": []}, "lr: an empty list leaves nothing to train with"),
        ({"lr": float("nan")}, "lr: it must be a finite number"),
        ({"kl": float("inf")}, "kl: it must be a finite number"),
        ({"seed": 2**32}, "seed: it must be less than"),
        ({"resume": True, "overwrite": True}, "either resume or overwrite"),
        ({"task": None}, "'task' is missing"),
    ],
)
def test_mistakes_are_told_in_one_message(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**{"task": "t", "output": "o", **settings})


def test_an_unreadable_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(T2Error, match="cannot be read"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UsageError, match="not a mapping"):
        TrainConfig.from_yaml(tmp_path / "list.yaml")


def test_a_recipes_settings_are_named_in_text(tmp_path: Path) -> None:
    for key, name in (("1", "1"), ("null", "None")):
        (tmp_path / "r.yaml").write_text(f"task: embedded_math_seen\n{key}: 3\n")
        with pytest.raises(T2Error, match=f"a setting {name}, whose name is no text"):
            TrainConfig.from_yaml(tmp_path / "r.yaml", output=tmp_path)
