"""Activations: the count of what a pass keeps against what autograd saves, and a step that is cut by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from t2eval.basemodel.load import load_base
from t2eval.environment.environment import Environment
from t2eval.training import activations
from t2eval.training.activations import bytes_a_token, tokens_with_room
from t2eval.training.methods import make_trainable
from t2eval.training.parts import Parts
from t2eval.training.reinforce import Reinforce
from t2eval.training.supervised import Supervised
from t2eval.training.trainable import Trainable
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.conftest import one_step


def kept(trainable: Trainable, sequences: int, width: int) -> int:
    """The bytes that a forward pass saves, each storage once; parameters and buffers are there anyway."""
    model, found = trainable.model, {}
    anyway = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = (storage.nbytes(), tensor.detach())  # held, so that no other takes its place
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=torch.randint(0, 200, (sequences, width)), logits_to_keep=1)
    assert output.logits.requires_grad
    return sum(size for place, (size, _) in found.items() if place not in anyway)


@pytest.mark.parametrize("method", ["svf", "lora", "ia3"])
def test_the_count_is_what_autograd_keeps(method: str) -> None:
    model, _ = load_base("embedded", device="cpu")
    trainable = make_trainable(model, one_step(method=method))
    trainable.train_mode()
    few, many = (kept(trainable, 8, width) for width in (32, 96))  # what there is but once is in both
    measured = (many - few) / (8 * 64)
    assert measured <= bytes_a_token(trainable.model) <= 1.7 * measured


def test_layers_that_are_computed_again_keep_their_input_and_one_of_them_the_rest() -> None:
    model = tiny_model(num_hidden_layers=6)
    whole, again = bytes_a_token(model), bytes_a_token(model, again=True)
    assert again == 6 * 32 * 4 + whole // 6


def test_a_token_goes_to_some_of_the_experts_of_a_mixture() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=8, num_experts_per_tok=2))
    attention, router, each = 4 * (16 + 16), 0, (16 + 2 * 24) + (24 + 16)
    assert bytes_a_token(model) == pytest.approx(1.25 * 4 * (attention + router + 2 * each), abs=1)


def test_room_is_a_share_of_what_is_free_and_is_not_asked_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(activations, "available_cores", lambda: 8)
    monkeypatch.setattr(activations, "free_memory", lambda device: 1000 * bytes_a_token(model))
    for threads, room in ((8, 500), (16, 500), (2, 125)):  # four trainings side by side have two threads each
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert tokens_with_room(model) == room
    monkeypatch.setattr(activations, "free_memory", lambda device: 1)
    assert tokens_with_room(model) == 1
    monkeypatch.setattr(activations, "free_memory", lambda device: None)
    assert tokens_with_room(model) is None


@pytest.mark.parametrize("task", ["letters_choice", "letters_generate"])
@pytest.mark.parametrize("objective", ["reinforce", "supervised"])
def test_little_memory_makes_more_passes_of_the_same_step(
    objective: str, task: str, letters: Callable[[str], Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, tokenizer = letters(task), tiny_tokenizer()
    config = one_step(task=task, objective=objective, batch_size=6)
    made: dict[bool, list[int]] = {True: [], False: []}
    gradients = []
    run = Parts.run

    def told(self: Parts, *arguments: Any, **named: Any) -> Any:
        for places, result in run(self, *arguments, **named):
            made[little].append(len(places))
            yield places, result

    monkeypatch.setattr(Parts, "run", told)
    monkeypatch.setattr(activations, "_of_the_machine", lambda: 1.0)
    for little in (False, True):
        trainable = make_trainable(tiny_model(), config)
        room = 30 if little else 10**6
        monkeypatch.setattr(activations, "free_memory", lambda device, room=room: room * bytes_a_token(tiny_model()) / 0.5)
        kind = Reinforce if objective == "reinforce" else Supervised
        kind(environment, tokenizer, config).step(trainable, environment.examples("train", limit=6), 0, lambda loss: loss.backward())
        gradients.append({name: parameter.grad for name, parameter in trainable.parameters().items()})
    assert len(made[False]) == 1 and len(made[True]) > 1 and sum(made[True]) == sum(made[False])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
