"""Numbers: logits that are none, dtypes, sizes of batches and tokens that a tokenizer lacks, through lm-eval's own evaluator."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from torch import Tensor
from transformers import AutoModelForCausalLM

from t2eval import models as t2
from t2eval.environment.environment import make_task_manager
from t2eval.errors import T2Error
from t2eval.expert.expert import Expert
from t2eval.svf.attachment import attach
from tests.tiny import save_library, save_tiny, tiny_model, tiny_tokenizer

TASKS = Path(__file__).parents[1] / "fixtures" / "models_tasks"
TOLERANCE = {"float32": (1e-4, 1e-6), "bfloat16": (0.2, 0.02), "float16": (0.02, 0.005)}
"""How far log-likelihoods (some 30 nats each) may differ between batches of 1 and 64 (in nats), and from those in float32 (relative). The
greedy answers of float32 do not differ at all. docs/reliability.md states these."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    save_tiny(folder / "base")
    (folder / "base" / "dispatch.json").write_text(
        json.dumps({"template": "{question}\nskill:", "labels": {"math": " math", "code": " code"}, "others": " others", "until": ["\n"]})
    )
    save_library(folder / "library", "math", "code")
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)  # lists packages with pip: seconds


def _make(world: Path, base: Path | None = None, kind: Any = t2.T2Expert, **arguments: Any) -> Any:
    experts = world / "library" / ("e-math" if kind is t2.T2Expert else "")
    given = {"pretrained": str(base or world / "base"), "experts": str(experts), "include_path": str(TASKS), "batch_size": 4}
    return kind(**{**given, **arguments})


def _evaluate(lm: Any, *tasks: str, **more: Any) -> dict[str, Any]:
    manager = make_task_manager(str(TASKS))
    found = simple_evaluate(lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, verbosity="ERROR", **more)
    assert found is not None
    return dict(found)


def _damage(lm: Any, value: float) -> None:
    """Logits of one token that are not finite, whatever is asked."""
    with torch.no_grad():
        lm.model.lm_head.weight[3] = value


@pytest.mark.unwatched  # it damages the weights
@pytest.mark.parametrize(("task", "value"), [("models_gen", math.nan), ("models_choice", math.inf), ("models_rolling", math.nan)])
def test_logits_that_are_not_finite_are_refused_with_their_document(world: Path, task: str, value: float, tmp_path: Path) -> None:
    lm = _make(world)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items() if "lm_head" not in name}
    _damage(lm, value)
    cache = tmp_path / "answers"
    with pytest.raises(T2Error, match=rf"logits are not finite .* for document \d+ of task {task}: .* Load the model in float32"):
        _evaluate(lm, task, limit=3, use_cache=str(cache))
    now = lm.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items()), "and the base weights are the same bits"
    lm.model.load_state_dict(AutoModelForCausalLM.from_pretrained(world / "base").state_dict())
    again, plain = (_evaluate(each, task, limit=3, **how) for each, how in ((lm, {"use_cache": str(cache)}), (_make(world), {})))
    assert again["results"] == plain["results"], "nor does lm-eval's cache know of them"


@pytest.mark.unwatched  # it damages the weights
def test_only_the_document_whose_logits_are_not_finite_is_named(world: Path) -> None:
    lm = _make(world, batch_size=2)
    questions = [request.args[0] for request in _requests(lm)]
    letter = next(letter for letter in questions[2] if sum(letter in question for question in questions) == 1)
    token = tiny_tokenizer()(letter)["input_ids"][0]
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(T2Error, match=f"document {_requests(lm)[2].doc_id} of task models_gen"):
        _evaluate(lm, "models_gen", limit=3)


def _requests(lm: Any) -> list[Any]:
    task = make_task_manager(str(TASKS)).load(["models_gen"])["tasks"]["models_gen"]
    task.build_all_requests(limit=3, rank=0, world_size=1)
    return list(task.instances)


@pytest.mark.unwatched  # it damages the weights
def test_dispatch_on_logits_that_are_not_finite_is_refused(world: Path) -> None:
    lm = _make(world, kind=t2.T2Prompt)
    _damage(lm, math.nan)
    with pytest.raises(T2Error, match="not finite behind a prompt of .* that ends in"):
        _evaluate(lm, "models_gen", limit=2)


def _values(found: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in sorted(found["samples"][task], key=lambda sample: int(sample["doc_id"]))]


def _likelihoods(world: Path, size: int, dtype: str) -> Tensor:
    """(documents, choices)"""
    found = _values(_evaluate(_make(world, batch_size=size, dtype=dtype), "models_choice", limit=8), "models_choice")
    return torch.tensor([[float(each[0][0]) for each in document] for document in found])


def test_batches_of_1_and_64_give_the_same_scores_in_each_dtype(world: Path) -> None:
    plain = _likelihoods(world, 1, "float32")
    for dtype, (between_batches, between_dtypes) in TOLERANCE.items():
        one, many = (_likelihoods(world, size, dtype) for size in (1, 64))
        assert (one - many).abs().max() <= between_batches, dtype
        assert ((one - plain).abs() / plain.abs()).max() <= between_dtypes, dtype


def test_batches_of_1_and_64_write_the_same_answers(world: Path) -> None:
    one, many = (_evaluate(_make(world, batch_size=size), "models_gen") for size in (1, 64))
    assert one["results"] == many["results"] and _values(one, "models_gen") == _values(many, "models_gen")


def test_a_z_whose_merge_float16_cannot_hold_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    z = {path: torch.full_like(each, 1e6) for path, each in Expert.load(world / "library" / "e-math").z.items()}
    adapted = attach(tiny_model(dtype=torch.float16), cache_dir=tmp_path / "bases")
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    with (
        pytest.raises(T2Error, match=r"z of .* is up to 1e\+06 in size: merged, the weight has values that torch.float16 cannot hold"),
        adapted.merged(z),
    ):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.model.state_dict().items())


@pytest.mark.parametrize(
    ("lacks", "said"), [("bos pad", None), ("pad", None), ("eos", "has no eos_token"), ("bos eos pad", "has no eos_token")]
)
def test_tokens_that_a_tokenizer_lacks(world: Path, lacks: str, said: str | None, tmp_path: Path) -> None:
    """Answers as with all of them, or one error that names the token."""
    base = save_tiny(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    for token in lacks.split():
        setattr(tokenizer, f"{token}_token", None)
    tokenizer.save_pretrained(base)
    if said:
        with pytest.raises(T2Error, match=said):
            _make(world, base=base)
        return
    found, plain = (_evaluate(_make(world, base=each), "models_gen", limit=3) for each in (base, None))
    assert found["results"] == plain["results"] and _values(found, "models_gen") == _values(plain, "models_gen")
