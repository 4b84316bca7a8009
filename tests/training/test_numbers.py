"""Numbers in training: gradients and losses that are none, rewards that are all equal, empty answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from t2eval.environment.environment import Environment
from t2eval.errors import T2Error
from t2eval.expert.expert import Expert
from t2eval.training.config import TrainConfig
from t2eval.training.reinforce import Reinforce
from t2eval.training.train import train_expert


def test_a_gradient_that_is_no_number_is_told_before_it_is_in_every_weight(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KL term that overflows: the loss may still be a number where its slope is none."""
    learn = Reinforce.learn

    def blown_up(objective: Reinforce, trainable: Any, plays: Any, backward: Any) -> dict[str, float]:
        figures = learn(objective, trainable, plays, backward)
        next(iter(trainable.parameters().values())).grad.fill_(math.inf)
        return figures

    monkeypatch.setattr(Reinforce, "learn", blown_up)
    with pytest.raises(T2Error, match=r"The gradient of step 1 is (inf|nan): training diverged. Lower lr \(now 0.05\) or raise kl"):
        train_expert(TrainConfig(**{**settings, "test": False, "kl": 0.2}), progress=False)
    log = settings["output"] / "log.jsonl"
    assert not log.exists() or all(json.loads(line)["step"] == 0 for line in log.read_text().splitlines())


@pytest.mark.parametrize(("score", "said"), [(0.0, "every answer was wrong"), (1.0, "every answer was right")])
def test_rewards_that_are_all_equal_are_said(
    score: float, said: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("t2eval.training.loop._EARLY", 1)
    monkeypatch.setattr(Environment, "score_many", lambda _self, pairs: [score] * len(pairs))
    result = train_expert(TrainConfig(**{**settings, "steps": 1, "test": False}), progress=False)
    assert result.steps == 1 and all(bool(torch.isfinite(z).all()) for z in Expert.load(settings["output"]).z.values())
    assert any(f"Nothing to learn so far: {said}" in text for text in [*caplog.messages, *result.record.remarks])


def test_empty_answers_are_learnt_from_like_others(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, letters: Callable[[str], Environment]
) -> None:
    """A model that ends at once: nothing is written, and that is wrong."""
    monkeypatch.setattr(Environment, "score_many", lambda _self, pairs: [float(bool(answer.strip())) for _, answer in pairs])
    result = train_expert(TrainConfig(**{**settings, "steps": 1, "test": False, "max_new_tokens": 1}), progress=False)
    assert result.steps == 1 and all(bool(torch.isfinite(z).all()) for z in Expert.load(settings["output"]).z.values())
    assert letters("letters_generate").score(letters("letters_generate").examples("train", limit=1)[0], "") == 0
