"""Every task of tasks/: its splits are apart, lm-eval runs it with all four classes, it trains an expert, and it is listed.

The hub is hand-made rows; the model is random and tiny. Whatever is put into tasks/ is covered without a word here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from click.testing import CliRunner
from lm_eval import simple_evaluate
from lm_eval._cli.validate import Validate

from t2eval import models as t2
from t2eval.bench.scores import main_metric
from t2eval.checks.catalogue import list_tasks
from t2eval.cli import main
from t2eval.embedded import vision
from t2eval.environment.documents import content_hash
from t2eval.environment.environment import Environment, Split
from t2eval.environment.harness import compiled_once
from t2eval.paths import tasks_dir
from t2eval.training.config import TrainConfig
from t2eval.training.train import train_expert
from tests.tasks.names import ALL, GROUPS, MANAGER, TEXT, load_once, params, raw
from tests.tiny import save_library, save_tiny

pytestmark = pytest.mark.usefixtures("hub")
SPLITS: tuple[Split, ...] = ("train", "validation", "adaptation", "test")
SHORT = 8
"""Tokens of an answer: a random model says nothing more with more of them."""
LIMIT = 2
CLASSES = {"expert": t2.T2Expert, "prompt": t2.T2Prompt, "cls": t2.T2Cls, "fewshot": t2.T2Fewshot}
OPTIONS = {"expert": {"alphas": "0.3+0.3+0.4"}, "prompt": {}, "cls": {}, "fewshot": {"shots": 2, "population": 3, "iterations": 1}}
TRAINED = [name for name in TEXT if raw(name).get("training_split")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model, and a library of random experts of all skills."""
    folder = tmp_path_factory.mktemp("every-task")
    save_tiny(folder / "base")
    save_library(folder / "library", "code", "dispatch", "math", "reasoning")
    return folder


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2eval.environment.environment.load_task", load_once)


# ---------------------------------------------------------------------- splits
def _texts(environment: Environment, split: Split, limit: int | None) -> list[str]:
    examples = environment.examples(split, limit)
    with compiled_once():
        return [str(environment.task.doc_to_text(example.doc)) for example in examples]


_REPEATED = {"embedded_vqa_dispatch": {"compute", *vision._READ.values()}}
"""Dispatch reads a question about a picture without the picture: a few wordings are left, the only ones in all splits."""


@pytest.mark.parametrize("name", TEXT)
def test_splits_share_no_question(environment: Callable[[str], Environment], name: str) -> None:
    one = environment(name)
    sources: dict[str, set[str]] = {}
    for split in SPLITS:
        if split == "train" and not raw(name).get("training_split"):
            continue
        if split == "validation" and not (raw(name).get("training_split") or raw(name).get("validation_split")):
            continue
        limit = 5 if split == "adaptation" and one.split_source(split) == "test" else None
        repeated = {f"Q: {question}\nskill:" for question in _REPEATED.get(name, ())}
        found = [content_hash(text) for text in _texts(one, split, limit) if text not in repeated]
        assert found and len(found) == len(set(found)), f"{split} of {name} is empty or asks something twice"
        sources["adaptation" if limit else one.split_source(split)] = set(found)
    assert one.split_source("test") in sources
    names = sorted(sources)
    shared = {(a, b): sources[a] & sources[b] for a in names for b in names if a < b}
    assert not any(shared.values()), f"{name}: { ({pair: len(both) for pair, both in shared.items() if both}) } questions in two splits"
    # adaptation examples are never what is scored, but for a task that says so by having nothing else
    only_test = not (raw(name).get("training_split") or raw(name).get("validation_split") or one.t2.get("adaptation_split"))
    assert one.split_source("adaptation") != "test" or only_test


def test_the_paper_s_unseen_tasks_train_nothing() -> None:
    for name in raw("t2_unseen")["task"]:
        assert not raw(name).get("training_split") and (raw(name)["metadata"]["t2"].get("adaptation_split"))


