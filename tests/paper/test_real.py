"""Items on the embedded base itself, small: what the fakes of the other tests stand for is there, and the numbers are lm-eval's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from lm_eval import simple_evaluate

from t2eval.basemodel.folders import embedded_library_dir
from t2eval.environment.loading import make_task_manager
from t2eval.paper.item import item
from t2eval.paper.lab import Lab
from t2eval.paper.presets import preset
from t2eval.paper.report import run_item

LIMIT = 6


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    small = replace(preset("embedded", quick=True), limit=LIMIT, unseen={"reasoning": "embedded_reasoning_unseen"})
    with Lab(tmp_path_factory.mktemp("real"), small, workers=2, say=lambda line: None) as lab:
        yield lab


def rows_of(lab: Lab, name: str) -> list[dict[str, Any]]:
    return [dict(row) for row in run_item(item(name), lab).result.rows]


def test_figure7_on_the_real_base(real: Lab) -> None:
    rows = rows_of(real, "figure7")
    (found,) = [row for row in rows if row["kind"] == "alphas"]
    assert set(found["alphas"]) == {"code", "math", "reasoning"} and sum(found["normalised"].values()) == pytest.approx(1)
    scores = {row["way"]: row for row in rows if row["kind"] == "score"}
    results = simple_evaluate(
        "t2-expert",
        model_args={"experts": str(embedded_library_dir(0)), "alphas": "+".join(["0.333333333"] * 3)},
        tasks=["embedded_reasoning_unseen"],
        limit=LIMIT,
        bootstrap_iters=0,
        task_manager=make_task_manager(task="embedded_reasoning_unseen"),
    )
    assert results is not None
    (metric,) = (
        name
        for name in results["results"]["embedded_reasoning_unseen"]
        if name.startswith(scores["even mix"]["metric"]) and "stderr" not in name
    )
    assert scores["even mix"]["score"] == pytest.approx(results["results"]["embedded_reasoning_unseen"][metric])


def test_table10_on_the_real_base(real: Lab) -> None:
    rows = {row["budget"]: row for row in rows_of(real, "table10")}
    full, light = rows["CEM, 10 shots, 4 iterations"], rows["CEM light, 3 shots, 2 iterations"]
    assert 1 + 4 * 32 >= full["evaluations"] > light["evaluations"] > 0
    assert full["answers"] == 10 * full["evaluations"] and light["answers"] == 3 * light["evaluations"]
    assert all(row["n"] == LIMIT for row in rows.values()) and full["first_pass_seconds"] > 0
