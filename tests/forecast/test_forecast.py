"""The forecast: figures against independent computations, their sources, and every shipped file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from t2eval.basemodel import probe as hub
from t2eval.bench.plan import Plan, load_plan, shipped_files
from t2eval.bench.rows import append
from t2eval.bench.training import jobs, settle
from t2eval.forecast.constants import CPU, GPU, speeds_of
from t2eval.forecast.forecast import Forecast, forecast, search_answers
from t2eval.forecast.shape import model_shape
from t2eval.forecast.text import render, shown
from t2eval.stats.power import smallest_difference
from t2eval.svf.attachment import attach
from t2eval.svf.selection import target_paths
from tests.bench.fakes import fake_row, write_record
from tests.offline_datasets import datasets_cache, hub_rows, write_hub
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
SKILLS = ("math", "code", "reasoning")
PAPER = {
    "paper-llama3-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256
    ),
    "paper-mistral-7b": MistralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=32768
    ),
    "paper-llama3-70b": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, vocab_size=128256
    ),
}
"""The models' own configurations, as their cards give them."""


def plan_of(folder: Path, **settings: object) -> Plan:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({"tasks": ["embedded_math_seen"], "methods": ["base"], **settings}))
    return load_plan(path)


SMALLER = {"smollm2-demo", "smollm2", "smollm2-strategies", "smollm2-generated", "embedded-strategies"}
"""Shipped files with fewer tasks than the paper's."""


def predicted(folder: Path, **settings: object) -> Forecast:
    return forecast(plan_of(folder, **settings), folder / "out")


def test_the_real_models_demo_resolves_offline(tmp_path: Path) -> None:
    found = forecast(load_plan("smollm2-demo"), tmp_path / "out")
    assert [task.name for task in found.tasks] == ["arc_easy", "arc_challenge"]
    assert found.cells == 2 * 5
    assert [training.name for training in found.trainings] == ["reasoning", "lora-reasoning"]


@pytest.mark.parametrize("name", sorted(set(shipped_files()) - SMALLER))
def test_every_shipped_file_resolves_offline(name: str, tmp_path: Path) -> None:
    plan = load_plan(name)
    found = forecast(plan, tmp_path / "out")
    assert len(plan.config.tasks) == (2 if "vision" in name else 6)
    assert found.cells == len(plan.config.tasks) * (1 + 7 * len(found.seeds))
    assert all(task.examples["test"].value for task in found.tasks)
    assert all(job.config.preset in ("paper", "embedded") for job in jobs(settle(load_plan(name), tmp_path)))
    known = not name.startswith("smollm2")  # whose shape is known where its package is
    assert found.needed(False).value or not known
    assert len(found.trainings) == (5 if "vision" in name else 13) * len(found.seeds)
    if not name.startswith("embedded"):
        assert not known or (found.hours().value and found.hours().source == "assumed")
        # the paper's splits, less what is held out for adaptation
        sizes = {task.name: task.examples["test"].value for task in found.tasks}
        assert (sizes["t2_gsm8k"], sizes["t2_math"], sizes["t2_humaneval"], sizes["t2_arc_challenge"]) == (1319, 4990, 154, 1172)