# ---------------------------------------------------------------------- lm-eval
@pytest.fixture(scope="module")
def evaluated(hub: None, world: Path) -> Callable[[str, str], dict[str, Any]]:
    """Results of a class on a task."""
    made: dict[str, Any] = {}

    def get(kind: str, name: str) -> dict[str, Any]:
        if kind not in made:
            given = {"pretrained": str(world / "base"), "experts": str(world / "library"), "batch_size": 8}
            made[kind] = CLASSES[kind](**given, **OPTIONS[kind])
        result = simple_evaluate(
            made[kind],
            tasks=[load_once(MANAGER, name)],
            task_manager=MANAGER,
            limit=LIMIT,
            gen_kwargs=f"max_gen_toks={SHORT}",
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
        )
        assert result is not None
        return dict(result)

    return get


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", params(TEXT))
def test_lm_eval_runs_it_with_every_class(
    evaluated: Callable[[str, str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)  # it lists all packages: seconds
    result = evaluated(kind, name)
    assert result["n-samples"][name]["effective"] == LIMIT
    metric, chosen = main_metric(load_once(MANAGER, name), result["results"][name])
    assert 0.0 <= result["results"][name][f"{metric},{chosen}"] <= 1.0
    record = result["config"]["t2"]
    assert record["strategy"] == kind and record["second_pass"]["tokens"] > 0
    if kind in ("prompt", "cls"):
        assert sum(record["dispatch"][name].values()) == LIMIT
        assert set(record["dispatch"][name]) <= {"code", "math", "reasoning", "others"}
    if kind == "fewshot":
        adaptation = record["adaptation"][name]
        assert adaptation["examples"] == 2 and adaptation["evaluations"] > 0 and len(record["alphas"][name]) == 3
        assert adaptation["overlaps_test"] == (Environment(name, task_manager=MANAGER).split_source("adaptation") == "test")


def test_lm_eval_s_validator_accepts_every_task_and_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path: MANAGER)  # not lm-eval's ten thousand YAMLs as well
    parser = argparse.ArgumentParser()
    Validate(parser.add_subparsers())
    arguments = parser.parse_args(["validate", "--tasks", ",".join([*ALL, *GROUPS]), "--include_path", str(tasks_dir())])
    arguments.func(arguments)
    assert "All tasks found and valid" in capsys.readouterr().out


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_loads_with_all_its_tasks(group: str) -> None:
    if any("doc_to_image" in str(raw(name)) for name in raw(group)["task"]):
        pytest.skip("tasks with images have their own tests and fixture rows")
    loaded = MANAGER.load([group])
    assert sorted(loaded["group_map"][group]) == sorted(raw(group)["task"]) and set(loaded["tasks"]) == set(raw(group)["task"])


def test_no_yaml_is_left_out() -> None:
    named = {path.stem for path in tasks_dir().glob("**/*.yaml") if not path.stem.startswith("_")}
    assert named == {*ALL, *GROUPS}
    assert {"t2_seen", "t2_unseen"} <= set(GROUPS)


# ---------------------------------------------------------------------- training
@pytest.mark.parametrize("objective", ["reinforce", "supervised"])
@pytest.mark.parametrize("name", params(TRAINED))
def test_it_trains_an_expert(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, objective: str) -> None:
    monkeypatch.setenv("T2EVAL_CACHE", str(world / "cache"))
    generation = Environment._generation
    monkeypatch.setattr(Environment, "_generation", lambda self: (generation(self)[0], SHORT))
    settings: dict[str, Any] = {"steps": 1, "batch_size": 2, "kl": 0.0, "validation_limit": 2, "train_limit": 4, "test": False}
    config = TrainConfig(task=name, model=str(world / "base"), output=tmp_path / "out", objective=objective, **settings)
    result = train_expert(config, progress=False)
    card = json.loads((tmp_path / "out" / "expert.json").read_text(encoding="utf-8"))
    own = raw(name)["metadata"]["t2"]
    assert (card["label"], card["description"]) == (own["label"], own["description"])
    assert result.steps == 1 and result.record.splits["train"] == {"source": raw(name)["training_split"], "n": 4}
    assert result.scores["after"]["validation"].n == 2


# ---------------------------------------------------------------------- the list
def test_every_task_is_listed_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the list of tasks loads no data set")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    listed = {entry.name: entry for entry in list_tasks()}
    assert list(listed) == ALL
    for name, entry in listed.items():
        own = raw(name)["metadata"]["t2"]
        assert entry.label == own["label"] and own["description"] and entry.metric != "–"
        assert "test" in entry.splits and all(isinstance(size, int) and size > 0 for size in entry.splits.values()), entry
        assert ("train" in entry.splits) == bool(raw(name).get("training_split"))
        assert ("hub" in entry.needs) == bool(raw(name).get("dataset_path"))
        assert ("code execution" in entry.needs) == bool(raw(name).get("unsafe_code"))
        assert ("images" in entry.needs) == ("doc_to_image" in raw(name))
    table = CliRunner().invoke(main, ["tasks"]).output
    assert all(name in table for name in ALL) and "?" not in table


def test_the_readme_of_each_task_folder_says_what_has_to_be_said() -> None:
    for folder in sorted(path for path in tasks_dir().iterdir() if path.is_dir() and any(path.glob("*.yaml"))):
        text = (folder / "README.md").read_text(encoding="utf-8").casefold()
        for word in ("licence", "split", "prompt", "answer", "metric"):
            assert word in text, f"{folder.name}/README.md does not speak of: {word}"


def test_the_docs_table_has_every_text_task_with_the_sizes_of_its_yaml(root: Path) -> None:
    text = (root / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert [name for name in TEXT if name.startswith("t2_") and f"`{name}`" not in text] == []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| [`t2_")]
    assert rows
    roles = {"train": "training_split", "validation": "validation_split", "adaptation": "adaptation_split", "test": "test_split"}
    for row in rows:
        name = row[0].split("`")[1]
        config, own = raw(name), raw(name)["metadata"]["t2"]
        for cell, (role, key) in zip(row[2:6], roles.items(), strict=True):
            split = own.get(key) if role == "adaptation" else config.get(key)
            if cell == "validation":
                assert role == "adaptation" and split in (None, config["validation_split"])
            elif cell == "–":
                assert split is None or (role == "validation" and split == own.get("adaptation_split"))
            else:
                assert int(cell) == (own.get("sizes") or {}).get(split, int(cell)) and split, (name, role)
