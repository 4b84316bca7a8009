"""Several processes: the same expert as one gives, from shares of each step's prompts. Each test launches torchrun for real."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2eval.errors import UsageError
from t2eval.training.config import TrainConfig
from t2eval.training.processes import Processes, check_trackers
from t2eval.training.train import train_expert


def _launch(settings: dict[str, Any], folder: Path, processes: int = 2) -> None:
    file = folder / "settings.json"
    file.write_text(json.dumps(settings, default=str))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, "-m", "tests.training.a_run", str(file)], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _trained(output: Path) -> dict[str, torch.Tensor]:
    last = max((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    return load_file(last / "trainable.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"task": "letters_generate", "baseline": "batch_mean", "batch_size": 10, "rollouts": 2}, id="sampled, five prompts"),
        pytest.param({"task": "letters_choice", "batch_size": 7, "temperature": 2.0}, id="choices"),
        pytest.param({"task": "letters_generate", "objective": "supervised", "batch_size": 1}, id="a process without examples"),
    ],
)
def test_two_processes_train_the_expert_that_one_does(changes: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "steps": 3, "lr": 0.01, "validate_every": 3, "test": False, **changes}
    one = train_expert(TrainConfig(**{**settings, "output": tmp_path / "one"}), progress=False)
    _launch({**settings, "output": tmp_path / "two"}, tmp_path)
    first, second = _trained(tmp_path / "one"), _trained(tmp_path / "two")
    moved = max((tensor - 1).abs().max().item() for tensor in first.values())
    assert moved > 5e-3, "the run learnt something"
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=0)
    rows = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")]
    assert [row["step"] for row in rows[1]] == [1, 2, 3], "one writer"
    for own, other in zip(*rows, strict=True):
        shared = own.keys() - {"seconds", "seconds_left"}
        assert shared == other.keys() - {"seconds", "seconds_left"}
        assert {key: own[key] for key in shared} == pytest.approx({key: other[key] for key in shared}, abs=1e-4)
    record = json.loads((tmp_path / "two" / "training.json").read_text())
    assert record["scores"]["after"]["validation"] == one.scores["after"]["validation"].model_dump()


def test_two_processes_end_by_one_clock(settings: dict[str, Any], tmp_path: Path) -> None:
    settings.pop("steps")
    _launch({**settings, "max_seconds": 2, "test": False, "validate_every": 1000, "output": tmp_path / "two"}, tmp_path)
    record = json.loads((tmp_path / "two" / "training.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert record["steps"] == len(rows) > 1 and rows[-1]["seconds"] >= 2 and rows[-1]["seconds_left"] == 0.0


def test_shares_are_consecutive_and_whole() -> None:
    processes = Processes(torch.device("cpu"))
    for count, length in itertools.product(range(1, 6), range(12)):
        processes.count, spans = count, []
        for rank in range(count):
            processes.rank = rank
            spans.append(processes.span(length))
        assert [place for start, end in spans for place in range(start, end)] == list(range(length))
        assert max(end - start for start, end in spans) - min(end - start for start, end in spans) <= 1


def test_a_tracker_that_would_get_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown tracker 'tensorbord'. Did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    with pytest.raises(UsageError, match="'aim' is not installed here. pip install aim"):
        check_trackers(["aim"])
