"""Parts: a pass that memory has no room for is done again in halves, and no gradient is counted twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2eval.errors import T2Error
from t2eval.training.parts import Parts


def test_parts_hold_as_many_sequences_as_asked() -> None:
    parts = Parts(4)
    assert [places for places, _ in parts.run([1, 1, 2, 3, 2, 9, 1], lambda places: None, [])] == [[0, 1, 2], [3], [4], [5], [6]]


@pytest.mark.parametrize(
    ("room", "passes"),
    [
        (None, [[0, 1, 2, 3], [4, 5]]),
        (1000, [[0, 1, 2, 3], [4, 5]]),
        (80, [[0, 1], [2, 3, 4, 5]]),  # with padding: 2 * 40, 4 * 20
        (60, [[0], [1, 2, 3], [4, 5]]),
        (19, [[0], [1], [2], [3], [4], [5]]),  # one alone may have more
    ],
)
def test_a_pass_has_no_more_tokens_than_there_is_room_for(room: int | None, passes: list[list[int]]) -> None:
    lengths = [40, 20, 20, 20, 10, 10]
    assert [places for places, _ in Parts(4).run([1] * 6, lambda places: None, [], lengths=lengths, room=room)] == passes


@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_a_pass_without_room_is_halved_and_its_gradient_taken_back(room: int) -> None:
    values, parameter = torch.arange(1.0, 9.0), nn.Parameter(torch.zeros(()))
    parts, tries = Parts(8), []

    def work(places: list[int]) -> int:
        tries.append(len(places))
        (parameter * values[places].sum()).backward()  # a backward pass may add to some gradients before it fails
        if len(places) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return len(places)

    done = list(parts.run([1] * 8, work, [parameter]))
    assert [place for places, _ in done for place in places] == list(range(8))
    assert parameter.grad is not None and parameter.grad.item() == values.sum().item()
    assert parts.size == {1: 1, 2: 2, 3: 2, 8: 8}[room]
    tries.clear()
    list(parts.run([1] * 8, work, [parameter]))  # the next step begins with what was found
    assert max(tries) == parts.size


def test_no_room_for_one_answer_is_said_with_what_to_do() -> None:
    def work(places: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(T2Error, match="checkpoint_activations"):
        list(Parts(4).run([1] * 4, work, []))


def test_another_error_is_not_taken_for_it() -> None:
    def work(places: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Parts(4).run([1] * 4, work, []))
