"""Trackers of a benchmark: the same names in TensorBoard and in Weights & Biases, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2eval.bench.rows import Row
from t2eval.bench.trackers import FOLDER, Trackers, figures
from t2eval.errors import UsageError


def row(method: str, seed: int = 0, **changes: object) -> Row:
    fields = {"score": 0.5 + seed / 10, "stderr": 0.1, "n": 20, "seconds": 3.0, "status": "ok"} | changes
    return Row(cell=f"m__{method}__t__seed{seed}", model="m", method=method, task="t", seed=seed, **fields)  # type: ignore[arg-type]


ROWS = [row("base"), row("fewshot"), row("fewshot", 1, stderr=None), row("cls", status="failed", score=None)]
CELLS = {"t/base/seed-0", "t/fewshot/seed-0", "t/fewshot/seed-1"}
NAMES = {f"{cell}/{figure}" for cell in CELLS for figure in ("score", "stderr", "n", "seconds")} - {"t/fewshot/seed-1/stderr"}


def log(names: list[str], folder: Path) -> None:
    with Trackers(names, folder, {"name": "mine", "tasks": ("t",), "limit": None}) as trackers:
        for step, each in enumerate(ROWS, start=1):
            trackers.log(each, step)


def test_tensorboard_has_each_cell(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log(["tensorboard"], tmp_path)
    (events,) = [file for file in (tmp_path / FOLDER).rglob("events.out.*") if file.parent.name == "t2eval"]
    found = accumulators.EventAccumulator(str(events)).Reload()
    assert set(found.Tags()["scalars"]) == NAMES
    (score,) = found.Scalars("t/fewshot/seed-1/score")
    assert (score.step, round(score.value, 3)) == (3, 0.6)


def test_wandb_has_the_same_names_and_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with Trackers(["wandb"], tmp_path, {"name": "mine"}) as trackers:
        for step, each in enumerate(ROWS, start=1):
            trackers.log(each, step)
        trackers.log(row("lora"), len(ROWS) + 1)  # a step is whole when the next one begins
        summary = dict(wandb.run.summary)
    assert {name for name in summary if not name.startswith("_")} == NAMES
    assert summary["t/fewshot/seed-1/score"] == pytest.approx(0.6)
    assert list((tmp_path / FOLDER).rglob("*.wandb")), "nothing was kept for `wandb sync`"


def test_a_failed_cell_has_no_figures_and_nothing_is_nothing(tmp_path: Path) -> None:
    assert figures(ROWS[-1]) == {} and "t/fewshot/seed-1/stderr" not in figures(ROWS[2])
    log([], tmp_path)
    assert not (tmp_path / FOLDER).exists()
    with pytest.raises(UsageError, match="Did you mean 'tensorboard'"):
        log(["tensorbord"], tmp_path)
