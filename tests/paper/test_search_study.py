"""The search study: its budgets are searches of their own, its scores the task's, and its table an average by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from t2eval.basemodel.load import load_base
from t2eval.environment.environment import Environment
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.paper import search_study
from t2eval.paper.search_study import Arm, Point, Study, embedded_libraries, run_study, summary, table
from t2eval.stats.corrections import holm
from t2eval.stats.paired import paired
from t2eval.strategies.alpha import Coefficients
from t2eval.strategies.fewshot import FewshotConfig, adapt
from t2eval.strategies.search import SearchConfig

TASK = "embedded_math_seen"


@pytest.fixture(scope="module")
def study() -> Study:
    quiet_lm_eval()
    return Study(embedded_libraries([0]), validation=5, shots=2, population=4)


def test_a_reference_is_scored_as_transformers_generates_it(study: Study) -> None:
    points = {point.arm: point for point in study.references(TASK, 0, others=False)}
    assert set(points) == {"base", "own expert", "even mix"}
    environment = Environment(TASK)
    examples = environment.examples("validation", limit=5, seed=0)
    model, tokenizer = load_base()
    right = []
    for example in examples:
        ids = tokenizer(example.prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, do_sample=False, max_new_tokens=environment.max_new_tokens, pad_token_id=0)
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        for stop in environment.until:
            text = text.split(stop)[0]
        right.append(environment.score(example, text))
    assert points["base"].outcomes == right


def test_each_budget_is_a_search_of_its_own(study: Study) -> None:
    arm = Arm("cmaes", "layer", normalize=True)
    points = study.search(TASK, arm, 0, draw=1, others=True, budgets=(1, 3))
    assert [point.iterations for point in points] == [1, 3] and points[0].seconds < points[1].seconds
    scales = [z for label, z in sorted(embedded_libraries([0])[0].items()) if label != "math"]
    environment = Environment(TASK)
    coefficients = Coefficients(scales, "layer", normalize=True)
    candidates = study._candidates(environment, environment.examples("train", limit=2, seed=1), coefficients)
    for point in points:
        search = SearchConfig(method="cmaes", population=4, iterations=point.iterations, seed=1)
        alone = adapt(coefficients, candidates, FewshotConfig(search=search))
        assert (alone.evaluations, alone.score) == (point.evaluations, point.adaptation)
        assert study.score(TASK, alone.z) == point.outcomes


def test_a_study_resumes(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "references", lambda _self, task, library, others: [_point(task, "base", 0, library, 0, [1.0])])
    monkeypatch.setattr(
        Study, "search", lambda _self, task, arm, library, draw, others, budgets: [_point(task, str(arm), 1, library, draw, [0.0])]
    )
    said: list[str] = []
    arms = (Arm(), Arm("random"))
    first = run_study(study, tmp_path / "study.jsonl", tasks=["a"], arms=arms[:1], say=said.append)
    both = run_study(study, tmp_path / "study.jsonl", tasks=["a"], arms=arms, say=said.append)
    assert [point.arm for point in first] == ["base", "cem task"] and [point.arm for point in both] == ["base", "cem task", "random task"]
    assert len(said) == 3 and len((tmp_path / "study.jsonl").read_text().splitlines()) == 3
    assert all(json.loads(line)["task"] == "a" for line in (tmp_path / "study.jsonl").read_text().splitlines())


def _point(task: str, arm: str, iterations: int, library: int, draw: int, outcomes: list[float]) -> Point:
    return Point(task, arm, False, library, draw, iterations, 10 * iterations, 2.0 * iterations, 0.5, outcomes)


def test_the_table_is_an_average_over_tasks_libraries_and_draws() -> None:
    random = np.random.default_rng(0)
    points = [
        _point(task, arm, 4, library, draw, (random.random(30) < skill).astype(float).tolist())
        for task in ("a", "b")
        for library in (0, 1)
        for draw in (0, 1)
        for arm, skill in (("random task", 0.5), ("cem task", 0.9), ("cmaes task", 0.5))
    ]
    rows = {row["arm"]: row for row in summary(points)}
    means = {}
    for arm, row in rows.items():
        by_task = [np.array([point.outcomes for point in points if (point.arm, point.task) == (arm, task)]).mean(axis=0) for task in "ab"]
        means[arm] = np.concatenate(by_task)
        assert row["validation"] == pytest.approx(means[arm].mean()) and row["n"] == 60 and row["runs"] == 8
        assert row["stderr"] == pytest.approx(means[arm].std(ddof=1) / np.sqrt(60))
        assert (row["evaluations"], row["seconds"], row["adaptation"]) == (40, 8.0, 0.5)
    tests = [paired(dict(enumerate(means[arm])), dict(enumerate(means["random task"]))) for arm in ("cem task", "cmaes task")]  # type: ignore[arg-type]
    adjusted = holm([test.p for test in tests if test])
    assert [rows["cem task"]["p"], rows["cmaes task"]["p"]] == pytest.approx(adjusted, abs=1e-3)
    assert rows["cem task"]["versus_random"] == pytest.approx((means["cem task"] - means["random task"]).mean())
    assert rows["random task"]["p"] is None and rows["cem task"]["p"] < 0.01 < rows["cmaes task"]["p"]
    assert f"| cem task | 4 | 40 | 8.0 | 0.500 | {means['cem task'].mean():.3f} ±" in table(list(rows.values()))


def test_the_arms_are_the_ones_that_users_can_ask_for() -> None:
    assert len({str(arm) for arm in (*search_study.SEARCHES, *search_study.FORMS)}) == 16
    assert str(Arm("cmaes", "matrix", normalize=True, form="offset")) == "cmaes matrix normalised offset"
