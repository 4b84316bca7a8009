"""t2-nearest: vectors of prompts against the model's own hidden states, routes on real experts, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from lm_eval import simple_evaluate

from t2eval import models as t2
from t2eval.basemodel.folders import embedded_library_dir
from t2eval.basemodel.load import load_base
from t2eval.cli import main as cli
from t2eval.environment.loading import make_task_manager
from t2eval.errors import T2Error
from t2eval.expert.prompts import FILE, PROBES, PromptVectors
from t2eval.generation.engine import Engine
from t2eval.generation.usage import Usage
from t2eval.generation.vectors import prompt_vectors
from t2eval.strategies.dispatch import Question
from t2eval.strategies.nearest import Nearest
from tests.tiny import save_library, save_tiny, tiny_model, tiny_tokenizer

TASKS = Path(__file__).parents[1] / "fixtures" / "models_tasks"


def test_a_vector_is_the_mean_of_the_last_layer_whatever_the_batch() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    texts = ["one", "a much longer text than that", "", "two words", "x" * 3000]
    usage = Usage()
    found = prompt_vectors(Engine(model, tokenizer, batch_size=3, usage=usage), texts)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text)["input_ids"][-1024:] or [256]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        assert torch.allclose(vector, hidden.mean(dim=0), atol=1e-4)
    assert usage.tokens == sum(len(tokenizer(text)["input_ids"][-1024:] or [256]) for text in texts)


def _vectors(rows: list[list[float]]) -> PromptVectors:
    return PromptVectors(torch.tensor(rows), torch.zeros(len(PROBES), 2), "task", "base")


def test_scores_are_mean_cosines_of_the_nearest_prompts_around_the_common_mean() -> None:
    experts = {"east": _vectors([[11.0, 10.0], [13.0, 10.1], [10.0, 11.0]]), "west": _vectors([[9.0, 10.0], [7.0, 9.9]])}
    centre = torch.tensor([(34 / 3 + 8) / 2, (31.1 / 3 + 9.95) / 2])
    engine = Engine(tiny_model(), tiny_tokenizer(), batch_size=2)
    asked = torch.tensor([[12.0, 10.0], [8.5, 10.0]])
    cosine = torch.nn.functional.cosine_similarity
    for neighbours in (1, 2):
        scores = Nearest(engine, experts, neighbours).scores(asked)
        for column, each in enumerate(experts.values()):
            one = torch.stack([cosine(asked[0] - centre, row - centre, dim=0) for row in each.vectors])
            assert scores[0, column] == pytest.approx(float(one.topk(neighbours).values.mean()), abs=1e-5)
    mean = Nearest(engine, experts, 0).scores(asked)
    assert mean[0, 1] == pytest.approx(float(cosine(asked[0] - centre, experts["west"].vectors.mean(dim=0) - centre, dim=0)), abs=1e-5)
    assert Nearest(engine, experts, 1).scores(asked).argmax(dim=1).tolist() == [0, 1]


def test_a_floor_leaves_what_is_near_to_nobody_to_the_base_weights() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), batch_size=2)
    vectors = {text: prompt_vectors(engine, [text, text + "."]) for text in ("sums", "verbs")}
    experts = {text: PromptVectors(found, torch.zeros(len(PROBES), 32), "t", "b") for text, found in vectors.items()}
    asked = [Question("sums"), Question("Z!")]
    assert Nearest(engine, experts).decide(asked)[0].label == "sums"
    assert {each.label for each in Nearest(engine, experts, floor=1.0).decide([Question("Z!")])} == {"others"}
    found = Nearest(engine, experts, floor=0.9, others_label="none").decide(asked)
    assert [each.label for each in found] == ["sums", "none"] and sum(found[0].weights.values()) == pytest.approx(1, abs=1e-5)


def test_the_command_writes_what_is_shipped(tmp_path: Path) -> None:
    shutil.copytree(embedded_library_dir(1) / "math", tmp_path / "math")
    (tmp_path / "math" / FILE).unlink()
    done = CliRunner().invoke(cli, ["expert", "vectors", str(tmp_path), "--prompts", "64"])
    assert done.exit_code == 0, done.output
    assert "64 prompts of embedded_math_seen" in done.output
    made, shipped = (PromptVectors.load(folder / "math", "math") for folder in (tmp_path, embedded_library_dir(1)))
    assert torch.allclose(made.vectors, shipped.vectors, atol=1e-3) and torch.allclose(made.probes, shipped.probes, atol=1e-3)


def test_questions_find_the_expert_of_their_skill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)
    lm = t2.T2Nearest(batch_size=16, device="cpu")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    manager = make_task_manager(None, task="embedded_reasoning_unseen")
    tasks: list[Any] = ["embedded_math_unseen", "embedded_reasoning_unseen"]
    results = simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=12, bootstrap_iters=0)
    assert results is not None
    told = results["config"]["t2"]
    assert told["strategy"] == "nearest" and told["neighbours"] == 5 and told["first_pass"]["tokens"] > 0
    assert told["dispatch"]["embedded_math_unseen"].get("math", 0) >= 10
    assert told["dispatch"]["embedded_reasoning_unseen"].get("reasoning", 0) >= 10
    sample = results["samples"]["embedded_math_unseen"][0]["t2"]
    assert sample["expert"] == sample["decision"] == max(sample["probabilities"], key=sample["probabilities"].get)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items() if name in before)


def test_vectors_that_are_missing_of_another_base_or_damaged_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(T2Error, match=f"Expert 'e-code' has no {FILE} .*t2 expert vectors"):
        base = save_tiny(tmp_path / "base")
        t2.T2Nearest(pretrained=str(base), experts=str(save_library(tmp_path / "bare", "code", "math")))
    other = PromptVectors.load(embedded_library_dir(0) / "math", "math")
    with pytest.raises(T2Error, match=r"'math' are of another model \(embedded; here is toy: vectors of 128 numbers, not 32"):
        other.check(torch.zeros(len(PROBES), 32), "math", "toy")
    model, tokenizer = load_base("embedded")
    here = prompt_vectors(Engine(model, tokenizer, batch_size=4), PROBES)
    other.check(here.bfloat16().float(), "math", "embedded")  # another dtype is no other model
    with pytest.raises(T2Error, match=r"they differ by \d+\.\d%"):
        other.check(here.flip(0), "math", "embedded")
    other.check(here.flip(0), "math", "embedded", allow=True)
    for content in (b"", b"no tensors", (embedded_library_dir(0) / "math" / FILE).read_bytes()[:-5]):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(T2Error, match="t2 expert vectors"):
            PromptVectors.load(tmp_path, "math")
    (tmp_path / FILE).unlink()
    PromptVectors(torch.full((2, 4), float("nan")), torch.zeros(len(PROBES), 4), "t", "b").save(tmp_path)
    with pytest.raises(T2Error, match="no vectors in rows of finite float32 numbers"):
        PromptVectors.load(tmp_path, "math")


def test_a_hierarchy_of_labels_is_walked_by_t2_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)
    base, place = save_tiny(tmp_path / "base"), save_library(tmp_path / "library", "sums", "products", "code")
    for name, label in (("sums", "math/sums"), ("products", "math/products")):
        card = json.loads((place / f"e-{name}" / "expert.json").read_text())
        (place / f"e-{name}" / "expert.json").write_text(json.dumps({**card, "label": label}))
    given = {"pretrained": str(base), "experts": str(place), "include_path": str(TASKS), "batch_size": 4}
    lm = t2.T2Prompt(hierarchy=True, **given)
    manager = make_task_manager(str(TASKS), task="models_gen")
    results = simple_evaluate(lm, tasks=["models_gen"], task_manager=manager, bootstrap_iters=0)
    assert results is not None
    told = results["config"]["t2"]
    assert told["hierarchy"] is True and set(told["dispatch"]["models_gen"]) <= {"math/sums", "math/products", "code", "others"}
    assert sum(told["dispatch"]["models_gen"].values()) == 9
    with pytest.raises(T2Error, match="mix=soft needs the likelihoods of all labels"):
        t2.T2Prompt(hierarchy=True, mix="soft", **given)
    (place / "dispatch.json").write_text(json.dumps({"template": "{question}\nskill:", "unlisted": " {label}"}))
    with pytest.raises(T2Error, match="goes on with an answer that dispatch.json begins"):
        t2.T2Prompt(hierarchy=True, dispatch="generate", **given)
