"""Noise: what other libraries say of themselves does not reach the user of t2's commands, where the output goes to a file."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2eval.environment import quiet


def stderr_of(root: Path, folder: Path, *arguments: str) -> str:
    """The standard error of a t2 command in a folder outside of any git repository, as a file holds it."""
    environment = {key: value for key, value in os.environ.items() if key not in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY")}
    environment |= {"PYTHONPATH": str(root), "GIT_CEILING_DIRECTORIES": str(folder.parent), "LC_ALL": "C.UTF-8"}
    log = folder / "stderr.log"
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, str(root / "cli.py"), *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=file, timeout=600, text=True)
    text = log.read_bytes().decode()  # carriage returns as they are
    assert done.returncode == 0, text
    return text


def assert_quiet(text: str) -> None:
    for noise in ("\r", "\x1b", "fatal", "Warning", "warning", "it/s", "deprecated"):
        assert noise not in text, f"{noise!r} in:\n{text}"


def test_train_expert_says_only_its_own(root: Path, tmp_path: Path) -> None:
    small = ("--steps", "2", "--device", "cpu", "--set", "batch_size=8", "--set", "validation_limit=8", "--set", "test_limit=8")
    text = stderr_of(root, tmp_path, "train-expert", "--task", "embedded_math_seen", "--output", "math", *small)
    assert_quiet(text)
    assert "embedded_math_seen" in text  # something was said: the log is where this test looks for it


def test_bench_says_only_its_own(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text("name: small\ntasks: [embedded_math_seen]\nmethods: [base, expert]\ndevice: cpu\n")
    text = stderr_of(root, tmp_path, "bench", "bench.yaml", "--limit", "4", "--output", "out")
    assert_quiet(text)
    assert "embedded_math_seen" in text


def test_mix_says_nothing(root: Path, tmp_path: Path) -> None:
    math = str(root / "experts" / "library" / "seed-0" / "math")
    assert stderr_of(root, tmp_path, "expert", "mix", math, "--alphas", "0.5", "--output", "half") == ""


def test_tasks_says_nothing(root: Path, tmp_path: Path) -> None:
    assert stderr_of(root, tmp_path, "tasks") == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_that_asks_to_be_shown_is_not_shown_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm import std
    from tqdm.auto import tqdm

    monkeypatch.setattr(std.tqdm, "__init__", std.tqdm.__init__)  # put back afterwards
    quiet.calm_bars()
    quiet.calm_bars()
    out = io.StringIO()
    for _ in tqdm(range(3), file=out, disable=False):
        pass
    assert out.getvalue() == ""
    screen = Terminal()
    for _ in tqdm(range(3), file=screen, disable=False, delay=0, mininterval=0):
        pass
    assert "3/3" in screen.getvalue()
    assert screen.getvalue().endswith("\r")  # and it is gone


def test_git_does_not_complain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from lm_eval import evaluator
    from lm_eval.loggers import utils

    monkeypatch.setattr(evaluator, "get_git_commit_hash", utils.get_git_commit_hash)  # whatever another test has put there
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    evaluator.get_git_commit_hash()
    assert "fatal" in capfd.readouterr().err  # lm-eval's own does
    quiet.quiet_git()
    assert evaluator.get_git_commit_hash() is None
    assert capfd.readouterr().err == ""


def test_errors_of_other_libraries_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet.quiet_lm_eval()
    assert logging.getLogger("lm_eval").isEnabledFor(logging.ERROR)
    assert not logging.getLogger("lm_eval").isEnabledFor(logging.WARNING)
