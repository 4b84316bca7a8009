"""Parts: a step's answers in passes that fit in memory: as many as were asked for, halved where a device says that this is too much, and on
a CPU, which does not say it, no more than there is counted to be room for (`activations`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from t2eval.errors import T2Error

T = TypeVar("T")


class Parts:
    """The size of one forward and backward pass, as far as it is known.

    Args:
        largest: the most sequences of a pass; `size` is what memory has left of it.
    """

    def __init__(self, largest: int) -> None:
        self.size = largest

    def run(
        self,
        costs: Sequence[int],
        work: Callable[[list[int]], T],
        parameters: Iterable[nn.Parameter],
        *,
        lengths: Sequence[int] = (),
        room: int | None = None,
    ) -> Iterator[tuple[list[int], T]]:
        """Work through units of a step.

        Args:
            costs: how many sequences each unit has.
            work: forward and backward of some units, by their places in `costs`. What it adds to the gradients before it runs out of memory
                is taken back, and it is called again with fewer.
            parameters: whose gradients it adds to.
            lengths: the tokens of each unit's longest sequence.
            room: the most tokens of a pass, padding included; None: whatever the device takes. One unit alone may have more.

        Yields:
            The places of each part, and what `work` gave for it.

        Raises:
            T2Error: one unit alone is too much.
        """
        own, start = list(parameters), 0
        while start < len(costs):
            places = self._next(costs, start, lengths, room)
            before = [None if parameter.grad is None else parameter.grad.clone() for parameter in own]
            try:
                result = work(places)
            except (RuntimeError, MemoryError) as error:
                if not should_reduce_batch_size(error):
                    raise
                self._shrink(len(places), error)
            else:
                yield places, result
                start += len(places)
                continue
            _put_back(own, before)
            clear_device_cache(garbage_collection=True)  # only here is the failed pass no longer held by its traceback

    def _next(self, costs: Sequence[int], start: int, lengths: Sequence[int], room: int | None) -> list[int]:
        """As many units from `start` on as fit, one at least."""
        end, total, longest = start + 1, costs[start], 0 if room is None else lengths[start]
        while end < len(costs) and total + costs[end] <= self.size:
            if room is not None:
                longest = max(longest, lengths[end])
                if (total + costs[end]) * longest > room:
                    break
            total += costs[end]
            end += 1
        return list(range(start, end))

    def _shrink(self, units: int, error: BaseException) -> None:
        if self.size == 1 and units == 1:
            raise T2Error(
                "One answer alone is more than the memory holds in a forward and backward pass: give checkpoint_activations, a smaller "
                f"max_new_tokens, fewer layers or modules, dtype bfloat16, or a smaller model ({str(error).splitlines()[0]})."
            ) from error
        self.size = max(1, self.size // 2)


def _put_back(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
