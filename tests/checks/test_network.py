"""No network call where none is needed, and no telemetry: the embedded base is loaded, evaluated and reported with every socket refused."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t2eval.bench.config import BenchConfig
from t2eval.bench.plan import make_plan, parse_config
from t2eval.bench.rows import append
from t2eval.bench.worker import Worker
from t2eval.leaderboard.report import leaderboard
from t2eval.training.config import TrainConfig
from tests import network

SWITCHES = (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_EVALUATE_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "TRANSFORMERS_OFFLINE",
)


IMPORTED = ("lm_eval.evaluator", "transformers.models.auto.modeling_auto", "t2eval.basemodel.load", "t2eval.models.text")
for _name in IMPORTED:  # while the tests are collected: what they ask for is noted
    importlib.import_module(_name)


def _online() -> None:
    """What the suite and the user have switched off is on again: in the environment, and in what libraries read from it when imported."""
    for name in SWITCHES:
        os.environ.pop(name, None)
    for module in list(sys.modules.values()):
        for name in SWITCHES:
            if isinstance(getattr(module, "__dict__", {}).get(name), bool):
                setattr(module, name, False)


def _one_cell(folder: Path, answers: Any) -> None:
    """In a process of its own: one benchmark and its table, then a call that is meant to be seen."""
    asked: list[str] = []

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in network.ASKED:
            asked.append(f"{event} {network.address(event, arguments)}")
            raise OSError("no network here")

    _online()
    sys.addaudithook(refuse)
    plan = make_plan(parse_config({"tasks": ["embedded_math_seen"], "methods": ["base"], "limit": 1, "seeds": [0]}, "here"))
    worker = Worker(plan.config, folder)
    worker.open()
    rows = [worker.run(cell) for cell in plan.cells]
    for row in rows:
        append(folder, row)
    table = leaderboard(folder).to_markdown()
    needed = list(asked)
    with contextlib.suppress(OSError):
        socket.create_connection(("example.org", 80), timeout=1)
    answers.send(([(row.status, row.error) for row in rows], table, needed, asked))
    answers.close()


def test_the_embedded_base_needs_no_network(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_one_cell, args=(tmp_path, there))  # with all imports: they take seconds
    process.start()
    there.close()
    try:
        assert here.poll(300), "no answer"
        rows, table, needed, seen = here.recv()
    finally:
        process.kill()
        process.join()
    assert rows == [("ok", None)]
    assert "embedded_math_seen" in table
    assert needed == []
    assert len(seen) == 1 and "example.org" in seen[0]


def test_nothing_is_asked_for_by_an_import() -> None:
    assert set(IMPORTED) <= set(sys.modules)
    assert network.imports == []


def test_telemetry_of_the_hub_is_off_whichever_is_imported_first() -> None:
    program = (
        "import {0}, {1}, huggingface_hub.constants as c, os; print(c.HF_HUB_DISABLE_TELEMETRY, os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    environment = {key: value for key, value in os.environ.items() if key not in SWITCHES}
    for names in (("t2eval", "huggingface_hub"), ("huggingface_hub.constants", "t2eval")):
        command = [sys.executable, "-c", program.format(*names)]
        assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split() == ["True", "1"]
    asked = {**environment, "HF_HUB_DISABLE_TELEMETRY": "0"}  # a user's own word stands
    command = [sys.executable, "-c", program.format("t2eval", "huggingface_hub")]
    assert subprocess.run(command, env=asked, capture_output=True, text=True, check=True).stdout.split() == ["False", "0"]


def test_ray_reports_no_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from t2eval.workers import ray_pool

    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    seen: list[str | None] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED")))
    assert ray_pool._connect(None)
    assert seen == ["0"]
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)


def test_no_tracker_runs_unless_it_is_asked_for() -> None:
    assert TrainConfig(task="t", output="o").report_to == ()
    plan = make_plan(parse_config({"tasks": ["embedded_math_seen"], "methods": ["base"]}, "here"))
    assert isinstance(plan.config, BenchConfig) and not getattr(plan.config, "report_to", ())
