"""docs/scale.md and the table of docs/paper-models.md: what is counted there is what the code counts now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from t2eval.bench.plan import load_plan
from t2eval.forecast.constants import GPU
from t2eval.forecast.forecast import Forecast, forecast
from t2eval.forecast.shape import model_shape

PAPER = ("paper-llama3-8b", "paper-mistral-7b", "paper-llama3-70b")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Forecast]:
    return {name: forecast(load_plan(name), tmp_path_factory.mktemp("nothing") / name) for name in PAPER}


def table(page: Path) -> dict[str, list[str]]:
    """First cell → the others, of every row of the page's tables."""
    lines = [line.strip(" |").split("|") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return {first.strip(" *"): [cell.strip(" *") for cell in rest] for first, *rest in lines}


def number(cell: str) -> float:
    match = re.search(r"[\d.,]+", cell)
    assert match, cell
    return float(match[0].replace(",", ""))


def agree(cell: str, value: float) -> None:
    """A number is the value, rounded to the digits that are shown."""
    shown = number(cell)
    half = 0.5 if "." not in cell else 0.05
    assert abs(shown - value) <= half, (cell, value)


def hours(plan: Forecast) -> dict[str, float]:
    experts = sum(work.hours.value or 0.0 for work in plan.trainings if "-" not in work.name)
    baselines = sum(work.hours.value or 0.0 for work in plan.trainings if "-" in work.name)
    return {"four experts": experts, "nine baselines": baselines, "48 cells": sum(work.hours.value or 0.0 for work in plan.evaluations)}


def test_70b_is_what_the_plan_says(root: Path, found: dict[str, Forecast]) -> None:
    plan, page = found["paper-llama3-70b"], table(root / "docs" / "scale.md")
    rows = {
        "weights": plan.memory["weights"],
        "singular bases Q of 280 matrices": plan.memory["bases"],
        "base weights that wait beside merged ones": plan.memory["kept"],
        "keys, values and logits of 16 answers": plan.memory["cache"],
        "evaluation": plan.needed(False),
        "activations of 2 answers of full length": plan.memory["activations"],
        "training": plan.needed(True),
    }
    for name, figure in rows.items():
        agree(page[name][0], (figure.value or 0.0) / 1e9)
    for name, value in hours(plan).items():
        agree(page[name][0], value)
    said = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"{plan.hours().value:.0f} hours, {(plan.hours().value or 0) / 24:.0f} days" in said
    assert f"bases take {(plan.disk['bases'].value or 0) / 1e9:.0f} GB more" in said


def test_a_thousand_experts_are_their_numbers_times_four_bytes(root: Path, found: dict[str, Forecast]) -> None:
    page = table(root / "docs" / "scale.md")
    for column, name in ((1, "paper-llama3-8b"), (2, "paper-llama3-70b")):
        one = found[name].trainable.value or 0.0
        assert number(page["numbers of one expert"][column]) == one
        for row in ("on the disk", "in memory, all loaded"):
            agree(page[row][column], 1000 * 4 * one / 1e9)
    agree(page["merge one"][2], GPU.merge * (found["paper-llama3-70b"].parameters.value or 0.0) / GPU.parameters)


def test_the_size_of_adapters_beside_them(root: Path) -> None:
    shape = model_shape(load_plan("paper-llama3-8b").config)
    size = 1000 * 4 * sum(16 * (matrix.out + matrix.into) for matrix in shape.matrices) / 1e9
    assert f"are {size:.0f} GB in float32" in (root / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_table_of_the_papers_models(root: Path, found: dict[str, Forecast]) -> None:
    page = table(root / "docs" / "paper-models.md")
    for column, name in enumerate(PAPER):
        plan = found[name]
        agree(page["weights to download"][column], (plan.disk["download"].value or 0.0) / 1e9)
        agree(page["GPU memory: evaluation, with the base's weights beside merged ones"][column], (plan.needed(False).value or 0.0) / 1e9)
        agree(page["GPU memory: training, at answers of full length"][column], (plan.needed(True).value or 0.0) / 1e9)
        for row, value in zip(
            ("hours: four experts", "hours: nine baselines", "hours: evaluation of all 48 cells"), hours(plan).values(), strict=True
        ):
            agree(page[row][column], value)
