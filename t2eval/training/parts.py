"""Parts: a step's answers in passes that fit in memory, begun with the size that was asked for and halved where that is too much."""

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
        self, costs: Sequence[int], work: Callable[[list[int]], T], parameters: Iterable[nn.Parameter]
    ) -> Iterator[tuple[list[int], T]]:
        """Work through units of a step.

        Args:
            costs: how many sequences each unit has.
            work: forward and backward of some units, by their places in `costs`. What it adds to the gradients before it runs out of memory
                is taken back, and it is called again with fewer.
            parameters: whose gradients it adds to.

        Yields:
            The places of each part, and what `work` gave for it.

        Raises:
            T2Error: one unit alone is too much.
        """
        own, start = list(parameters), 0
        while start < len(costs):
            places = self._next(costs, start)
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

    def _next(self, costs: Sequence[int], start: int) -> list[int]:
        """As many units from `start` on as fit, one at least."""
        end, total = start + 1, costs[start]
        while end < len(costs) and total + costs[end] <= self.size:
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
