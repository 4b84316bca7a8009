"""The CI files: they are in the package, and the shell form runs the gate."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from t2eval.errors import UsageError
from t2eval.leaderboard.ci import write_ci


def test_the_files_are_written_once_and_never_over_others(tmp_path: Path) -> None:
    workflow, script = write_ci(tmp_path)
    steps = yaml.safe_load(workflow.read_text())["jobs"]["leaderboard"]["steps"]
    assert "ci/leaderboard.sh runs/change runs/main" in [step.get("run") for step in steps]
    assert script == tmp_path / "ci" / "leaderboard.sh" and os.access(script, os.X_OK)
    assert write_ci(tmp_path) == [workflow, script], "the same files again are no other files"
    script.write_text("mine")
    workflow.unlink()
    with pytest.raises(UsageError, match=r"leaderboard.sh is there already, and is another file"):
        write_ci(tmp_path)
    assert script.read_text() == "mine" and not workflow.exists()
    with pytest.raises(UsageError, match="is not a folder"):
        write_ci(tmp_path / "nowhere")


def test_the_shell_form_runs_the_gate_and_gives_its_exit_code(tmp_path: Path) -> None:
    script = write_ci(tmp_path)[1]
    fake = tmp_path / "t2"
    fake.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ncase "$*" in *--fail-on-regression*) exit 3;; esac\n')
    fake.chmod(0o755)
    (tmp_path / "out").mkdir()
    environment = {**os.environ, "T2": str(fake), "BENCHMARK": "b.yaml", "LIMIT": "5"}
    first = subprocess.run([script, tmp_path / "out"], env=environment, check=False)
    assert first.returncode == 0
    second = subprocess.run([script, tmp_path / "out", tmp_path / "main"], env=environment, check=False)
    assert second.returncode == 3
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == f"bench b.yaml --output {tmp_path}/out --workers 1 --limit 5"
    assert calls[-1] == f"leaderboard {tmp_path}/out --fail-on-regression {tmp_path}/main"
