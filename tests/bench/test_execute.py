import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from t2eval.bench import execute, manifest, rows
from t2eval.bench.config import BenchConfig
from t2eval.bench.execute import run
from t2eval.bench.plan import make_plan
from t2eval.bench.rows import ROWS, read
from t2eval.errors import T2Error, UsageError
from t2eval.leaderboard.report import leaderboard
from t2eval.store.lock import locked
from t2eval.workers.executor import Request
from tests.bench.fakes import FakeWorker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    return BenchConfig(
        model="fake", methods=("base", "prompt", "cls"), tasks=("t1", "t2"), seeds=(0, 1), experts=str(tmp_path / "library/{seed}")
    )


def steered(config, **steer):
    return config.model_copy(update={"model_args": {"base": steer}})


def calls(output):
    return (output / "calls.txt").read_text().split()


def test_runs_every_cell_once_and_then_nothing(tmp_path, config):
    seen = []
    result = run(make_plan(config), tmp_path / "out", workers=2, factory=FakeWorker, progress=seen.append)
    assert result.exit_code == 0
    assert sorted(row.cell for row in result.rows) == sorted(cell.key for cell in make_plan(config).cells)
    assert [event.done for event in seen] == list(range(11))
    assert "cls on t2, seed 1" in " ".join(map(str, seen))
    again = run(make_plan(config), tmp_path / "out", factory=FakeWorker)
    assert again.skipped == 10
    assert len(calls(tmp_path / "out")) == 10


def test_more_seeds_may_be_added_but_settings_not_changed(tmp_path, config):
    out = tmp_path / "out"
    assert len(run(make_plan(config), out, seeds=[0], factory=FakeWorker).rows) == 6
    assert run(make_plan(config), out, factory=FakeWorker).skipped == 6
    with pytest.raises(UsageError, match="limit was None there, and is 5 now"):
        run(make_plan(config), out, limit=5, factory=FakeWorker)
    assert len(read(out)) == 10


def test_a_changed_expert_is_refused(tmp_path, config):
    expert = tmp_path / "library" / "0" / "math" / "expert.safetensors"
    expert.parent.mkdir(parents=True)
    expert.write_bytes(b"one")
    run(make_plan(config), tmp_path / "out", seeds=[0], factory=FakeWorker)
    expert.write_bytes(b"two")
    with pytest.raises(UsageError, match="has changed since"):
        run(make_plan(config), tmp_path / "out", seeds=[0], factory=FakeWorker)


@pytest.mark.parametrize(
    ("methods", "label", "refused"),
    [
        (("base", "prompt", "fewshot"), "dispatch", False),
        (("base", "prompt", "fewshot"), "math", True),
        (("prompt", "cls"), "dispatch", True),
        (("expert",), "dispatch", True),  # a task may have this label
    ],
)
def test_another_classification_expert_changes_only_what_asks_it(tmp_path, config, methods, label, refused):
    expert = tmp_path / "library" / "0" / label / "expert.safetensors"
    expert.parent.mkdir(parents=True)
    expert.with_name("expert.json").write_text(json.dumps({"name": label, "label": label}))
    expert.write_bytes(b"one")
    plan = make_plan(config.model_copy(update={"methods": methods}))
    run(plan, tmp_path / "out", seeds=[0], factory=FakeWorker)
    expert.write_bytes(b"two")
    with pytest.raises(UsageError, match=f"{label}/expert.safetensors has changed since") if refused else nullcontext():
        assert run(plan, tmp_path / "out", seeds=[0], factory=FakeWorker).skipped == len(methods) * 2


def test_a_failed_cell_is_a_row_and_is_tried_again(tmp_path, config):
    trouble = tmp_path / "trouble"
    trouble.write_text("fail")
    plan = make_plan(steered(config, trouble=str(trouble)))
    result = run(plan, tmp_path / "out", factory=FakeWorker)
    assert result.exit_code == 1
    assert [(row.method, row.task, row.error) for row in result.failed] == [("cls", "t2", "KeyError: broken")] * 2
    assert len(result.rows) == 10
    assert "FAILED: cls on t2, seed 0: `KeyError: broken`" in leaderboard(tmp_path / "out").to_markdown()
    trouble.unlink()
    repaired = run(plan, tmp_path / "out", factory=FakeWorker)
    assert (repaired.exit_code, repaired.skipped) == (0, 8)


