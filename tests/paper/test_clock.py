"""The clock: seconds of items over several sessions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2eval.paper import clock as clock_module
from t2eval.paper.clock import SECONDS, Clock


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    return now


def test_seconds_add_up_over_sessions(tmp_path: Path, time: list[float]) -> None:
    first = Clock(tmp_path, 2)
    assert str(first) == "0 s"
    with first.running("table1"):
        time[0] += 30
    with pytest.raises(KeyboardInterrupt), first.running("table2"):
        time[0] += 7
        raise KeyboardInterrupt
    time[0] += 1000  # between items, and between sessions, nothing is counted
    second = Clock(tmp_path, 1)
    assert second.seconds("table2") == 7
    with second.running("table2"):
        time[0] += 5
    assert (second.seconds("table1"), second.seconds("table2"), second.seconds("table3")) == (30, 12, 0)
    assert str(second) == "5 s with 1 worker and 37 s with 2 workers"


def test_a_killed_session_keeps_its_last_step(tmp_path: Path, time: list[float]) -> None:
    clock = Clock(tmp_path, 2)
    with clock.running("table1"):
        time[0] += 3
        clock.save()
        time[0] += 4
        assert json.loads((tmp_path / SECONDS).read_text()) == {"table1": {"2": 3.0}}
    assert Clock(tmp_path, 2).seconds("table1") == 7
