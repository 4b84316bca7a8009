"""Processes: the data parallelism of a run, on accelerate: who takes which examples, and what is summed, gathered and said by the first.

Started by torchrun or `accelerate launch`, each process takes a consecutive share of a step's examples, and the few trainable parameters'
gradients are summed by hand once a step. The model is not wrapped, so that hooks, merging and adapters work as in one process, and the
processes may make different numbers of forward and backward passes. Everything is gathered in the order of the shares: what is computed
from it is the same on every process, and the same as in one process up to the order of sums.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from t2eval.errors import UsageError, unknown

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long a process waits for the first one, which alone scores the test split. torchrun ends the others where one fails."""


class Processes:
    """The processes of one run: torchrun's, or this one alone.

    Args:
        device: where the model is; processes on CPUs talk by gloo.
        trackers: accelerate's trackers that get each step (`begin_tracking`).
        folder: where trackers write.

    Attributes:
        rank: of this process. count: of processes. first: whether this is the one that writes and speaks.

    Raises:
        UsageError: a tracker that accelerate does not know, or whose package is not installed.
    """

    def __init__(self, device: torch.device, *, trackers: Sequence[str] = (), folder: Path | None = None) -> None:
        check_trackers(trackers)
        parallel = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._accelerator = Accelerator(
            cpu=parallel and device.type == "cpu",  # alone, nothing of the machine's state depends on the device
            log_with=list(trackers) or None,
            project_dir=str(folder) if folder is not None else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
        self.rank, self.count = int(self._accelerator.process_index), int(self._accelerator.num_processes)
        self.first = self.rank == 0
        if self.count > 1:
            atexit.register(_leave_group)  # a group that is left open may abort the process at its end

    def begin_tracking(self, settings: Mapping[str, Any]) -> None:
        """Tell the trackers, if there are any, of a run and its settings."""
        self._accelerator.init_trackers("t2eval", config={key: _plain(value) for key, value in settings.items()})

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does what is inside before the others do, which find its caches filled."""
        with self._accelerator.main_process_first():
            yield

    def span(self, length: int) -> tuple[int, int]:
        """The places, of `length` many, that are this process's: `[start, end)`. Shares differ by one at most, and may be empty."""
        return self.rank * length // self.count, (self.rank + 1) * length // self.count

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of what every process has in whole."""
        start, end = self.span(len(items))
        return items[start:end]

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the order of ranks: the inverse of `share`."""
        return list(gather_object(list(items))) if self.count > 1 else list(items)

    def gather_tensor(self, rows: Tensor) -> Tensor:
        """The rows of all processes, (rows of all, …), in the order of ranks and on the CPU; a process may have none."""
        if self.count == 1:
            return rows
        parts: list[Tensor] = gather_object([rows.detach().cpu()])
        return torch.cat(parts)

    def from_first(self, value: T) -> T:
        """The first process's value, on all of them."""
        if self.count == 1:
            return value
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def any(self, value: bool) -> bool:
        """Whether it is true on any process."""
        return any(self.gather([value]))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the sum of all processes' gradients in the place of each one's; no gradient counts as 0."""
        own = list(parameters)
        for parameter in own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            return
        flat = torch.cat([parameter.grad.flatten().float() for parameter in own if parameter.grad is not None])  # (all parameters,)
        total = self._accelerator.reduce(flat.to(self._accelerator.device), reduction="sum").to(flat.device)
        for parameter, part in zip(own, total.split([parameter.numel() for parameter in own]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def wait(self) -> None:
        """Go on when all processes are here."""
        self._accelerator.wait_for_everyone()

    def track(self, row: Mapping[str, Any], step: int) -> None:
        """Hand a step's numbers to the trackers."""
        numbers = {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "step"}
        self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        """End the trackers. The group of processes stays: another run may follow."""
        for tracker in self._accelerator.trackers:
            tracker.finish()


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that would not get anything: accelerate leaves them out without a word.

    Raises:
        UsageError: an unknown one, or one whose package is not installed.
    """
    have = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown("tracker", name, [str(known) for known in LOGGER_TYPE_TO_CLASS])
        if name not in have:
            raise UsageError(f"report_to: the tracker {name!r} is not installed here. pip install {name.replace('_', '-')}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)
