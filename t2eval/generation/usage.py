"""Usage: the seconds and tokens that one pass of an evaluation or one step of training has cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Usage:
    """What was spent so far: wall-clock seconds, and tokens that the model read or wrote (padding is not counted)."""

    seconds: float = 0.0
    tokens: int = 0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def record(self) -> dict[str, float | int]:
        return {"seconds": round(self.seconds, 3), "tokens": self.tokens}
