"""Reinforce and supervised training: gradients against independent computations, and rewards from the task's metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from t2eval.environment.environment import Environment
from t2eval.generation.completion import Completion
from t2eval.generation.encoding import Encoding
from t2eval.generation.engine import Engine
from t2eval.training import reinforce
from t2eval.training.methods import make_trainable
from t2eval.training.reinforce import Reinforce
from t2eval.training.supervised import Supervised
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.conftest import one_step


def fixed(monkeypatch: pytest.MonkeyPatch, answers: list[list[int]], texts: list[str], **changes: Any) -> None:
    """Let the engine give these answers to the prompts of a step, one to each."""

    def complete(self: Any, prompts: list[list[int]], settings: Any, **_: Any) -> list[Completion]:
        given = zip(prompts, answers, texts, strict=True)
        return [Completion(**{**_completed(prompt, ids, text), **changes}) for prompt, ids, text in given]

    monkeypatch.setattr(Engine, "complete", complete)


def _completed(prompt: list[int], ids: list[int], text: str) -> dict[str, Any]:
    return {"prompt": prompt, "ids": ids, "text": text, "log_probs": [0.0] * len(ids), "stopped": "end"}


def encode(tokenizer: Any, text: str) -> list[int]:
    return Encoding(tokenizer).text(text)


@pytest.mark.parametrize("direction", ["new_to_base", "base_to_new"])
@pytest.mark.parametrize(("micro_batch", "room"), [(1, None), (3, None), (64, None), (64, 30)])
def test_the_gradient_is_that_of_equation_1(
    direction: str, micro_batch: int, room: int | None, letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one autograd pass a row over the unpadded model, with the rollouts fixed."""
    environment, tokenizer = letters("letters_generate"), tiny_tokenizer()
    monkeypatch.setattr(reinforce, "tokens_with_room", lambda model, again: room)
    config = one_step(kl=0.3, kl_direction=direction, baseline="none", wrong_reward=-0.25, micro_batch=micro_batch, importance="never")
    trainable = make_trainable(tiny_model(), config)
    with torch.no_grad():
        for parameter in trainable.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    examples = environment.examples("train", limit=4)
    texts = [examples[0].target, "z\n", f"{examples[2].target}\n", "zz"]
    answers = [encode(tokenizer, text) for text in texts]

    fixed(monkeypatch, answers, texts)
    report = Reinforce(environment, tokenizer, config).step(trainable, examples, 0, lambda loss: loss.backward())
    assert report["accuracy"] == 0.5 and report["reward"] == pytest.approx((1 - 0.25) / 2)
    found = {name: parameter.grad.clone() for name, parameter in trainable.parameters().items() if parameter.grad is not None}
    assert set(found) == set(trainable.parameters())

    expected_loss = torch.zeros(())
    for example, answer, reward in zip(examples, answers, [1.0, -0.25, 1.0, -0.25], strict=True):
        prompt = encode(tokenizer, example.prompt)
        tokens, places = torch.tensor([prompt + answer]), slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        new = Categorical(logits=trainable.model(tokens).logits[0, places])
        with torch.no_grad(), trainable.base():
            old = Categorical(logits=trainable.model(tokens).logits[0, places])
        penalty = kl_divergence(new, old) if direction == "new_to_base" else kl_divergence(old, new)
        expected_loss = expected_loss - reward * new.log_prob(torch.tensor(answer)).sum() + 0.3 * penalty.sum()
    gradients = torch.autograd.grad(expected_loss / 4, list(trainable.parameters().values()))
    assert report["loss"] == pytest.approx((expected_loss / 4).item(), rel=1e-4)
    for name, gradient in zip(trainable.parameters(), gradients, strict=True):
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


def test_rewards_come_from_the_task_s_metric(letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = letters("letters_marks")  # full marks for the letter, half for its capital
    examples = environment.examples("train", limit=4)
    texts = [examples[0].doc["answer"], examples[1].doc["answer"].upper(), "z", ""]

    fixed(monkeypatch, [[65]] * 4, texts)
    trainable = make_trainable(tiny_model(), one_step())
    report = Reinforce(environment, tiny_tokenizer(), one_step()).step(trainable, examples, 0, lambda loss: None)
    assert report["accuracy"] == 0.5 and report["reward"] == 0.0


def test_a_choice_task_makes_its_gold_choice_likelier(letters: Callable[[str], Environment]) -> None:
    environment, tokenizer = letters("letters_choice"), tiny_tokenizer()
    config = one_step(task="letters_choice", batch_size=16, rollouts=2, kl=0.01)
    trainable = make_trainable(tiny_model(), config)
    examples = [example for example in environment.examples("train") if example.gold == 1][:8]
    objective = Reinforce(environment, tokenizer, config)
    optimizer = torch.optim.Adam(trainable.parameters().values(), lr=0.02)

    def gold() -> float:
        engine = Engine(trainable.model, tokenizer, batch_size=64)
        pairs = [[engine.encode_pair(*request) for request in example.requests] for example in examples]
        found = engine.loglikelihoods([choices[0][0] for choices in pairs], [[more for _, more in choices] for choices in pairs])
        return torch.tensor([[each.value for each in row] for row in found]).softmax(-1)[:, 1].mean().item()

    before = gold()
    for step in range(8):
        optimizer.zero_grad()
        objective.step(trainable, examples, step, lambda loss: loss.backward())
        optimizer.step()
    assert gold() > before + 0.1


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_the_supervised_loss_is_transformers_own(mask_prompt: bool, letters: Callable[[str], Environment]) -> None:
    environment, tokenizer = letters("letters_marks"), tiny_tokenizer()
    config = one_step(task="letters_marks", objective="supervised", mask_prompt=mask_prompt, micro_batch=2)
    trainable = make_trainable(tiny_model(), config)
    examples = environment.examples("train", limit=4)
    objective = Supervised(environment, tokenizer, config)
    report = objective.step(trainable, examples, 0, lambda loss: loss.backward())
    losses, counts = [], []
    for example in examples:
        prompt, answer = encode(tokenizer, example.prompt), encode(tokenizer, f" it is {example.doc['answer']}\n")
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer]) if mask_prompt else ids
        count = len(answer) if mask_prompt else len(prompt) + len(answer) - 1
        losses.append(trainable.model(input_ids=ids, labels=labels).loss.item() * count)
        counts.append(count)
    assert report["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-4)
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainable.parameters().values())
