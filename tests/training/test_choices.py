"""Choices: a prompt read once for all its choices has the likelihoods and gradients of one sequence a choice, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2eval.svf.attachment import attach
from t2eval.training.choices import ChoicePolicy, alike, pack, shared_prefix
from t2eval.training.likelihood import Policy
from t2eval.training.readout import Readout
from tests.training.families import FAMILIES, SCALABLE, family
from tests.training.test_likelihood import moved

ALIKE = [([5, 9, 2, 7, 4], [11, 3, 8]), ([5, 9, 2, 7, 4], [11]), ([5, 9, 2, 7, 4], [13, 1])]
ENDING_OTHERWISE = [([6, 2, 8], [13, 1]), ([6, 2, 9, 9], [13, 1])]  # Winogrande's choices stand in the context
LETTERS = [([7, 7, 3], [20]), ([7, 7, 3], [21]), ([7, 7, 3], [22])]
APART = [([1, 2, 3], [4, 5]), ([2, 2, 3], [4, 5])]
EXAMPLES = [ALIKE, ENDING_OTHERWISE, LETTERS, APART]
PACKS = set(FAMILIES) - {"falcon_alibi", "bloom", "mpt", "mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "falcon_h1"}


def plain(model: Any) -> list[torch.Tensor]:
    """The likelihoods of `EXAMPLES` from one unpadded sequence a choice."""
    values = []
    for choices in EXAMPLES:
        of_example = []
        for context, continuation in choices:
            ids = torch.tensor([context + continuation])
            log_probs = model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1].log_softmax(-1)
            of_example.append(log_probs.gather(-1, torch.tensor(continuation)[:, None]).sum())
        values.append(torch.stack(of_example))
    return values


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihoods_and_gradients_are_those_of_one_sequence_a_choice(name: str) -> None:
    model = family(name)
    parameters = moved(list(attach(model, SCALABLE.get(name, "all")).trainable().values()))
    policy = ChoicePolicy(Policy(Readout(model)), model)
    assert policy.packs == (name in PACKS)
    found, expected = policy.likelihoods(model, EXAMPLES), plain(model)
    weights = [torch.linspace(-1, 2, len(values)) for values in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    losses = [torch.stack([weight @ values for weight, values in zip(weights, each, strict=True)]).sum() for each in (found, expected)]
    gradients, wanted = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses)
    for one_gradient, other_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one_gradient, other_gradient, rtol=1e-3, atol=1e-4)


def test_what_choices_share_is_written_once() -> None:
    batch, positions, branches = pack([ALIKE, LETTERS], "cpu")
    assert batch.tokens.tolist() == [[5, 9, 2, 7, 4, 11, 3, 13], [7, 7, 3, 0, 0, 0, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert branches.tolist() == [[0, 0, 0, 0, 0, 1, 1, 3], [0, 0, 0, -1, -1, -1, -1, -1]]
    assert batch.targets.tolist() == [11, 3, 8, 11, 13, 1, 20, 21, 22]
    assert batch.places.tolist() == [4, 5, 6, 4, 4, 7, 10, 10, 10]
    assert batch.owners.tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 5]
    assert [shared_prefix(choices) for choices in EXAMPLES] == [5, 2, 3, 0]


def test_a_prompt_longer_than_a_sliding_window_is_read_once_a_choice() -> None:
    model = family("mistral")  # its window is 8
    policy = ChoicePolicy(Policy(Readout(model)), model)
    short, long = [([1] * 6, [2]), ([1] * 6, [3])], [([1] * 9, [2]), ([1] * 9, [3])]
    assert (policy.sequences(short), policy.sequences(long)) == (1, 2)


def test_on_a_cpu_sequences_of_like_lengths_are_read_together() -> None:
    lengths = [10, 40, 11, 38, 9, 12]
    cpu = torch.device("cpu")
    groups = alike(lengths, cpu)
    assert groups == [[1, 3], [5, 2, 0], [4]]
    for group in groups:
        held = sum(lengths[place] for place in group)
        assert max(lengths[place] for place in group) * len(group) <= held * 9 / 8
    assert alike([], cpu) == [] and alike([7, 7, 7], cpu) == [[0, 1, 2]]
    assert alike(lengths, torch.device("cuda")) == [[0, 1, 2, 3, 4, 5]]
