"""Ray: cells and trainings on two machines, one of which is lost in mid-run; each ends once, with what a local run gives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 - only where ray is installed

from t2eval.bench import rows, travel  # noqa: E402
from t2eval.bench.config import BenchConfig  # noqa: E402
from t2eval.bench.execute import Progress, run  # noqa: E402
from t2eval.bench.plan import Plan, load_plan, make_plan  # noqa: E402
from t2eval.bench.rows import ROWS, Row, read_samples  # noqa: E402
from t2eval.bench.training import Job, train  # noqa: E402
from t2eval.cli import main  # noqa: E402
from t2eval.errors import T2Error, UsageError  # noqa: E402
from t2eval.paths import experts_dir  # noqa: E402
from t2eval.training.config import TrainConfig  # noqa: E402
from t2eval.workers.executor import Request  # noqa: E402
from t2eval.workers.ray_pool import RayPool  # noqa: E402
from t2eval.workers.registry import describe_executor, open_executor  # noqa: E402
from tests.bench.fakes import FakeWorker, QuickElsewhere  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of one CPU each; this process is connected to the first."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def fake(folder: Path, **steer: object) -> Plan:
    methods, tasks, experts = ("base", "prompt", "cls"), ("t1", "t2"), str(folder / "none")
    return make_plan(BenchConfig(model="fake", methods=methods, tasks=tasks, seeds=(0, 1), experts=experts, model_args={"base": steer}))


def alike(found: list[Row], folder: Path) -> dict[str, Any]:
    """Rows by cell without their times and memory, with their examples."""
    aside = {"seconds", "first_pass_seconds", "second_pass_seconds", "peak_memory_bytes"}
    return {row.cell: (without_times(row.model_dump(exclude=aside)), read_samples(folder, row)) for row in found}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if "seconds" not in key}
    return value


def test_a_machine_that_is_lost_in_mid_run_costs_no_cell(cluster: Any, tmp_path: Path) -> None:
    second = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    plan, out = fake(tmp_path, delay=0.4), tmp_path / "ray"
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == 3:
            cluster.remove_node(second, allow_graceful=False)

    try:
        result = run(plan, out, executor="ray", progress=watch, factory=FakeWorker)
    finally:
        if second not in cluster.list_all_nodes():
            cluster.add_node(num_cpus=1)
    log = (out / "workers.log").read_text()
    assert log.count("ready: process") >= 2 and "lost: process" in log, log
    assert result.exit_code == 0
    lines = [json.loads(line)["cell"] for line in (out / ROWS).read_text().splitlines()]
    assert sorted(lines) == sorted(cell.key for cell in plan.cells), "every cell ends once"
    run(plan, tmp_path / "local", factory=FakeWorker)
    assert alike(rows.read(out), out) == alike(rows.read(tmp_path / "local"), tmp_path / "local")
    assert run(plan, out, executor="ray", factory=FakeWorker).skipped == 10


TRAINED = """
methods: [expert, lora]
tasks: [embedded_math_unseen, embedded_code_unseen]
limit: 4
train:
  skills: {math: {task: embedded_math_seen}, code: {task: embedded_code_seen}}
  settings: {steps: 6, batch_size: 4, validation_limit: 4, validate_every: 3, save_every: 1, test: false}
  methods: {lora: {objective: supervised}}
"""


def steps_on(node: Any, log: Path) -> int:
    """How many steps the training that a machine's process is at has done, by the files that the process has open."""
    ready = re.findall(rf"ready: process (\d+) on \S+ \({node.node_id[:8]}\)", log.read_text() if log.exists() else "")
    for process in ready:
        for opened in Path(f"/proc/{process}/fd").glob("*"):
            lock = opened.resolve()
            if lock.name == ".lock" and (lock.parent / "log.jsonl").exists():
                return len((lock.parent / "log.jsonl").read_text().splitlines())
    return 0


def when(happened: Callable[[], bool], then: Callable[[], object]) -> None:
    """Do something once, beside what this process does meanwhile, as soon as something has happened."""

    def watch() -> None:
        deadline = time.monotonic() + 600
        while not happened():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        then()

    threading.Thread(target=watch, daemon=True).start()


def trained_files(folder: Path) -> dict[str, Any]:
    """What a training leaves that another one of the same settings leaves, too: weights as bytes, scores, and the log without times."""
    found: dict[str, Any] = {}
    for path in sorted(file for place in ("experts", "baselines") for file in (folder / place).rglob("*") if file.is_file()):
        if "checkpoints" in path.parts:  # which stay on the machine that trained
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.name == "log.jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "training.json":
            found[name] = json.loads(path.read_text())["scores"]
    return found


