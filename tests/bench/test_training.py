"""Training runs of a benchmark: which are needed, how they are set, run, resumed, and how their failures are told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import t2eval.training.train
from t2eval.bench import training
from t2eval.bench.execute import run
from t2eval.bench.plan import Plan, load_plan, make_plan
from t2eval.bench.training import Job, jobs, settle, train, train_missing
from t2eval.environment.loading import make_task_manager
from t2eval.errors import T2Error, UsageError
from t2eval.training.config import TrainConfig
from t2eval.workers.pool import Pool
from tests.bench.fakes import quick, write_record

ROOT = Path(__file__).resolve().parents[2]


def plan_of(folder: Path, **settings: object) -> Plan:
    base = {"tasks": ["embedded_math_seen"], "methods": ["base", "expert"], "train": {"skills": {"math": {"task": "embedded_math_seen"}}}}
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({**base, **settings}, sort_keys=False))
    return settle(load_plan(path), folder / "out")


def job(name: str, folder: Path) -> Job:
    return Job(name, TrainConfig(task="embedded_math_seen", output=folder / name))


def test_runs_follow_from_methods_seeds_and_skills(tmp_path: Path) -> None:
    skills = {label: {"task": f"embedded_{label}_seen"} for label in ("math", "code")} | {"dispatch": {"task": "embedded_dispatch"}}
    plan = plan_of(tmp_path, methods=["base", "cls", "ia3"], seeds=[0, 1], train={"skills": skills})
    names = ["math", "code", "dispatch", "ia3-math", "ia3-code"]
    assert [job.name for job in jobs(plan)] == [*names, *(f"{name}, seed 1" for name in names)]
    places = {job.name: job.output for job in jobs(plan)}
    assert places["dispatch"] == tmp_path / "out" / "experts" / "seed-0" / "dispatch"
    assert places["ia3-code, seed 1"] == tmp_path / "out" / "baselines" / "seed-1" / "ia3-code"
    without = plan_of(tmp_path, methods=["base", "fewshot"], train={"skills": skills})
    assert [job.name for job in jobs(without)] == ["math", "code"]
    assert jobs(plan_of(tmp_path, methods=["base"], train={"skills": skills})) == []
    only = [cell for cell in plan.cells if (cell.method, cell.seed) == ("ia3", 1)]
    assert [job.name for job in jobs(plan, only)] == ["ia3-math, seed 1", "ia3-code, seed 1"]


def test_settings_come_from_recipe_section_method_and_skill_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "math-s1.yaml").write_text("task: embedded_math_seen\nsteps: 1\nlr: 0.5\nrollouts: 1\nclip: 9\n")
    section = {
        "recipe": "recipes/{label}-s{seed}.yaml",
        "settings": {"steps": 2, "clip": 3.0, "weight_decay": 0.5},
        "methods": {"lora": {"steps": 3, "objective": "supervised", "clip": 4.0}},
        "skills": {"math": {"steps": 4}},
    }
    changes = {"model": "org/m", "dtype": "bfloat16", "device": "cuda", "apply_chat_template": True, "num_fewshot": 2}
    plan = plan_of(tmp_path, methods=["expert", "lora"], seeds=[1], train=section, **changes)
    svf, lora = (job.config for job in jobs(plan))
    assert (svf.steps, svf.lr, svf.clip, svf.weight_decay, svf.objective, svf.method) == (4, 0.5, 3.0, 0.5, "reinforce", "svf")
    assert (lora.steps, lora.clip, lora.objective, lora.method) == (4, 4.0, "supervised", "lora")
    assert (lora.model, lora.dtype, lora.device, lora.apply_chat_template, lora.num_fewshot) == ("org/m", "bfloat16", "cuda", True, 2)
    assert (lora.seed, lora.label, lora.resume) == (1, "math", True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"skills": {"math": {"task": "embedded_math_seen", "step": 3}}}, "train, math: Unknown setting 'step'. Did you mean 'steps'"),
        ({"skills": {"math": {}}}, "train, math: The setting 'task' is missing"),
        ({"skills": {"math": {"task": "t"}}, "settings": {"model": "x"}}, "'model' is not a setting of a run here"),
        ({"skills": {"math": {"task": "embedded_math_seen", "gguf_file": "x.gguf"}}}, "train, math: gguf_file cannot be used here"),
        ({"skills": ["math"], "recipe": "{label}.yaml"}, "The recipe .*math.yaml' cannot be read"),
    ],
)
def test_mistakes_in_the_section_are_named(tmp_path: Path, section: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        jobs(plan_of(tmp_path, train=section))


def test_places_that_the_file_names_are_kept(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, experts="mine/{seed}")
    assert plan.config.library(0) == tmp_path / "mine" / "0"
    plain = make_plan(plan.config.model_copy(update={"train": None, "experts": None}))
    assert settle(plain, tmp_path) is plain


def test_what_is_finished_is_not_repeated_but_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(t2eval.training.train, "train_expert", lambda config, progress: (trained.append(config), write_record(todo)))
    plan = plan_of(tmp_path)
    (todo,) = jobs(plan)
    lines: list[str] = []
    assert train_missing(plan, plan.cells, Pool(1), lines.append) == (todo,)
    assert lines == ["training math …", "trained math: 0.500 → 0.500 on the validation split (n=4), 1 s"]
    assert trained[0].device == "cpu"
    assert train_missing(plan, plan.cells, Pool(1), lines.append) == ()
    assert len(trained) == 1
    (todo.output / "settings.json").write_text(json.dumps({**todo.config.hyperparameters, "lr": 0.125}))
    with pytest.raises(UsageError, match=r"was trained with lr = 0.125, and the benchmark file now says"):
        train_missing(plan, plan.cells, Pool(1), lines.append)
    (todo.output / "settings.json").write_text(json.dumps({**todo.config.hyperparameters, "steps": 7, "eval_batch_size": 1}))
    with pytest.raises(UsageError, match=r"was trained with steps = 7, and"):
        train_missing(plan, plan.cells, Pool(1), lines.append)
    (todo.output / "training.json").unlink()
    training.check_settings(todo)  # a run that is not finished may go on for longer


def test_a_run_that_failed_before_its_first_step_does_not_bind_the_benchmark_file(tmp_path: Path) -> None:
    (todo,) = jobs(plan_of(tmp_path))
    (todo.output / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (todo.output / "settings.json").write_text(json.dumps({**todo.config.hyperparameters, "lr": 0.125}))
    training.check_settings(todo)
    (todo.output / "checkpoints" / "checkpoint-1" / "progress.json").write_text("{}")
    with pytest.raises(UsageError, match="was trained with lr = 0.125"):
        training.check_settings(todo)


def test_a_wrong_task_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained"))
    plan = plan_of(tmp_path, tasks=["embedded_math_seen"], train={"skills": {"math": {"task": "embedded_maths"}}})
    monkeypatch.setattr("t2eval.environment.loading.make_task_manager", _own_tasks)
    with pytest.raises(UsageError, match="Unknown task 'embedded_maths'"):
        train_missing(plan, plan.cells, Pool(1), print)


def _own_tasks(include_path: object = None, *, task: str | None = None) -> object:
    """t2eval's own tasks: the ten thousand of lm-eval take seconds to read."""
    return make_task_manager(include_path, task="embedded_math_seen")


