"""Memory: the highest use by this process while a cell runs."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


class PeakMemory:
    """The highest memory of this process since construction: the GPU's where there is one, else resident memory, in bytes.

    Args:
        device: where the model is.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            # Linux forgets the high-water mark on request; elsewhere the mark covers the process's whole life.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        """So far."""
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated())
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024
