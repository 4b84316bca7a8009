"""Reading: what a model has no room for is cut as lm-eval cuts it, in sampling, learning and supervised training, with one warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from t2eval.environment.environment import Environment
from t2eval.generation.engine import Engine
from t2eval.training.choices import ChoicePolicy
from t2eval.training.likelihood import Policy
from t2eval.training.methods import make_trainable
from t2eval.training.readout import Readout
from t2eval.training.reinforce import Reinforce
from t2eval.training.supervised import Supervised
from tests.tiny import VOCABULARY, tiny_tokenizer
from tests.training.conftest import one_step


def short_model() -> Any:
    """Learned positions for 8 tokens: one more is an error of the model itself."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=8)).eval()


@pytest.mark.parametrize("objective", ["reinforce", "supervised"])
@pytest.mark.parametrize("task", ["letters_generate", "letters_choice"])
def test_long_prompts_are_trained_on_with_one_warning(
    task: str, objective: Any, letters: Callable[[str], Environment], caplog: pytest.LogCaptureFixture
) -> None:
    environment, config = letters(task), one_step(task=task, objective=objective, batch_size=4, max_new_tokens=4)
    examples = environment.examples("train", limit=4)
    texts = [f"{example.prompt}{example.answer or example.target}" for example in examples]
    assert any(len(tiny_tokenizer()(text)["input_ids"]) > 9 for text in texts)
    trainable = make_trainable(short_model(), config)
    kind = (Reinforce if objective == "reinforce" else Supervised)(environment, tiny_tokenizer(), config)
    for seed in (0, 1):
        kind.step(trainable, examples, seed, lambda loss: loss.backward())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in trainable.parameters().values())
    assert sum("cut off" in record.getMessage() or "beginning" in record.getMessage() for record in caplog.records) == 1


def test_a_cut_choice_has_the_likelihood_that_validation_gives_it(letters: Callable[[str], Environment]) -> None:
    environment, tokenizer = letters("letters_choice"), tiny_tokenizer()
    config = one_step(task="letters_choice")
    trainable = make_trainable(short_model(), config)
    examples = environment.examples("train", limit=3)
    objective = Reinforce(environment, tokenizer, config)
    answers: Any = objective.answers(trainable)
    pairs = answers._pairs_of(trainable, examples)
    with torch.no_grad():
        found = answers._policy_of(trainable).likelihoods(trainable.model, pairs)
    engine = Engine(trainable.model, tokenizer, batch_size=8)
    for example, values in zip(examples, found, strict=True):
        encoded = [engine.encode_pair(*request) for request in example.requests]
        [whole] = engine.loglikelihoods([encoded[0][0]], [[more for _, more in encoded]])
        torch.testing.assert_close(values, torch.tensor([each.value for each in whole]), rtol=1e-4, atol=1e-4)


def test_no_call_has_more_sequences_than_asked() -> None:
    """Without a mask of its own, an example with more choices than a pass may have is read in several, with the same gradient."""
    torch.manual_seed(0)
    model = short_model()
    trainable = make_trainable(model, one_step())
    policy = ChoicePolicy(Policy(Readout(model)), model)
    policy.packs = False
    choices = [([1, 2, 3], [4 + number, 9]) for number in range(5)]
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, __, named: sizes.append(named["input_ids"].shape[0]), with_kwargs=True)
    parameters = list(trainable.parameters().values())
    found = []
    for at_once in (None, 2):
        sizes.clear()
        [values] = policy.likelihoods(model, [choices], at_once=at_once)
        loss = (values * torch.linspace(-1, 1, 5)).sum()
        found.append(torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)]))
        assert max(sizes) == (at_once or 5)
    hook.remove()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