def test_a_worker_that_dies_costs_its_cell_only(tmp_path, config):
    trouble = tmp_path / "trouble"
    trouble.write_text("die")
    result = run(make_plan(steered(config, trouble=str(trouble))), tmp_path / "out", workers=2, factory=FakeWorker)
    assert {(row.method, row.task) for row in result.failed} == {("cls", "t2")}
    assert "worker process died (exit code 9" in result.failed[0].error
    assert sum(row.status == "ok" for row in result.rows) == 8


def test_a_full_disk_in_a_worker_ends_the_run_and_keeps_the_rows(tmp_path, config):
    trouble = tmp_path / "trouble"
    trouble.write_text("full")
    plan = make_plan(steered(config, trouble=str(trouble)))
    with pytest.raises(T2Error, match="No space left on device. Every finished row is intact"):
        run(plan, tmp_path / "out", factory=FakeWorker)
    before = read(tmp_path / "out")
    assert len(before) == 7
    assert {row.status for row in before} == {"ok"}
    trouble.unlink()
    assert run(plan, tmp_path / "out", factory=FakeWorker).skipped == 7
    assert read(tmp_path / "out")[:7] == before


def test_a_full_disk_under_the_rows_keeps_them_whole(tmp_path, config, monkeypatch):
    real, written = os.write, []

    def fills_up(descriptor, data):
        if len(written) == 3:
            return real(descriptor, data[:10])
        written.append(data)
        return real(descriptor, data)

    original = rows.append

    def guarded(directory, row):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fills_up)
            original(directory, row)

    monkeypatch.setattr(execute.rows, "append", guarded)
    with pytest.raises(T2Error, match="Could not write"):
        run(make_plan(config), tmp_path / "out", factory=FakeWorker)
    assert (tmp_path / "out" / ROWS).read_bytes() == b"".join(written)
    monkeypatch.undo()
    assert run(make_plan(config), tmp_path / "out", factory=FakeWorker).skipped == 3


def test_a_wrong_name_is_the_users_error_and_leaves_no_manifest(tmp_path, config):
    with pytest.raises(UsageError, match="Unknown task 'nonsense'"):
        run(make_plan(steered(config, refuse=True)), tmp_path / "out", workers=2, factory=FakeWorker)
    assert run(make_plan(config), tmp_path / "out", factory=FakeWorker).exit_code == 0


def test_wrong_settings_of_a_run(tmp_path, config):
    with pytest.raises(UsageError, match="Unknown executor 'rey'. Did you mean 'ray'"):
        run(make_plan(config), tmp_path, executor="rey")
    with pytest.raises(UsageError, match="at least 1"):
        run(make_plan(config), tmp_path, workers=0)
    with pytest.raises(UsageError, match=r"--address is for a cluster \(--executor ray\)"):
        run(make_plan(config), tmp_path, request=Request(address="auto"))
    with pytest.raises(UsageError, match="limit"):
        run(make_plan(config), tmp_path, limit=-1)


BENCH = """
model: fake
methods: [base, prompt, cls, fewshot]
tasks: [t1, t2, t3]
seeds: [0, 1, 2]
experts: library/{seed}
model_args: {base: {delay: DELAY}}
"""


def command(file, output, workers):
    return [sys.executable, "-m", "tests.bench.fakes", str(file), str(output), str(workers)]


def start(tmp_path, output, workers=2):
    return subprocess.Popen(
        command(tmp_path / "bench.yaml", output, workers), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_rows(output, number):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (output / ROWS).exists() and (output / ROWS).read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.01)
    raise AssertionError("the benchmark wrote no rows")


