"""The shipped experts and baselines of the vision-language model: what their records say, and that lm-eval sees the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate

from t2eval.basemodel.load import load_base
from t2eval.environment.loading import make_task_manager
from t2eval.expert.expert import Expert
from t2eval.models import images as t2
from t2eval.paths import experts_dir
from t2eval.strategies.dispatch import DISPATCH_LABEL

SEEDS, BASELINES = (0, 1, 2), ("lora", "ia3", "dora")
CLASSES = {"expert": t2.T2ExpertVlm, "prompt": t2.T2PromptVlm, "cls": t2.T2ClsVlm, "fewshot": t2.T2FewshotVlm}


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return found


@pytest.fixture(scope="module")
def base() -> Any:
    return load_base("embedded-vlm")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)


def _run(lm: Any, task: str, limit: int) -> dict[str, Any]:
    manager = make_task_manager(task=task)
    found = simple_evaluate(lm, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, verbosity="ERROR")
    assert found is not None
    return dict(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_gained_significantly_on_the_test_split(seed: int) -> None:
    root = experts_dir()
    folders = [root / "vlm-library" / f"seed-{seed}" / name for name in ("vision", "dispatch")]
    folders += [root / "vlm-baselines" / f"seed-{seed}" / f"{method}-vision" for method in BASELINES]
    for folder in folders:
        comparison = record(folder)["comparison"]
        assert comparison["n"] == 500 and comparison["gained"] > comparison["lost"], folder
        assert comparison["p_value"] < 0.05, folder
        assert record(folder)["seed"] == seed
        assert not (folder / "checkpoints").exists(), "tidied"


def test_experts_have_kilobytes_and_all_of_it_is_small() -> None:
    root = experts_dir()
    for seed in SEEDS:
        expert = Expert.load(root / "vlm-library" / f"seed-{seed}" / "vision")
        assert sum(z.numel() for z in expert.z.values()) == 1792, "two of four layers"
        assert (root / "vlm-library" / f"seed-{seed}" / "vision" / "expert.safetensors").stat().st_size < 10_000
    shipped = [*(root / "vlm-library").rglob("*"), *(root / "vlm-baselines").rglob("*")]
    assert sum(path.stat().st_size for path in shipped if path.is_file()) < 1_500_000


def test_a_shipped_expert_gains_again_where_lm_eval_asks(base: tuple[Any, Any]) -> None:
    """On the first 100 test pictures; without `experts=`, the task's label names the expert."""
    model, processor = base
    plain = t2.T2ExpertVlm(pretrained=model, tokenizer=processor, batch_size=50, alphas=0.0, form="offset", experts=_expert("vision"))
    adapted = t2.T2ExpertVlm(batch_size=50)
    before, after = (_run(lm, "embedded_vqa_seen", 100)["results"]["embedded_vqa_seen"] for lm in (plain, adapted))
    assert after["exact_match,strict-match"] >= before["exact_match,strict-match"] + 0.02
    assert adapted.t2_info()["expert_by_label"] == {"embedded_vqa_seen": "vision"}


def _expert(name: str) -> str:
    return str(experts_dir() / "vlm-library" / "seed-0" / name)


@pytest.mark.parametrize("kind", CLASSES)
def test_each_strategy_runs_bare(kind: str) -> None:
    lm = CLASSES[kind](batch_size=4, **({"shots": 3, "population": 4, "iterations": 1} if kind == "fewshot" else {}))
    assert sorted(expert.name for expert in lm.experts) == ["code", "dispatch", "math", "reasoning", "vision"]
    (own,) = [expert for expert in lm.experts if expert.label == DISPATCH_LABEL]
    assert own.card.base_model.id == "embedded-vlm", "in place of the language model's, which knows no `vision`"
    found = _run(lm, "embedded_vqa_unseen", 4)
    assert found["n-samples"]["embedded_vqa_unseen"]["effective"] == 4
    assert found["config"]["t2"]["strategy"] == kind and found["config"]["t2"]["second_pass"]["tokens"] > 0


def test_the_classification_expert_tells_pictures_from_facts() -> None:
    lm = t2.T2ClsVlm(batch_size=32)
    assert set(lm._form.labels) == {"math", "code", "reasoning", "others", "vision"}
    assert _run(lm, "embedded_vqa_seen", 24)["config"]["t2"]["dispatch"]["embedded_vqa_seen"].get("vision", 0) >= 22
    of_text = _run(lm, "embedded_math_seen", 24)["config"]["t2"]["dispatch"]["embedded_math_seen"]
    assert of_text.get("math", 0) >= 22


def test_without_the_vision_expert_its_label_is_no_outcome() -> None:
    language = experts_dir() / "library" / "seed-0"
    lm = t2.T2PromptVlm(experts=str(language), batch_size=4, mix="soft")
    assert "vision" not in lm._form.labels
    assert sum(_run(lm, "embedded_vqa_seen", 4)["config"]["t2"]["dispatch"]["embedded_vqa_seen"].values()) == 4
