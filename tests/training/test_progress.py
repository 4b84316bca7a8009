"""Progress: what is shown where nobody sees a bar."""

from __future__ import annotations

import time

import pytest

from t2eval.training.progress import QUIET_SECONDS, Lines, describe, show


def test_a_file_gets_a_line_before_half_a_minute_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert QUIET_SECONDS < 30
    lines = Lines("svf letters", quiet=0.1)
    time.sleep(0.35)
    waiting = capsys.readouterr().err.splitlines()
    assert len(waiting) >= 2 and all(line.startswith("svf letters: validating the base model") for line in waiting)
    lines.report({"step": 1, "reward": 0.5, "seconds_left": 100.0})
    time.sleep(0.35)
    working = capsys.readouterr().err.splitlines()
    assert len(working) >= 2 and all("step 1 · reward +0.50" in line and " left" in line for line in working)
    lines.close()
    time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_each_validation_has_its_line_and_steps_between_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(True, "svf letters")
    assert isinstance(lines, Lines), "standard error is no terminal here"
    lines.report({"step": 1, "loss": 2.0, "seconds_left": 9.0})
    lines.report({"step": 2, "loss": 1.0, "validation": 0.25, "seconds_left": 8.0})
    lines.close()
    assert capsys.readouterr().err.splitlines() == ["svf letters: step 2 · loss 1.000 · validation 0.250 · 0:08 left"]


def test_a_row_in_a_line() -> None:
    row = {"step": 3, "reward": -1.0, "kl": 0.02, "loss": 5.0, "validation": None, "seconds_left": 61.0}
    assert describe(row) == "step 3 · reward -1.00 · KL 0.020 · 1:01 left"