@pytest.mark.parametrize(
    ("name", "tasks", "cells", "trainings"),
    [
        ("smollm2", ["arc_easy", "arc_challenge"], 32, 12),
        ("smollm2-strategies", ["arc_challenge", "arc_easy", "t2_gsm8k", "t2_mbpp_pro", "t2_dispatch"], 13, 12),
        ("smollm2-generated", ["t2_arc_easy"], 2, 1),
        ("embedded-strategies", [f"embedded_{skill}_unseen" for skill in SKILLS], 84, 0),
    ],
)
def test_the_smaller_files_resolve_offline(name: str, tasks: list[str], cells: int, trainings: int, tmp_path: Path) -> None:
    found = forecast(load_plan(name), tmp_path / "out")
    assert [task.name for task in found.tasks] == tasks
    assert (found.cells, len(found.trainings)) == (cells, trainings)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_papers_models_against_models_without_memory(name: str, tmp_path: Path) -> None:
    """Parameters and bases of the real architectures, built on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(PAPER[name])
    layers = "half" if "70b" in name else "all"
    modules = [model.get_submodule(path) for path in target_paths(model, "all", layers)]
    found = forecast(load_plan(name), tmp_path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters.value == parameters
    assert found.memory["weights"].value == 2 * parameters
    ranks = [min(module.weight.shape) for module in modules]
    assert found.memory["bases"].value == 2 * sum(rank**2 for rank in ranks)
    assert found.memory["kept"].value == 2 * sum(module.weight.numel() for module in modules)
    assert found.disk["bases"].value == 4 * sum(rank**2 for rank in ranks)
    assert found.trainable.value == sum(ranks)
    assert found.disk["download"].value == 2 * parameters
    assert {found.parameters.source, found.memory["bases"].source} == {"assumed"}
    if name == "paper-llama3-8b":
        assert 15e9 < found.memory["weights"].value < 17e9
        assert 40 < found.hours().value < 4000


def test_a_model_on_this_machine_is_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", "qwen2")  # its biases are in no formula
    plan = plan_of(tmp_path, model=str(folder), methods=["base", "fewshot"], experts="x")
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = model_shape(plan.config)
    assert shape.source == "read"
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.width == 4
    adapted = attach(model)
    assert shape.scales() == sum(z.numel() for z in adapted.z().values())
    assert shape.bases("mlp", "0") == 3 * 32**2
    found = forecast(plan, tmp_path / "out")
    assert (found.disk["download"].value, found.disk["download"].source) == (0, "measured")


def test_another_architecture_is_read_from_its_tensors(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", "gpt2")
    shape = model_shape(plan_of(tmp_path, model=str(folder)).config)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.bases() == 2 * (4 * 32**2)  # c_attn, c_proj, c_fc, c_proj: 32 on the narrow side


def test_an_unknown_model_is_unknown_and_says_so(tmp_path: Path) -> None:
    found = predicted(tmp_path, model="org/nowhere", methods=["base", "expert"], experts="x")
    assert (found.parameters.value, found.parameters.source) == (None, "unknown")
    assert found.needed(False).value is None
    assert "Parameters: unknown" in render(found)
    stated = predicted(tmp_path, model="org/nowhere", assume={"parameters": 5_000_000})
    assert stated.memory["weights"].value == 10_000_000
    assert stated.parameters.source == "assumed"


def test_tokens_and_hours_by_hand(tmp_path: Path) -> None:
    assume = {
        "prompt_tokens": 100,
        "dispatch_tokens": 50,
        "answer_tokens": 200,
        "read_speed": 1000,
        "answer_speed": 100,
        "train_speed": 500,
    }
    settings = {"steps": 10, "batch_size": 8, "validate_every": 5, "validation_limit": 20, "kl": [0.0, 0.1], "test": False}
    section = {"skills": {"math": {"task": "embedded_math_seen"}}, "settings": settings}
    methods = ["base", "prompt", "fewshot"]
    arguments = {"fewshot": {"shots": 3, "population": 4, "iterations": 5}}
    found = predicted(tmp_path, methods=methods, seeds=[0, 1], limit=40, assume=assume, train=section, model_args=arguments)
    work = {part.name.split(" on ")[0]: part for part in found.evaluations}
    # The task's limit of 80 tokens is below the assumed answer.
    assert (work["base"].read.value, work["base"].written.value) == (40 * 100, 40 * 80)
    assert (work["prompt"].read.value, work["prompt"].written.value) == (2 * 40 * 150, 2 * 40 * 80)
    assert (work["fewshot"].read.value, work["fewshot"].written.value) == (2 * (40 + 60) * 100, 2 * (40 + 60) * 80)
    assert work["base"].hours.value == pytest.approx((4000 / 1000 + 3200 / 100) / 3600)
    assert work["base"].hours.source == "assumed"
    run = found.trainings[0]
    # The two runs share the base's validation and the first step's answers.
    answers, checks = 2 * 10 * 8, (1 + 2 * (10 // 5)) * 20
    drawn = answers - 8
    assert run.trained.value == answers * 180
    assert run.written.value == (drawn + checks) * 80
    assert run.read.value == (drawn + checks) * 100 + answers * 180  # once more for the KL penalty to the base
    assert len(found.trainings) == 2
    assert found.hours().value == pytest.approx(sum(part.hours.value for part in (*found.trainings, *found.evaluations)))


def test_the_papers_baselines_under_halving_are_named_beside_the_full_sweeps(tmp_path: Path) -> None:
    plan = load_plan("paper-llama3-8b")
    found = forecast(plan, tmp_path / "out")
    baselines = [work for work in found.trainings if work.method != "svf"]
    full = sum(work.hours.value for work in baselines)
    halved = sum(work.other.value for work in baselines)
    # Twelve runs of 200 steps, against 12 of 20, 6 of 30, 3 of 50 and 2 of 100; prompts and validations are a small part.
    assert len(baselines) == 9 and halved / full == pytest.approx((12 * 20 + 6 * 30 + 3 * 50 + 2 * 100) / 2400, rel=0.05)
    assert halved < 24 < full
    assert f"  9 baselines: {full:.0f} h by full sweeps, {halved:.0f} h with `sweep: halving`\n" in render(found)

    section = plan.config.train
    chosen = {name: {**settings, "sweep": "halving"} for name, settings in section.methods.items()}
    halving = plan.config.model_copy(update={"train": section.model_copy(update={"methods": chosen})})
    other = forecast(Plan(halving, plan.cells), tmp_path / "out")
    assert sum(work.hours.value for work in other.trainings if work.method != "svf") == pytest.approx(halved)
    assert f"  9 baselines: {halved:.0f} h by sweeps by halving, {full:.0f} h with `sweep: full`\n" in render(other)


def test_supervised_runs_write_nothing_but_their_validations(tmp_path: Path) -> None:
    section = {
        "skills": {"math": {"task": "embedded_math_seen"}},
        "settings": {"steps": 4, "batch_size": 8, "validate_every": 4, "validation_limit": 10, "test_limit": 5},
        "methods": {"lora": {"objective": "supervised"}},
    }
    (run,) = predicted(tmp_path, methods=["lora"], train=section).trainings
    assert run.written.value == (2 * 10 + 2 * 5) * 80
    assert run.trained.value == 4 * 8 * (300 + 80)


def test_what_is_done_is_counted_and_its_time_is_measured(tmp_path: Path) -> None:
    section = {"skills": {"math": {"task": "embedded_math_seen"}}}
    plan = plan_of(tmp_path, methods=["base", "expert"], seeds=[0, 1], train=section)
    output = tmp_path / "out"
    output.mkdir()
    first = next(cell for cell in plan.cells if cell.method == "expert")
    append(output, fake_row(output, first).model_copy(update={"seconds": 36.0}))
    write_record(jobs(settle(plan, output))[0])
    found = forecast(plan, output)
    assert (found.cells, found.done) == (3, 1)
    assert [part.done for part in found.trainings] == [True, False]
    expert = next(part for part in found.evaluations if part.name.startswith("expert"))
    assert (expert.hours.value, expert.hours.source) == (pytest.approx(0.01), "measured")
    assert "math, seed 1" in render(found) and "\n  math  " not in render(found)


def test_data_sets_are_looked_up_in_the_cache(tmp_path: Path) -> None:
    include = tmp_path / "tasks"
    include.mkdir()
    task = {
        "task": "cached_arc",
        "dataset_path": "allenai/ai2_arc",
        "dataset_name": "ARC-Challenge",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices.text}}",
        "doc_to_target": "answerKey",
    }
    (include / "cached.yaml").write_text(yaml.safe_dump(task))
    write_hub(tmp_path / "cache", "allenai/ai2_arc")
    rows = len(hub_rows("allenai/ai2_arc", "ARC-Challenge", "test"))
    settings = {"tasks": ["cached_arc"], "include_path": str(include), "labels": {"cached_arc": "reasoning"}}
    with datasets_cache(tmp_path / "cache"):
        found = predicted(tmp_path, **settings)
        assert hub.data_obstacle(hub.HubData("allenai/ai2_arc", "ARC-Challenge")) is None
    (data,) = found.data
    assert (data.name, data.cached, data.tasks) == ("allenai/ai2_arc (ARC-Challenge)", True, ("cached_arc",))
    assert data.bytes.value > 0
    assert (found.tasks[0].examples["test"].value, found.tasks[0].longest) == (rows, None)
    assert found.evaluations[0].read.value == rows * 4 * 300
    with datasets_cache(tmp_path / "empty"):
        found = predicted(tmp_path, **settings)
    assert not found.data[0].cached
    assert found.hours().value is None
    assert "not in the cache; for cached_arc" in render(found)


def test_several_answers_to_each_problem_are_counted(tmp_path: Path) -> None:
    one, twenty = (predicted(tmp_path, tasks=[name]).evaluations[0] for name in ("t2_humaneval", "t2_humaneval_n20"))
    assert one.written.value == 154 * 200
    assert twenty.written.value % (20 * 200) == 0


def test_a_task_of_other_tasks_questions_reads_their_data(tmp_path: Path) -> None:
    names = {data.name for data in predicted(tmp_path, tasks=["t2_dispatch"]).data}
    assert {"databricks/databricks-dolly-15k", "openai/gsm8k (main)", "evalplus/mbppplus", "allenai/ai2_arc (ARC-Easy)"} <= names


def test_search_budgets() -> None:
    assert search_answers({"preset": "paper"}) == 32 * 100 * 10
    assert search_answers({"preset": "paper", "shots": 3, "iterations": 10}) == 32 * 10 * 3


def test_every_figure_shows_its_source(tmp_path: Path) -> None:
    found = forecast(load_plan("paper-llama3-8b"), tmp_path)
    plain = json.loads(json.dumps(found.as_dict()))
    figures = [plain["parameters"], plain["hours"], *plain["disk"].values(), *filter(None, plain["memory"].values())]
    figures += [part[key] for part in plain["trainings"] + plain["evaluations"] for key in ("read", "written", "trained", "hours")]
    assert all(part["source"] in ("measured", "read", "assumed", "unknown") for part in figures)
    assert shown(found.parameters) == "8.03G (assumed)"
    assert "weights: 16.1 GB (assumed)" in render(found)
    assert "prompt_tokens=300" in render(found)


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom t2eval.cli import main\n"
        f"main(['bench', 'paper-llama3-8b', '--plan', '--output', {str(tmp_path)!r}], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("Plan of paper-llama3-8b")
    assert done.stdout.splitlines()[-1] == "False"
    assert not list(tmp_path.iterdir())


def test_merges_are_counted_and_take_time(tmp_path: Path) -> None:
    assume = {"read_speed": 1e9, "answer_speed": 1e9, "train_speed": 1e9, "merge_seconds": 36.0}
    arguments = {"fewshot": {"population": 4, "iterations": 5}}
    section = {"skills": {"math": {"task": "embedded_math_seen"}}, "settings": {"steps": 10, "validate_every": 5, "validation_limit": 4}}
    methods = ["base", "expert", "prompt", "cls", "fewshot", "lora"]
    found = predicted(tmp_path, methods=methods, seeds=[0, 1], assume=assume, train=section, model_args=arguments)
    merges = {part.name.split(" on ")[0]: part.merges.value for part in found.evaluations}
    assert merges == {"base": 0, "expert": 2, "prompt": 2, "cls": 4, "fewshot": 2 * (1 + 20), "lora": 0}
    expert, adapter = found.trainings[:2]
    assert (expert.merges.value, adapter.merges.value) == (10 + 3 + 2, 0)  # a step, a validation, and the test before and after
    fewshot = next(part for part in found.evaluations if part.name.startswith("fewshot"))
    assert fewshot.hours.value == pytest.approx(42 * 36 / 3600, rel=1e-3)


def test_measured_speeds_stand_in_for_those_that_are_not_given(tmp_path: Path) -> None:
    plan = load_plan("paper-llama3-8b", {"methods": ["base", "expert", "prompt", "cls", "fewshot"]})
    found = forecast(plan, tmp_path)
    assert found.speeds.startswith("measured on NVIDIA H200, November 2026") and found.hours().source == "assumed"
    assert f"Speeds: {found.speeds}" in render(found)
    own = plan.config.model_copy(update={"assume": plan.config.assume.model_copy(update={"answer_speed": 7.0})})
    speeds = speeds_of(own, 2 * int(GPU.parameters))
    assert (speeds.answer, speeds.read, speeds.merge) == (7.0, GPU.read / 2, GPU.merge * 2)
    assert speeds.note.startswith("answer as given; measured on NVIDIA H200")
    assert speeds_of(own.model_copy(update={"device": "cpu"}), CPU.parameters).train == CPU.train
    assert speeds_of(own, None).read is None, "of a model that is not known nothing is known"


def test_the_plan_says_what_its_examples_could_show(tmp_path: Path) -> None:
    plan = load_plan("paper-llama3-8b", {"methods": ["base", "expert", "prompt"]})
    found = forecast(plan, tmp_path)
    power = {each.task: each for each in found.power}
    comparisons = 2 * len(plan.config.tasks)
    math = power["t2_math"]
    assert (math.examples.value, math.comparisons, math.cluster, math.alone.source) == (4990, comparisons, "type", "assumed")
    assert math.alone.value == pytest.approx(smallest_difference(0.5, 4990))
    assert math.corrected.value == pytest.approx(smallest_difference(0.5, 4990, level=0.05 / comparisons))
    text = render(found)
    assert f"{math.alone.value:.3f}" in text and f"at 5% over {comparisons} comparisons" in text and "t2_math by type" in text
    json.dumps(found.as_dict(), allow_nan=False)
    surer = forecast(load_plan("paper-llama3-8b", {"methods": ["base", "expert"], "assume": {"agreement": 0.9}}), tmp_path)
    assert surer.power[0].alone.value < found.power[0].alone.value
    few = forecast(load_plan("paper-llama3-8b", {"methods": ["base", "expert"], "limit": 5}), tmp_path)
    assert few.power[0].alone.value is None and "5 examples show no difference" in render(few)
    assert forecast(load_plan("paper-llama3-8b", {"methods": ["base"]}), tmp_path).power == ()
