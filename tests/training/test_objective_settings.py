"""The objective's settings: baselines, what is left out of a step, the loss's mean; and several processes that do what one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from t2eval.environment.environment import Environment
from t2eval.errors import UsageError
from t2eval.generation.completion import Completion
from t2eval.generation.encoding import Encoding
from t2eval.generation.engine import Engine
from t2eval.training.advantages import advantages, disagreeing
from t2eval.training.methods import make_trainable
from t2eval.training.reinforce import Reinforce
from t2eval.training.supervised import Supervised
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.conftest import one_step

TEXTS = ["right", "z\n", "zzzz\n", "right", "right", "right"]
"""Three samples of two examples: the first's disagree, the second's are all right."""
CUT = 2
"""The answer that the limit of tokens cut."""


def test_baselines() -> None:
    rewards = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    assert advantages(rewards, "none").equal(rewards)
    torch.testing.assert_close(advantages(rewards, "batch_mean"), rewards - 1 / 3)
    torch.testing.assert_close(advantages(rewards, "leave_one_out"), torch.tensor([[2.0, -1.0, -1.0], [0.0, 0.0, 0.0]]))
    root = (4 / 3) ** 0.5  # the deviation of 1, -1, -1
    wanted = torch.tensor([[4 / 3 / root, -2 / 3 / root, -2 / 3 / root], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages(rewards, "group_normalized"), wanted, rtol=1e-3, atol=1e-6)
    assert disagreeing(rewards).tolist() == [True, False]


@pytest.mark.parametrize("setting", [{"baseline": "leave_one_out"}, {"baseline": "group_normalized"}, {"drop_uniform": True}])
def test_what_compares_a_prompt_s_answers_needs_several(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="rollouts must be 2 or more"):
        one_step(rollouts=1, **setting)


def given(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Completion]]:
    """Two examples, and the answers that the engine gives to them."""
    tokenizer, examples = tiny_tokenizer(), environment.examples("train", limit=2)
    answers = []
    for place, text in enumerate(TEXTS):
        example = examples[place // 3]
        text = f"{example.target}\n" if text == "right" else text
        ids = tokenizer(text)["input_ids"]
        stopped: Any = "length" if place == CUT else "stop"
        prompt = Encoding(tokenizer).text(example.prompt)
        answers.append(Completion(prompt, ids, text.strip("\n"), [0.0] * len(ids), stopped))

    def complete(self: Any, prompts: list[list[int]], settings: Any, samples: int, first: int, **_: Any) -> list[Completion]:
        return answers[first * samples : (first + len(prompts)) * samples]

    monkeypatch.setattr(Engine, "complete", complete)
    return examples, answers


def moved_trainable(config: Any) -> Any:
    trainable = make_trainable(tiny_model(), config)
    with torch.no_grad():
        for parameter in trainable.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return trainable


def taken(trainable: Any) -> Tensor:
    flat = torch.cat([parameter.grad.flatten() for parameter in trainable.parameters().values()])
    for parameter in trainable.parameters().values():
        parameter.grad = None
    return flat


def gradient_of(trainable: Any, answers: list[Completion], weights: list[float]) -> Tensor:
    """Of -Σ weight · log π(answer), from one unpadded sequence an answer."""
    loss = torch.zeros(())
    for answer, weight in zip(answers, weights, strict=True):
        logits = trainable.model(input_ids=torch.tensor([answer.prompt + answer.ids]), use_cache=False).logits[
            0, len(answer.prompt) - 1 : -1
        ]
        loss = loss - weight * logits.log_softmax(-1).gather(-1, torch.tensor(answer.ids)[:, None]).sum()
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(trainable.parameters().values()))])


LENGTHS = [2, 2, 5, 2, 2, 2]
PLAIN = [1.0, -1.0, -1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "weights", "learnt"),
    [
        ({}, [reward / 6 for reward in PLAIN], 6),
        ({"baseline": "batch_mean"}, [(reward - 1 / 3) / 6 for reward in PLAIN], 6),
        ({"drop_uniform": True}, [1 / 3, -1 / 3, -1 / 3, 0.0, 0.0, 0.0], 3),
        ({"mask_truncated": True}, [1 / 5, -1 / 5, 0.0, 1 / 5, 1 / 5, 1 / 5], 5),
        ({"token_loss": True}, [reward / sum(LENGTHS) for reward in PLAIN], 6),
        ({"token_loss": True, "mask_truncated": True, "drop_uniform": True}, [1 / 4, -1 / 4, 0.0, 0.0, 0.0, 0.0], 2),
        ({"baseline": "leave_one_out"}, [2 / 6, -1 / 6, -1 / 6, 0.0, 0.0, 0.0], 6),
    ],
)
@pytest.mark.parametrize("micro_batch", [2, 64])
def test_each_answer_weighs_what_the_settings_say(
    settings: dict[str, Any],
    weights: list[float],
    learnt: int,
    micro_batch: int,
    letters: Callable[[str], Environment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = letters("letters_generate")
    plain = {"batch_size": 6, "rollouts": 3, "kl": 0.0, "baseline": "none", "importance": "never", "micro_batch": micro_batch}
    config = one_step(**{**plain, **settings})
    trainable = moved_trainable(config)
    examples, answers = given(environment, monkeypatch)
    assert [len(answer.ids) for answer in answers] == LENGTHS
    report = Reinforce(environment, tiny_tokenizer(), config).step(trainable, examples, 0, lambda loss: loss.backward())
    torch.testing.assert_close(taken(trainable), gradient_of(trainable, answers, weights), rtol=1e-3, atol=1e-4)
    assert report["learnt"] == pytest.approx(learnt / 6) and report["truncated"] == pytest.approx(1 / 6)
    assert report["accuracy"] == pytest.approx(4 / 6)


def test_a_step_in_which_all_prompts_agree_is_left_out(letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = letters("letters_generate")
    monkeypatch.setattr(environment, "score_many", lambda pairs: [1.0] * len(pairs))
    config = one_step(batch_size=6, rollouts=3, drop_uniform=True)
    trainable = moved_trainable(config)
    examples, _ = given(environment, monkeypatch)
    calls: list[Tensor] = []
    report = Reinforce(environment, tiny_tokenizer(), config).step(trainable, examples, 0, calls.append)
    assert not calls and report["learnt"] == 0 and report["loss"] == 0


class Together:
    """`gather` for processes that take turns: what each one puts in, call by call, is handed to the others afterwards."""

    def __init__(self, others: list[Tensor], count: int, before: bool) -> None:
        self.others, self.count, self.before = others, count, before
        self.own: list[Tensor] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.own.append(rows)
        other = self.others[len(self.own) - 1] if len(self.own) <= len(self.others) else rows.new_zeros(self.count, *rows.shape[1:])
        return torch.cat([other, rows] if self.before else [rows, other])


def run_share(objective: Any, trainable: Any, examples: list[Any], share: slice, others: list[Tensor]) -> tuple[Any, list[Tensor]]:
    mine = examples[share]
    gather = Together(others, len(examples) - len(mine), before=share.start > 0)
    return objective.step(trainable, mine, 5, lambda loss: loss.backward(), gather=gather, first=share.start), gather.own


@pytest.mark.parametrize("objective_name", ["reinforce", "supervised"])
@pytest.mark.parametrize("task", ["letters_generate", "letters_choice"])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_two_processes_learn_what_one_learns(task: str, cut: int, objective_name: Any, letters: Callable[[str], Environment]) -> None:
    """The shares of two processes, one of them perhaps empty, add up to one process's gradient and figures."""
    environment = letters(task)
    sizes = {"batch_size": 8, "rollouts": 2, "max_new_tokens": 4, "micro_batch": 2}
    config = one_step(task=task, objective=objective_name, baseline="batch_mean", lr=0.01, **sizes)
    examples = environment.examples("train", limit=4)
    kind = Reinforce if objective_name == "reinforce" else Supervised
    trainable = moved_trainable(config)
    whole = kind(environment, tiny_tokenizer(), config).step(trainable, examples, 5, lambda loss: loss.backward())
    wanted = taken(trainable)
    first, second = slice(0, cut), slice(cut, 4)
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(3):  # until each process has seen what the other one gathers: as many rounds as there are calls that build on each other
        for parameter in trainable.parameters().values():
            parameter.grad = torch.zeros_like(parameter)
        reports = []
        one, own_first = run_share(kind(environment, tiny_tokenizer(), config), trainable, examples, first, rows[1])
        two, own_second = run_share(kind(environment, tiny_tokenizer(), config), trainable, examples, second, rows[0])
        rows, reports = (own_first, own_second), [one, two]
    torch.testing.assert_close(taken(trainable), wanted, rtol=1e-3, atol=1e-5)
    for report in reports:
        assert report == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_a_score_that_is_no_number_counts_as_wrong_and_is_named_once(
    letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment = letters("letters_generate")
    monkeypatch.setattr(environment, "score_many", lambda pairs: [float("nan")] * len(pairs))
    config = one_step(max_new_tokens=2, kl=0.0)
    trainable = make_trainable(tiny_model(), config)
    objective, examples = Reinforce(environment, tiny_tokenizer(), config), environment.examples("train", limit=4)
    reports = [objective.step(trainable, examples, seed, lambda loss: loss.backward()) for seed in (0, 1)]
    assert all(report["accuracy"] == 0 and report["reward"] == -1 for report in reports)
    said = [record.getMessage() for record in caplog.records if record.name == "t2eval.training"]
    assert len(said) == 1 and environment.metric in said[0] and f"document {examples[0].index}" in said[0]