def test_nothing_is_trained_into_the_package(tmp_path: Path) -> None:
    plan = load_plan("embedded", {"seeds": [7], "methods": ["expert"]})
    with pytest.raises(UsageError, match="No expert or baseline 'math, seed 7' is shipped. To train it, copy the benchmark file"):
        train_missing(plan, plan.cells, Pool(1), print)


def test_many_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_trainer", quick)
    todo = [job(name, tmp_path) for name in ("a", "b", "c")]
    write_record(todo[0])
    lines: list[str] = []
    with Pool(2) as pool:
        train(todo, pool, lines.append)
    assert all(job.finished for job in todo)
    assert lines[0].startswith("already trained: a: 0.500 → 0.500 on the validation split (n=4)")
    assert sorted(line[:5] for line in lines[-2:]) == ["[1/2]", "[2/2]"]


@pytest.mark.parametrize(("name", "message"), [("broken", "no such task"), ("killed", "exit code 9")])
def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setattr(training, "_trainer", quick)
    todo = [job(name, tmp_path), *(job(str(number), tmp_path) for number in range(4))]
    with Pool(2) as pool, pytest.raises(T2Error, match=f"Training '{name}' failed: .*{message}"):
        train(todo, pool, print)
    assert [run.finished for run in todo] == [False, True, True, True, True], "the others are done nevertheless"


def test_one_after_the_other_a_failure_stops_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = {name: job(name, tmp_path) for name in ("a", "b", "c")}

    def train_expert(config: TrainConfig, progress: object) -> None:
        if config.output.name == "b":
            raise RuntimeError("CUDA out of memory")
        write_record(todo[config.output.name])

    monkeypatch.setattr(t2eval.training.train, "train_expert", train_expert)
    with pytest.raises(T2Error, match="Training 'b' failed: RuntimeError: CUDA out of memory"):
        train(list(todo.values()), Pool(1), print)
    assert [job.finished for job in todo.values()] == [True, False, False]


def test_a_killed_benchmark_goes_on_where_its_training_stopped(tmp_path: Path) -> None:
    """On the embedded base: one expert finished, one adapter killed after its second step; then the rest, and the cells."""
    settings = {"steps": 3, "batch_size": 4, "validation_limit": 4, "validate_every": 3, "save_every": 1, "test": False}
    section = {
        "skills": {"math": {"task": "embedded_math_seen"}},
        "settings": settings,
        "methods": {"lora": {"objective": "supervised"}},
    }
    methods = ["expert", "lora"]
    plan = plan_of(tmp_path, methods=methods, limit=4, train=section)
    expert, adapter = jobs(plan)
    script = Path(__file__).with_name("killed_training.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "bench.yaml"), str(tmp_path / "out")], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert expert.finished and not adapter.finished
    before = (expert.output / "expert.safetensors").stat().st_mtime_ns
    lines: list[str] = []
    result = run(load_plan(tmp_path / "bench.yaml"), tmp_path / "out", progress=lambda event: lines.append(str(event)))
    assert [row.status for row in result.rows] == ["ok", "ok"], result.rows
    assert [job.name for job in result.trained] == ["lora-math"]
    assert lines[0] == "training lora-math …"
    assert (expert.output / "expert.safetensors").stat().st_mtime_ns == before
    steps = [json.loads(line)["step"] for line in (adapter.output / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["experts"] is None
    assert {Path(path).name for path in manifest["inputs"]} == {"expert.safetensors", "adapter_model.safetensors"}
    again = run(load_plan(tmp_path / "bench.yaml"), tmp_path / "out")
    assert (again.skipped, again.trained) == (2, ())
