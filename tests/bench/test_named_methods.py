"""Methods with names of their own: one strategy several times in a file, each with its experts; keys, resume, neighbours, order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2eval.bench import manifest
from t2eval.bench.config import BenchConfig, parse_config
from t2eval.bench.execute import run
from t2eval.bench.neighbours import Neighbours
from t2eval.bench.plan import load_plan, make_plan
from t2eval.bench.rows import Row
from t2eval.bench.training import jobs
from t2eval.checks.arguments import check_arguments
from t2eval.errors import UsageError
from t2eval.leaderboard.report import leaderboard
from tests.bench.fakes import FakeWorker
from tests.leaderboard.test_report import ones, put

LORA = {"name": "lora-fewshot", "strategy": "fewshot", "experts": "loras/seed-{seed}/math", "shots": 5}
MEAN = {"name": "nearest-mean", "strategy": "nearest", "neighbours": 0}


def config(*methods: Any, **changes: Any) -> BenchConfig:
    return parse_config({"tasks": ["t1"], "methods": list(methods), **changes})


def test_a_mapping_is_a_strategy_under_a_name_of_its_own() -> None:
    found = config("lora", LORA, "base", MEAN, "fewshot", seeds=[0, 1])
    assert found.methods == ("lora", "lora-fewshot", "base", "nearest-mean", "fewshot")
    assert (found.kind("lora-fewshot"), found.kind("lora")) == ("fewshot", "lora")
    assert found.model_args["lora-fewshot"] == {"experts": "loras/seed-{seed}/math", "shots": 5}
    assert found.own_experts("lora-fewshot", 1) == "loras/seed-1/math" and found.own_experts("nearest-mean", 1) is None
    assert found.shares_library("nearest-mean") and not found.shares_library("lora-fewshot")
    assert parse_config(found.model_dump(mode="json")) == found, "as the manifest has it"
    cells = make_plan(found).cells
    assert list(dict.fromkeys(cell.method for cell in cells)) == ["base", "nearest-mean", "lora-fewshot", "fewshot", "lora"]
    assert "embedded__lora-fewshot__t1__seed1" in [cell.key for cell in cells]
    check_arguments(found)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([{"strategy": "fewshot"}], "a name is letters"),
        ([{"name": "a/b", "strategy": "fewshot"}], "not 'a/b'"),
        ([{"name": "lora", "strategy": "fewshot"}], "'lora' is a method of t2eval's"),
        ([{"name": "mine", "strategy": "fewshoot"}], "Unknown strategy of the method 'mine' 'fewshoot'. Did you mean 'fewshot'"),
        ([{"name": "mine", "strategy": "lora"}], "Unknown strategy of the method 'mine'"),
        ([MEAN, MEAN], "'nearest-mean' is defined twice"),
        (["mine"], "Unknown method 'mine'"),
    ],
)
def test_mistakes_are_named(methods: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(*methods)


def test_options_are_those_of_its_strategy() -> None:
    with pytest.raises(UsageError, match="'shots' is an option of t2-fewshot"):
        check_arguments(config({"name": "mine", "strategy": "prompt", "shots": 5}))


def test_paths_are_relative_to_the_file_and_nothing_is_trained_for_experts_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    mine = "{name: m, strategy: prompt, experts: a/x+hf://o/n}"
    text = f"tasks: [embedded_math_unseen]\nmethods: [{mine}]\nexperts: lib\ntrain: {{skills: [math]}}"
    file.write_text(text)
    plan = load_plan(file)
    assert plan.config.model_args["m"]["experts"] == f"{tmp_path}/a/x+hf://o/n"
    assert jobs(plan) == []
    file.write_text(text.replace(", experts: a/x+hf://o/n", "") + "\n")
    assert [job.config.label for job in jobs(load_plan(file, {"train": {"skills": {"math": {"task": "embedded_math_seen"}}}}))] == ["math"]


def test_a_folder_grows_by_methods_and_keeps_what_they_were(tmp_path: Path) -> None:
    def go(*methods: Any) -> int:
        plan = make_plan(config(*methods, experts=str(tmp_path)))
        return len(run(plan, tmp_path / "out", factory=FakeWorker).rows)

    (tmp_path / "loras" / "seed-0" / "math").mkdir(parents=True)
    mine = {**MEAN, "experts": str(tmp_path)}
    assert go("base", mine) == 2
    assert go("base", mine, {**mine, "name": "other", "neighbours": 3}) == 3
    assert go("base") == 1
    with pytest.raises(UsageError, match="begun with other settings: model_args"):
        go("base", {**mine, "neighbours": 7})
    with pytest.raises(UsageError, match="begun with other settings: strategies"):
        go("base", {**mine, "name": "other", "neighbours": 3, "strategy": "prompt"})
    kept = manifest.read(tmp_path / "out")
    assert kept is not None and set(kept["config"]["strategies"]) == {"nearest-mean", "other"}


def test_experts_of_one_name_may_differ_between_methods_with_names_of_their_own() -> None:
    def row(method: str, digest: str) -> Row:
        given: dict[str, Any] = {"cell": f"m__{method}__{digest}", "model": "m", "method": method, "task": "t", "seed": 0, "status": "ok"}
        return Row(**given, hashes={"experts": {"math": digest}})

    neighbours = Neighbours(Path("one"), [row("prompt", "a"), row("lora-prompt", "b"), row("lora-fewshot", "c")])
    neighbours.admit(row("cls", "a"))
    for method in ("cls", "lora-prompt"):
        with pytest.raises(UsageError, match="two experts named math"):
            neighbours.admit(row(method, "z"))


def test_a_leaderboard_has_them_behind_what_they_are(tmp_path: Path) -> None:
    put(tmp_path, "lora", ones(60))
    put(tmp_path, "lora-fewshot", ones(80), t2={"strategy": "fewshot"})
    put(tmp_path, "fewshot", ones(70), t2={"strategy": "fewshot"})
    put(tmp_path, "base", ones(50))
    board = leaderboard(tmp_path)
    assert board.methods == ("base", "fewshot", "lora-fewshot", "lora")
    assert "| lora-fewshot | **0.800**" in board.to_markdown()
