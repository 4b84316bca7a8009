"""The real model on the real rows: lm-eval's own tasks through its own class, and through ours, to the last digit.

Runs where `T2EVAL_ROWS` names a folder of the real rows (tests/tasks/test_real_rows.py) and the extra `smollm2` is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2eval.basemodel.load import load_base
from t2eval.basemodel.packaged import packaged_obstacle, unpacked
from t2eval.environment.environment import make_task_manager
from t2eval.environment.plain import plain_model
from t2eval.paths import SMOLLM2, smollm2_library
from tests.offline_datasets import datasets_cache, write_hub

ROWS = os.environ.get("T2EVAL_ROWS", "")
TASKS = ["arc_easy", "arc_challenge"]
LIMIT = 6
pytestmark = [
    pytest.mark.skipif(not ROWS, reason="T2EVAL_ROWS names no folder of real rows"),
    pytest.mark.skipif(packaged_obstacle() is not None, reason="the extra smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    cache = tmp_path_factory.mktemp("real")
    write_hub(cache, hub=Path(ROWS))
    with datasets_cache(cache):
        yield


def evaluated(model: Any, **arguments: Any) -> dict[str, Any]:
    """lm-eval's results on the first rows of both tasks."""
    import lm_eval

    manager = make_task_manager()
    found: dict[str, Any] = lm_eval.simple_evaluate(model, tasks=TASKS, limit=LIMIT, task_manager=manager, bootstrap_iters=0, **arguments)
    return found


def answered(model: Any, **arguments: Any) -> dict[str, list[tuple[int, Any, float]]]:
    """Task → document, the log-likelihoods of its choices, whether the answer is right."""
    results = evaluated(model, **arguments)
    return {task: [(each["doc_id"], each["filtered_resps"], each["acc"]) for each in results["samples"][task]] for task in TASKS}


def test_the_base_is_lm_evals_own_to_the_last_digit(rows: None) -> None:
    theirs = answered("hf", model_args={"pretrained": str(unpacked()), "dtype": "float32", "device": "cpu"}, batch_size=4)
    ours = answered(plain_model(*load_base(SMOLLM2, device="cpu"), batch_size=4))
    assert ours == theirs and all(len(each) == LIMIT for each in ours.values())


def test_a_strategy_finds_the_checkouts_experts(rows: None) -> None:
    if not smollm2_library().is_dir():
        pytest.skip("this is no checkout that holds them")
    arguments = {"pretrained": SMOLLM2, "device": "cpu", "shots": 4, "iterations": 1, "population": 4}
    found = evaluated("t2-fewshot", model_args=arguments, batch_size=4)
    t2 = found["config"]["t2"]
    assert t2["alpha_order"] == ["reasoning"] and set(t2["alphas"]) == set(TASKS)
    for task in TASKS:
        (alpha,) = t2["alphas"][task]
        assert alpha > 0  # the expert is in the answer
        assert len(found["samples"][task]) == LIMIT