def facts(board):
    """A leaderboard without its timings."""
    return [(e.method, e.task, e.score, e.stderr, e.n, e.seeds, e.seed_std, e.gain, e.p, e.test) for e in board.entries], board.notes


def test_sigkill_in_the_middle_then_the_same_leaderboard(tmp_path):
    (tmp_path / "bench.yaml").write_text(BENCH.replace("DELAY", "0.05"))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(tmp_path, killed)
    wait_for_rows(killed, 5)
    process.kill()
    process.wait()
    finished = [row.cell for row in read(killed)]
    assert 5 <= len(finished) < 30
    with (killed / ROWS).open("ab") as file:
        file.write(b'{"cell": "fake__cls')
    time.sleep(0.5)
    called = len(calls(killed))
    time.sleep(0.5)
    assert len(calls(killed)) == called, "workers outlive their parent"
    assert subprocess.run(command(tmp_path / "bench.yaml", killed, 2), cwd=ROOT, check=False).returncode == 0
    assert subprocess.run(command(tmp_path / "bench.yaml", whole, 1), cwd=ROOT, check=False).returncode == 0
    for cell in finished:
        assert calls(killed).count(cell) == 1, "a finished cell was repeated"
    assert facts(leaderboard(killed)) == facts(leaderboard(whole))
    assert len(read(killed)) == 30


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_says_where_it_stopped_and_leaves_nothing_running(tmp_path):
    (tmp_path / "bench.yaml").write_text(BENCH.replace("DELAY", "0.05"))
    output = tmp_path / "out"
    process = start(tmp_path, output)
    wait_for_rows(output, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "T2Error: Interrupted:" in errors
    assert "of 30 cells are done" in errors
    assert errors.count("Traceback") == 1, "only the parent speaks, and the command line turns its error into a line"
    deadline = time.monotonic() + 10
    while group_lives(process.pid):
        assert time.monotonic() < deadline, "something still runs"
        time.sleep(0.05)


def test_two_runs_in_one_folder_are_kept_apart(tmp_path, config):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "benchmark"), pytest.raises(T2Error, match="Another benchmark is at work"):
        run(make_plan(config), tmp_path / "out", factory=FakeWorker)


def test_a_changed_task_is_refused_by_name(tmp_path, config):
    digests = tmp_path / "digests.json"
    digests.write_text('{"t1": "one", "t2": "x"}')
    plan = make_plan(steered(config, digests=str(digests)))
    run(plan, tmp_path / "out", seeds=[0], factory=FakeWorker)
    digests.write_text('{"t1": "two", "t2": "x"}')
    with pytest.raises(UsageError, match="The task t1 has changed since .* was begun: its rows would mix two tasks of one name"):
        run(plan, tmp_path / "out", factory=FakeWorker)
    digests.write_text('{"t1": "one", "t2": "x", "t3": "new"}')
    assert run(plan, tmp_path / "out", factory=FakeWorker).skipped == 6


def test_other_versions_are_refused_where_rows_would_mix(tmp_path, config, monkeypatch):
    run(make_plan(config), tmp_path / "out", seeds=[0], factory=FakeWorker)
    known = manifest.versions()
    monkeypatch.setattr(manifest, "versions", lambda: {**known, "transformers": "4.0"})
    assert run(make_plan(config), tmp_path / "out", seeds=[0], factory=FakeWorker).skipped == 6, "nothing is added"
    with pytest.raises(UsageError, match=rf"was begun with transformers {known['transformers']}, and this is 4.0"):
        run(make_plan(config), tmp_path / "out", factory=FakeWorker)
    assert len(read(tmp_path / "out")) == 6


def test_a_row_of_other_prompts_than_its_neighbours_ends_the_run(tmp_path, config):
    out = tmp_path / "out"
    plan = make_plan(steered(config, prompts="cell"))  # each cell has prompts of its own
    with pytest.raises(
        UsageError, match="fake__base__t1__seed0 and fake__prompt__t1__seed0 were made with other prompts or documents of t1"
    ):
        run(plan, out, factory=FakeWorker)
    assert [row.method for row in read(out)] == ["base", "base"]
