"""The shipped base has latent skill in every family, which a short supervised LoRA run brings out, and no seen task saturates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from peft import PeftModel

from t2eval.basemodel.folders import embedded_baseline_dir
from t2eval.basemodel.load import load_base
from t2eval.environment.loading import make_task_manager
from t2eval.paths import experts_dir

SKILLS = ("math", "code", "reasoning")


def _score(model: Any, tokenizer: Any, task: str) -> float:
    results: Any = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64),
        tasks=[task],
        task_manager=make_task_manager(task=task),
        limit=400,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
    )
    return float(next(value for key, value in results["results"][task].items() if key.startswith(("exact_match,", "pass@1,"))))


@pytest.mark.parametrize("skill", SKILLS)
def test_a_short_lora_run_lifts_each_seen_task(skill: str) -> None:
    model, tokenizer = load_base()
    task = f"embedded_{skill}_seen"
    base = _score(model, tokenizer, task)
    lora = _score(PeftModel.from_pretrained(model, embedded_baseline_dir("lora", skill, 0)), tokenizer, task)
    assert 0.30 <= base <= 0.80
    assert lora >= base + 0.15


@pytest.mark.parametrize("skill", SKILLS)
def test_the_best_method_is_below_the_ceiling(skill: str) -> None:
    found = [*experts_dir().glob(f"library/seed-*/{skill}/training.json"), *experts_dir().glob(f"baselines/seed-*/*-{skill}/training.json")]
    records = [json.loads(path.read_text()) for path in found]
    assert len(records) == 12  # one expert and three baselines of three seeds
    means = {
        method: sum(record["scores"]["after"]["test"]["score"] for record in records if record["method"] == method) / 3
        for method in ("svf", "lora", "ia3", "dora")
    }
    assert 0.80 <= max(means.values()) <= 0.97
    assert all(record["scores"]["after"]["test"]["n"] >= 400 for record in records)


@pytest.mark.parametrize("name", ["math", "code", "reasoning", "dispatch"])
def test_a_shipped_expert_rose_significantly(name: str) -> None:
    for path in experts_dir().glob(f"library/seed-*/{name}/training.json"):
        record = json.loads(path.read_text())
        assert record["comparison"]["p_value"] < 0.01
        assert record["comparison"]["gained"] > record["comparison"]["lost"]
