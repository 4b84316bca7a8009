"""The policy gradient: of the very policy that sampled, at any temperature, and of a policy that rounding has made another one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from t2eval.environment.environment import Environment
from t2eval.generation.completion import Completion
from t2eval.generation.engine import Engine
from t2eval.svf.attachment import attach
from t2eval.training.importance import log_ratio, weights
from t2eval.training.methods import make_trainable
from t2eval.training.reinforce import Reinforce
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.conftest import one_step
from tests.training.families import family


def gradients(trainable: Any) -> Tensor:
    """All of a model's gradients in one vector, taken away from it."""
    flat = torch.cat([parameter.grad.flatten() for parameter in trainable.parameters().values()])
    for parameter in trainable.parameters().values():
        parameter.grad = None
    return flat


@pytest.mark.parametrize("task", ["letters_generate", "letters_choice"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_constant_reward_teaches_nothing(
    task: str, temperature: float, letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """E[∇log π] = 0 only if π is the policy that the answers were drawn from."""
    environment, answers, rounds = letters(task), 256, 6
    sizes = {"batch_size": answers, "rollouts": answers, "micro_batch": answers, "eval_batch_size": answers}
    config = one_step(task=task, kl=0.0, baseline="none", temperature=temperature, max_new_tokens=3, importance="never", **sizes)
    monkeypatch.setattr(environment, "score_many", lambda pairs: [1.0] * len(pairs))
    monkeypatch.setattr(environment, "score_choice", lambda *_: 1.0)
    model = tiny_model()
    model.generation_config.top_k, model.generation_config.repetition_penalty = 5, 3.0  # what evaluation would sample with
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)  # a policy with opinions: at temperature 1/2 another than at 1
    trainable = make_trainable(model, config)
    objective, examples = Reinforce(environment, tiny_tokenizer(), config), environment.examples("train", limit=1)
    found = []
    for seed in range(rounds):
        report = objective.step(trainable, examples, seed, lambda loss: loss.backward())
        assert report["reward"] == 1 and report["log_ratio"] < 1e-4
        found.append(gradients(trainable))
    each = torch.stack(found)  # (rounds, parameters)
    noise = each.var(0).sum().sqrt() / math.sqrt(rounds)
    assert each.mean(0).norm() < 2 * noise and each.norm() > 0


def test_what_comes_after_the_stop_carries_no_gradient(letters: Callable[[str], Environment]) -> None:
    """Sampled answers end with the token that completes the stop string; what a model would write behind it is never looked at."""
    environment, tokenizer = letters("letters_generate"), tiny_tokenizer()
    config = one_step(batch_size=64, rollouts=64, max_new_tokens=16, kl=0.0)
    model = tiny_model()
    trainable = make_trainable(model, config)
    objective, examples = Reinforce(environment, tokenizer, config), environment.examples("train", limit=1)
    newline = tokenizer("\n")["input_ids"][-1]
    embeddings = model.get_output_embeddings()
    embeddings.bias = torch.nn.Parameter(torch.zeros(embeddings.out_features), requires_grad=False)
    embeddings.bias.data[newline] = 5.0  # so that many answers stop early
    plays = objective.sample(trainable, examples, 0)
    stopped = [answer for answer in plays.answers if answer.stopped == "stop"]
    assert len(stopped) > 16 and all(answer.ids[-1] == newline and newline not in answer.ids[:-1] for answer in stopped)
    objective.reward(plays)
    assert objective.learn(trainable, plays, lambda loss: loss.backward())["log_ratio"] < 1e-4  # the same tokens, no more and no fewer


def exact(model: Any, prompt: Tensor) -> Tensor:
    """log π of every one-token answer to a prompt, (vocabulary,) float32."""
    return model(input_ids=prompt, use_cache=False).logits[0, -1].float().log_softmax(-1)


def test_small_updates_are_learnt_in_bfloat16() -> None:
    """Rollouts come from merged bfloat16 weights, which lose a part of z - 1 = 1e-3. The expected gradient, over all one-token answers
    and so without sampling noise, is that of the policy of the hooks once tokens are weighed by their importance."""
    model = family("llama", seed=3).to(torch.bfloat16)
    adapted = attach(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.copy_(1e-3 * torch.randn(parameter.shape, generator=generator).sign())
    parameters, prompt = list(adapted.trainable().values()), torch.tensor([[5, 9, 2, 7]])
    rewards = torch.randn(96, generator=generator)
    with torch.no_grad(), adapted.merged():
        then = exact(model, prompt)
    now = exact(model, prompt)
    ratio = log_ratio(now, then)
    assert ratio.abs().mean() > 1e-3  # the policies differ
    weight = weights(ratio, ratio.abs().mean().expand_as(ratio), always=False, cap=2.0)
    assert bool((weight != 1).any())

    def expected(over: Tensor, weighed: Tensor) -> Tensor:
        found = torch.autograd.grad((over.exp().detach() * weighed * rewards * now).sum(), parameters, retain_graph=True)
        return torch.cat([each.flatten() for each in found])

    wanted, corrected, plain = expected(now, torch.ones_like(now)), expected(then, weight), expected(then, torch.ones_like(now))
    assert (corrected - wanted).norm() < 0.01 * wanted.norm()
    assert (corrected - wanted).norm() < 0.2 * (plain - wanted).norm()


def test_a_few_steps_of_1e_3_in_bfloat16_raise_the_reward(letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = letters("letters_generate")
    monkeypatch.setattr(environment, "score_many", lambda pairs: [float("a" <= text[:1] <= "m") for _, text in pairs])
    # answers come from merged weights; learnt from hooks, so that rounding comes between the two
    monkeypatch.setattr("t2eval.training.trainable.learning_from_merged_is_cheaper", lambda *_: False)
    config = one_step(batch_size=256, rollouts=256, max_new_tokens=1, kl=0.0, eval_batch_size=256, micro_batch=256, lr=1e-3)
    model = tiny_model().to(torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)  # so that small updates move probabilities
    trainable = make_trainable(model, config)
    objective, examples = Reinforce(environment, tiny_tokenizer(), config), environment.examples("train", limit=1)
    optimizer = torch.optim.Adam(trainable.parameters().values(), lr=1e-3)
    prompt = torch.tensor([tiny_tokenizer()(examples[0].prompt)["input_ids"]])
    letters_wanted = torch.tensor([tiny_tokenizer()(chr(code))["input_ids"][-1] for code in range(ord("a"), ord("m") + 1)])

    def share() -> float:
        with torch.no_grad():
            return trainable.model(input_ids=prompt, use_cache=False).logits[0, -1].float().softmax(-1)[letters_wanted].sum().item()

    before = share()
    for seed in range(6):
        optimizer.zero_grad()
        report = objective.step(trainable, examples, seed, lambda loss: loss.backward())
        optimizer.step()
    assert max(parameter.detach().abs().max().item() for parameter in trainable.parameters().values()) < 7e-3
    assert report["log_ratio"] > 1e-3  # rounding is at work
    assert share() > 1.03 * before


def test_weights_are_truncated_and_left_out_where_the_policies_are_the_same() -> None:
    ratio, apart = torch.tensor([0.0, 1.0, -1.0, 1e-6]), torch.tensor([0.7, 0.7, 0.7, 1e-6])
    torch.testing.assert_close(weights(ratio, apart, always=False, cap=2.0), torch.tensor([1.0, 2.0, math.exp(-1), 1.0]), rtol=0, atol=0)
    assert weights(ratio, apart, always=True, cap=2.0)[3] > 1


@pytest.mark.parametrize("importance", ["auto", "always", "never"])
def test_the_gradient_of_an_answer_is_weighed_token_by_token(
    importance: str, letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, tokenizer = letters("letters_generate"), tiny_tokenizer()
    config = one_step(batch_size=1, kl=0.0, baseline="none", importance=importance, importance_cap=1.5)
    trainable = make_trainable(tiny_model(), config)
    examples, ids = environment.examples("train", limit=1), [65, 70, 10]
    prompt = tokenizer(examples[0].prompt)["input_ids"]
    logits = trainable.model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    ratio = torch.tensor([0.1, 3.0, -0.3])
    then = (log_probs.detach() - ratio).tolist()

    def complete(self: Any, prompts: list[list[int]], settings: Any, **_: Any) -> list[Completion]:
        return [Completion(prompts[0], ids, examples[0].target, then, "end")]

    monkeypatch.setattr(Engine, "complete", complete)
    report = Reinforce(environment, tokenizer, config).step(trainable, examples, 0, lambda loss: loss.backward())
    found = gradients(trainable)
    weight = torch.ones(3) if importance == "never" else ratio.exp().clamp(max=1.5)
    wanted = torch.autograd.grad(-(weight * log_probs).sum(), list(trainable.parameters().values()))
    torch.testing.assert_close(found, torch.cat([each.flatten() for each in wanted]), rtol=1e-3, atol=1e-4)
    assert report["log_ratio"] == pytest.approx(3.4 / 3, rel=1e-3)
