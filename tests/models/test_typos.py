"""Typos under lm-eval's command line: one message, no stack trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2eval.models.launch import typo_message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Tasks not found: embedded_math_unsen"), "Did you mean 'embedded_math_unseen'"),
        (ValueError("Attempted to load model 't2-fewshto', but no model for this name found!"), "Did you mean 't2-fewshot'"),
        (KeyError("Unknown model 't2-clss'"), "Did you mean 't2-cls'"),
    ],
)
def test_what_is_meant_is_named(error: Exception, said: str) -> None:
    assert said in (typo_message(error) or "")


def test_an_unknown_models_message_lists_lm_evals_own_models_too() -> None:
    said = typo_message(ValueError("Attempted to load model 't2-nonsense', but no model for this name found!")) or ""
    assert "'t2-nonsense'" in said
    assert "hf" in said.split("lm-eval's own: ")[1].split(", ")


@pytest.mark.parametrize("error", [ValueError("shapes differ"), RuntimeError("Tasks not found: x"), ValueError()])
def test_other_errors_are_not_explained_away(error: Exception) -> None:
    assert typo_message(error) is None


def test_a_tasks_typo_is_one_message(root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "t2eval" / "bridge")])}
    code = "import sys, t2eval_bridge as b; b.install(); sys.argv[0] = 'lm_eval'; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    command = [sys.executable, "-c", code, "--model", "t2-cls", "--tasks", "embedded_math_unsen"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith("t2eval: Unknown task 'embedded_math_unsen'. Did you mean 'embedded_math_unseen'")
    )