def test_a_machine_that_is_lost_in_mid_training_costs_no_training(cluster: Any, tmp_path: Path) -> None:
    """Two experts and two adapters; a machine goes with one of them half done, which starts over where there is room."""
    second = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    (tmp_path / "bench.yaml").write_text(TRAINED)
    plan, out = load_plan(tmp_path / "bench.yaml"), tmp_path / "ray"
    notes: list[str] = []
    steps: list[int] = []

    def lose() -> None:
        steps.append(steps_on(second, out / "training.log"))
        cluster.remove_node(second, allow_graceful=False)

    when(lambda: 1 <= steps_on(second, out / "training.log") < 6, lose)
    try:
        result = run(plan, out, executor="ray", progress=lambda progress: notes.append(progress.note))
    finally:
        if second not in cluster.list_all_nodes():
            cluster.add_node(num_cpus=1)
    assert steps and 1 <= steps[0] < 6, f"it was lost in mid-training: {steps}"
    log = (out / "training.log").read_text()
    assert log.count("lost: process") == 1, log
    ended = [note.split("trained ")[1].split(":")[0] for note in notes if re.match(r"\[\d/4\] trained ", note)]
    assert sorted(ended) == ["code", "lora-code", "lora-math", "math"], "every training ends once"
    assert [job.name for job in result.trained] == ["math", "code", "lora-math", "lora-code"]
    assert result.exit_code == 0 and len((out / ROWS).read_text().splitlines()) == 4
    local = run(load_plan(tmp_path / "bench.yaml"), tmp_path / "local", workers=2)
    assert local.exit_code == 0
    found, expected = trained_files(out), trained_files(tmp_path / "local")
    weights = {name for name in found if name.endswith(("/expert.safetensors", "/adapter_model.safetensors"))}
    assert len(weights) == 4 and len(found) == 12, sorted(found)
    assert found == expected
    assert alike(rows.read(out), out) == alike(rows.read(tmp_path / "local"), tmp_path / "local")
    again = run(plan, out, executor="ray")
    assert (again.skipped, again.trained) == (4, ())


def test_a_training_that_always_takes_its_worker_along_fails_alone(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(travel, "TrainSetup", QuickElsewhere)
    todo = [Job(name, TrainConfig(task="embedded_math_seen", output=tmp_path / name)) for name in ("killed", "a", "b")]
    notes: list[str] = []
    message = r"Training 'killed' failed: its worker was lost 2 times, the last time on process"
    with open_executor("ray", Request(retries=1)) as pool, pytest.raises(T2Error, match=message):
        train(todo, pool, notes.append, tmp_path / "log")
    assert [job.finished for job in todo] == [False, True, True], "the others are done nevertheless"
    assert sorted(note[:5] for note in notes[1:]) == ["[1/3]", "[2/3]", "[3/3]"]


def test_a_cell_that_always_takes_its_worker_along_fails_alone(cluster: Any, tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"
    trouble.write_text("die")
    plan = fake(tmp_path, trouble=str(trouble))
    result = run(plan, tmp_path / "out", executor="ray", request=Request(retries=1), factory=FakeWorker)
    assert {(row.method, row.task) for row in result.failed} == {("cls", "t2")}
    for row in result.failed:
        assert "The cell could not be finished: its worker was lost 2 times, the last time on process" in str(row.error)
    assert sum(row.status == "ok" for row in result.rows) == 8


def test_a_setup_that_fails_is_the_users_error(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown task 'nonsense'"):
        run(fake(tmp_path, refuse=True), tmp_path / "out", executor="ray", factory=FakeWorker)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_the_cluster_has_no_room_for_is_refused(cluster: Any) -> None:
    with pytest.raises(T2Error, match=r"No machine of the Ray cluster has 1 CPUs and 1 GPUs .* Ask for less"):
        open_executor("ray", Request(num_gpus=1))
    with pytest.raises(T2Error, match="has 2 CPUs and 0 GPUs for a process"):  # there are two, on two machines
        RayPool.opened(Request(num_cpus=2))
    with pytest.raises(UsageError, match="both 0"):
        RayPool.opened(Request(num_cpus=0, num_gpus=0))
    with pytest.raises(UsageError, match="--num-gpus 8"):
        RayPool.opened(Request(device="balanced"))
    with pytest.raises(UsageError, match="Ray Client is not supported"):
        RayPool.opened(Request(address="ray://head:10001"))
    described = describe_executor("ray", Request(workers=3))
    assert (described["machines"], described["workers"], described["at_a_time"]) == (2, 3, 2)
    assert "2 machines with 2 CPUs and 0 GPUs; processes of 1 CPUs and 0 GPUs each, 2 of 3 at a time" in described["text"]


def test_the_command_on_ray_gives_the_rows_of_a_local_one(cluster: Any, tmp_path: Path) -> None:
    """Experts, adapters and the base for real, where this process writes all that is left."""
    shipped = experts_dir()
    places = f"experts: {shipped}/library/seed-{{seed}}\nbaselines: {shipped}/baselines/seed-{{seed}}/{{method}}-{{label}}\n"
    (tmp_path / "one.yaml").write_text(f"methods: [base, expert, lora]\ntasks: [embedded_math_unseen]\n{places}")
    command = ["bench", str(tmp_path / "one.yaml"), "--limit", "2"]
    for name in ("ray", "local"):
        done = CliRunner().invoke(main, [*command, "--output", str(tmp_path / name), "--executor", name])
        assert done.exit_code == 0, done.output
    found, expected = (alike(rows.read(tmp_path / name), tmp_path / name) for name in ("ray", "local"))
    assert len(found) == 3 and found == expected
    assert {path.name for path in (tmp_path / "ray" / "samples").iterdir()} == {p.name for p in (tmp_path / "local" / "samples").iterdir()}


def test_ctrl_c_ends_a_run_and_the_ray_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text(
        "model: fake\nmethods: [base, prompt]\ntasks: [t1, t2]\nseeds: [0, 1, 2]\nexperts: library\nmodel_args: {base: {delay: 1}}\n"
    )
    out = tmp_path / "out"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.fakes", str(tmp_path / "bench.yaml"), str(out), "1", "ray"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out / ROWS).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "T2Error: Interrupted:" in errors and "of 8 cells are done" in errors
    deadline = time.monotonic() + 15
    while subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "something still runs"
        time.sleep(0.2)
