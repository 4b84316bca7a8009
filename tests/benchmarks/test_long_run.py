"""The long run's verdict: what grows is named, and what only varies is not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.long_run import Measured, judged, slope

_IDLE = Measured(0.0, 30.0, 25.0, 400 * 2**20, 600 * 2**20, 44, 12, 7, 0, 0)


def _samples(change: Callable[[Measured, int], Measured], rounds: int = 40) -> list[Measured]:
    noise = random.Random(0)
    found = []
    for number in range(rounds):
        sample = replace(_IDLE, hours=number / rounds, children_bytes=_IDLE.children_bytes + noise.randrange(10 * 2**20))
        found.append(change(sample, number))
    return found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda sample, number: sample, []),
        (lambda sample, number: replace(sample, descriptors=44 + (number == 20)), []),  # once more, and back again
        (lambda sample, number: replace(sample, parent_bytes=(100 if number == 0 else 400) * 2**20), []),  # the warm-up
        (lambda sample, number: replace(sample, children_bytes=sample.children_bytes + number * 2**21), ["children_bytes"]),
        (lambda sample, number: replace(sample, descriptors=44 + number // 4), ["descriptors"]),
        (lambda sample, number: replace(sample, threads=12 + number // 10, temporary_files=number), ["threads", "temporary_files"]),
    ],
)
def test_what_grows_is_named(change: Callable[[Measured, int], Measured], expected: list[str]) -> None:
    assert judged(_samples(change), percent=2.0)[1] == expected


def test_the_slope_is_the_line_through_the_points() -> None:
    line = slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0])
    assert (line.mean, line.an_hour) == (4.0, 2.0) and line.half < 1e-6
    noisy = slope([0.0, 1.0, 2.0], [0.0, 2.0, 1.0])
    # By hand: b = 0.5, residuals -0.5, 1, -0.5; s² = 1.5; se(b) = sqrt(1.5 / 2); t(0.975, 1) = 12.7062
    assert noisy.an_hour == pytest.approx(0.5) and noisy.half == pytest.approx(12.7062 * math.sqrt(0.75), rel=1e-4)
    assert slope([0.0, 1.0, 2.0], [5.0, 5.0, 5.0]).half == 0.0
