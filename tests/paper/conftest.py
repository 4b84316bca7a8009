"""What the tests of the items share: a lab whose cells and trainings come from a formula, so that every number can be computed again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t2eval.bench import rows
from t2eval.bench.execute import Progress, RunResult
from t2eval.bench.plan import Cell, Plan
from t2eval.bench.rows import Row, Sample, write_samples
from t2eval.paper import lab as lab_module
from t2eval.paper.lab import Lab, Training
from t2eval.paper.presets import preset
from t2eval.stats.means import mean_stderr
from tests.bench.fakes import number

EXAMPLES = 40
SKILL = {"base": 45, "prompt": 60, "cls": 70, "fewshot": 80, "expert": 85, "lora": 55, "ia3": 65, "dora": 50}
STEPS = (4, 8, 12)


def fake_samples(plan: Plan, cell: Cell) -> list[Sample]:
    """Scores and dispatch labels that depend on the study, the cell and the example alone."""
    skill = SKILL[cell.method] + number(plan.config.name, cell.key) % 12 - 6
    labels = ("math", "code", "reasoning", "others")
    dispatches = cell.method in ("prompt", "cls")
    return [
        Sample(
            doc_id=i,
            doc_hash=f"{cell.task}-{i}",
            score=float(number(cell.task, i) % 100 < skill),
            response=f"answer {i}",
            dispatch=labels[number(cell.key, i, "label") % 4] if dispatches else None,
        )
        for i in range(plan.config.limit or EXAMPLES)
    ]


def fake_row(plan: Plan, output: Path, cell: Cell) -> Row:
    """A finished cell."""
    samples = fake_samples(plan, cell)
    score, stderr = mean_stderr([sample.score or 0.0 for sample in samples])
    first, second = (number(plan.config.name, cell.key, name) % 900 + 100 for name in ("first", "second"))
    passes = {name: {"seconds": value / 100, "tokens": value} for name, value in (("first_pass", first), ("second_pass", second))}
    return Row(
        cell=cell.key, model=cell.model, method=cell.method, task=cell.task, seed=cell.seed, status="ok", metric="acc", score=score,
        stderr=stderr, n=len(samples), trainable_parameters=SKILL[cell.method] * 10, t2=passes,
        samples=write_samples(output, cell.key, samples),
    )  # fmt: skip


def fake_run(plan: Plan, output: Path, *, pool: Any, progress: Any, factory: Any) -> RunResult:
    """Stands for `execute.run`, in this process and at once."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(plan.config.model_dump_json())
    finished = {row.cell for row in rows.read(output)}
    for cell in plan.cells:
        if cell.key not in finished:
            rows.append(output, fake_row(plan, output, cell))
    progress(Progress(len(plan.cells), len(plan.cells), None, 0.0))
    wanted = {cell.key for cell in plan.cells}
    return RunResult(tuple(row for row in rows.read(output) if row.cell in wanted), len(finished))


def fake_validations(training: Training) -> list[float]:
    """What a fake training's validations gave, at `STEPS`."""
    return [(number(training.name, step) % 64) / 64 for step in STEPS]


def fake_train(trainings: Any, pool: Any, say: Any, log: Any) -> None:
    """Stands for the trainings: writes what they leave."""
    for training in trainings:
        scores = fake_validations(training)
        best = max(scores)
        training.output.mkdir(parents=True)
        sampled = {"accuracy": 0.25, "truncated": 0.5, "tokens": 12.4}
        log = [{"step": step, "validation": score, **sampled} for step, score in zip(STEPS, scores, strict=True)]
        (training.output / "log.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [{"step": 1, "loss": 0.1, **sampled, "tokens": 40.0}, *log])
        )
        record = {
            "chosen_step": STEPS[scores.index(best)],
            "seconds": 1.0,
            "scores": {
                "before": {"validation": {"score": 0.5, "stderr": 0.0625, "n": 64}},
                "after": {"validation": {"score": best, "stderr": 0.05, "n": 64}},
            },
        }
        (training.output / "training.json").write_text(json.dumps(record))
        say(f"trained {training}")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "run", fake_run)
    monkeypatch.setattr(lab_module, "train", fake_train)


@pytest.fixture
def lab(tmp_path: Path, fakes: None) -> Lab:
    """The embedded preset with two seeds and two learning rates, on fakes."""
    small = replace(
        preset("embedded"),
        seeds=(0, 1),
        limit=None,
        rates=(5e-4, 2e-3),
        policy_rates=(5e-4, 2e-2),
        rate_factors={"svf": (4,), "lora": (4,)},
    )
    return Lab(tmp_path / "out", small, say=lambda _: None)
