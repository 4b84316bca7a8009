from pathlib import Path

import pytest

from t2eval.bench.config import BenchConfig
from t2eval.bench.plan import Cell, load_plan, make_plan, shipped_files, task_label
from t2eval.errors import UsageError


def write(folder: Path, text: str) -> Path:
    path = folder / "bench.yaml"
    path.write_text(text)
    return path


def test_cells_have_one_base_for_all_seeds(tmp_path):
    plan = load_plan(write(tmp_path, "tasks: [b, a]\nmethods: [prompt, base]\nseeds: [3, 4]\n"))
    assert [(cell.method, cell.task, cell.seed) for cell in plan.cells] == [
        ("base", "b", 0), ("base", "a", 0),
        ("prompt", "b", 3), ("prompt", "a", 3), ("prompt", "b", 4), ("prompt", "a", 4),
    ]  # fmt: skip
    assert plan.config.model == "embedded"


def test_keys_are_stable_unique_file_names():
    assert Cell("embedded", "cls", "arc_easy", 2).key == "embedded__cls__arc_easy__seed2"
    keys = {Cell(model, "cls", "t", 0).key for model in ("org/model", "org-model", "/data/org/model")}
    assert len(keys) == 3
    assert all("/" not in key for key in keys)


def test_overrides_replace_and_none_does_not(tmp_path):
    path = write(tmp_path, "tasks: t\nmethods: base\nseeds: [0, 1]\nlimit: 10\n")
    config = load_plan(path, {"limit": 3, "seeds": None}).config
    assert (config.limit, config.seeds, config.tasks) == (3, (0, 1), ("t",))


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "models" / "m").mkdir(parents=True)
    path = write(tmp_path, "tasks: [t]\nmodel: models/m\nexperts: lib/{seed}\nbaselines: 'b/{seed}/{method}-{label}'\ninclude_path: mine\n")
    config = load_plan(path).config
    assert config.model == str(tmp_path / "models" / "m")
    assert config.library(2) == tmp_path / "lib" / "2"
    assert config.adapter("ia3", "code", 1) == tmp_path / "b" / "1" / "ia3-code"
    assert config.include_path == str(tmp_path / "mine")


def test_joined_places_are_each_relative_to_the_file(tmp_path):
    path = write(tmp_path, "tasks: [t]\nmodel: m\nexperts: one/{seed}+two/{seed}\nbaselines: 'a/{method}-{label}+b/{method}-{label}'\n")
    config = load_plan(path).config
    assert config.libraries(1) == [tmp_path / "one" / "1", tmp_path / "two" / "1"]
    assert config.adapter("lora", "math", 0) == tmp_path / "b" / "lora-math", "where it is trained into"
    (tmp_path / "a" / "lora-math").mkdir(parents=True)
    assert config.adapter("lora", "math", 0) == tmp_path / "a" / "lora-math"
    assert config.adapters("lora", 0) == [tmp_path / "a" / "lora-math"]
    odd = tmp_path / "a+b"
    odd.mkdir()
    assert load_plan(path, {"experts": str(odd)}).config.libraries(0) == [odd], "a folder with a plus in its name"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [t]\nmethod: base\n", "Did you mean 'methods'"),
        ("tasks: [t]\nmethods: [fewshots]\n", "Unknown method 'fewshots'. Did you mean 'fewshot'"),
        ("tasks: [t]\nmodel_args: {prompts: {}}\n", "Did you mean 'prompt'"),
        ("methods: [base]\n", "tasks: it is missing"),
        ("tasks: []\n", "tasks: it must hold at least 1"),
        ("tasks: [t]\nlimit: 0\n", "limit: it must be at least 1 (got 0)"),
        ("tasks: [t]\nseeds: [one]\n", "seeds.0"),
        ("tasks: [t]\nseeds: [true]\n", "seeds.0: it must be a whole number"),
        ("tasks: [t]\nseeds: [4294967296]\n", "seeds.0: it must be less than"),
        ("tasks: [t]\ntrain: {skills: [math], recipes: x}\n", "'recipes'. Did you mean 'recipe'"),
        ("tasks: [t]\ntrain: {skills: {}}\n", "train.skills"),
        ("tasks: [t]\nassume: {prompt_token: 3}\n", "'prompt_token'. Did you mean 'prompt_tokens'"),
        ("- t\n", "must be a mapping"),
        ("tasks: [t\n", "cannot be read: line 2, column 1"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        load_plan(write(tmp_path, text))
    assert message in str(caught.value)


def test_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="Cannot read the benchmark file"):
        load_plan(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="Did you mean paper-llama3-8b"):
        load_plan("paper-llama-8b")


def test_shipped_files_go_by_name_and_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded").mkdir()  # a folder is no benchmark file
    assert {"embedded", "paper-llama3-8b", "paper-mistral-7b", "paper-llama3-70b"} <= shipped_files().keys()
    for name in ("embedded", "embedded.yaml", "experts/benchmarks/embedded.yaml"):
        assert load_plan(name).config.name == "embedded"
    assert load_plan("configs/paper-llama3-8b.yaml").config.model == "meta-llama/Meta-Llama-3-8B-Instruct"
    with pytest.raises(UsageError, match="Cannot read"):
        load_plan("mine/paper-llama3-8b.yaml")
    (tmp_path / "paper-llama3-8b").write_text("tasks: [t]\nname: mine\n")
    assert load_plan("paper-llama3-8b").config.name == "mine"


def test_the_section_for_training(tmp_path):
    text = "tasks: [t]\ntrain:\n  skills: [math, code]\n  recipe: r/{run}.yaml\n  methods: {lora: {steps: 3}}\n"
    section = load_plan(write(tmp_path, text)).config.train
    assert section.skills == {"math": {}, "code": {}}
    assert section.recipe == str(tmp_path / "r" / "{run}.yaml")
    assert section.methods == {"lora": {"steps": 3}}


def test_assumptions_given_later_win_one_by_one(tmp_path):
    path = write(tmp_path, "tasks: [t]\nassume: {prompt_tokens: 7, answer_tokens: 8}\n")
    assume = load_plan(path, {"assume": {"answer_tokens": 9}}).config.assume
    assert (assume.prompt_tokens, assume.answer_tokens) == (7, 9)


def test_another_model_needs_its_own_experts():
    config = BenchConfig(tasks=("t",), model="org/model")
    with pytest.raises(UsageError, match="No experts for 'org/model'"):
        config.library(0)
    with pytest.raises(UsageError, match="No baselines for 'org/model'"):
        config.adapter("lora", "math", 0)


def test_label_comes_from_the_file_then_the_task():
    config = BenchConfig(tasks=("t",), labels={"t": "math"})
    assert task_label(config, "t", {"t2": {"label": "code"}}) == "math"
    assert task_label(config, "u", {"t2": {"label": "code"}}) == "code"
    with pytest.raises(UsageError, match="'v' has no skill label"):
        task_label(config, "v", {"version": 1.0})


def test_a_method_named_twice_is_run_once():
    assert len(make_plan(BenchConfig(tasks=("t", "t"), methods=("base", "base"))).cells) == 1
