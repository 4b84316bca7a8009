"""The CI files: they are in the package, and the shell form runs the gate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from t2eval.bench.inputs import files_of
from t2eval.bench.manifest import checked
from t2eval.bench.manifest import write as write_manifest
from t2eval.bench.plan import make_plan, parse_config
from t2eval.bench.rows import append
from t2eval.bench.worker import Worker
from t2eval.errors import UsageError
from t2eval.expert.expert import Expert
from t2eval.leaderboard.ci import write_ci
from t2eval.paths import experts_dir

ROOT = Path(__file__).resolve().parents[2]


def test_the_files_are_written_once_and_never_over_others(tmp_path: Path) -> None:
    workflow, script = write_ci(tmp_path)
    steps = yaml.safe_load(workflow.read_text())["jobs"]["leaderboard"]["steps"]
    assert "ci/leaderboard.sh runs/change runs/history" in [step.get("run") for step in steps]
    assert script == tmp_path / "ci" / "leaderboard.sh" and os.access(script, os.X_OK)
    assert write_ci(tmp_path) == [workflow, script], "the same files again are no other files"
    script.write_text("mine")
    workflow.unlink()
    with pytest.raises(UsageError, match=r"leaderboard.sh is there already, and is another file"):
        write_ci(tmp_path)
    assert script.read_text() == "mine" and not workflow.exists()
    with pytest.raises(UsageError, match="is not a folder"):
        write_ci(tmp_path / "nowhere")


def fake_command(folder: Path, verdict: int = 0, bench: int = 0, rows: str = "{}") -> Path:
    """A `t2` that writes down what it is asked, leaves rows, and exits as it is told."""
    fake = folder / "t2"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/calls\necho "| table |"\n'
        f'case "$*" in\nbench*) mkdir -p {folder}/out; printf %s "{rows}" >{folder}/out/rows.jsonl; exit {bench};;\n'
        f"*--fail-on-regression*) exit {verdict};;\nesac\n"
    )
    fake.chmod(0o755)
    return fake


def sh(script: Path, *arguments: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The shell form, with variables of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in ("KEEP", "ACCEPT", "GITHUB_STEP_SUMMARY")}
    return subprocess.run([script, *arguments], env={**environment, **variables}, capture_output=True, text=True, check=False)


def test_the_shell_form_passes_its_settings_on(tmp_path: Path) -> None:
    script = write_ci(tmp_path)[1]
    settings = {"T2": str(fake_command(tmp_path)), "BENCHMARK": "b.yaml", "LIMIT": "5", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    assert sh(script, tmp_path / "out", **settings).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    out = tmp_path / "out"
    shown = [f"leaderboard {out}", f"leaderboard {out} --format json", f"leaderboard {out} --html {out}/page.html"]
    assert calls == [f"bench b.yaml --output {out} --workers 1 --limit 5", *shown]
    assert (tmp_path / "summary").read_text() == (tmp_path / "out" / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    "verdict, bench, accept, code, kept",
    [(0, 0, "", 0, 1), (3, 0, "", 3, 0), (3, 0, "1", 0, 1), (2, 0, "1", 2, 0), (0, 1, "", 1, 0), (0, 2, "", 2, 0)],
)
def test_what_is_kept_and_what_fails(tmp_path: Path, verdict: int, bench: int, accept: str, code: int, kept: int) -> None:
    script = write_ci(tmp_path)[1]
    done = sh(script, tmp_path / "out", tmp_path / "history", T2=str(fake_command(tmp_path, verdict, bench)), KEEP="2", ACCEPT=accept)
    assert done.returncode == code
    assert len(list((tmp_path / "history").glob("*"))) == kept
    if bench < 2:
        gate = (tmp_path / "calls").read_text().splitlines()[-1]
        assert gate.endswith("--fail-on-regression " + f"{tmp_path}/history/none" + " --leave-out-changed-tasks" * bool(accept))


def test_a_benchmark_that_did_not_begin_fails_as_such_and_not_as_a_wrong_setting(tmp_path: Path) -> None:
    script = write_ci(tmp_path)[1]
    done = sh(script, tmp_path / "out", tmp_path / "history", T2=str(fake_command(tmp_path, verdict=2, bench=1, rows="")))
    assert done.returncode == 1
    assert [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()] == ["bench"]


def held_against(folder: Path, kept: list[str], keep: int) -> str:
    """The run among those of a history that the script, which must succeed, holds a new run against."""
    for name in kept:
        (folder / "history" / name).mkdir(parents=True)
    script = write_ci(folder)[1]
    assert sh(script, folder / "out", folder / "history", T2=str(fake_command(folder)), KEEP=str(keep)).returncode == 0
    baseline = (folder / "calls").read_text().splitlines()[-1].rpartition(f"{folder}/history/")
    assert baseline[1]
    return baseline[2]


def test_a_copy_that_was_cut_off_is_no_baseline(tmp_path: Path) -> None:
    assert held_against(tmp_path, ["20200101T000000Z-a", "20200102T000000Z-b.part"], keep=5) == "20200101T000000Z-a"
    assert len(list((tmp_path / "history").iterdir())) == 2 and not list((tmp_path / "history").glob("*.part"))


def test_the_history_has_the_newest_runs_and_the_last_one_is_the_baseline(tmp_path: Path) -> None:
    assert held_against(tmp_path, ["20200101T000000Z-a", "20200102T000000Z-b"], keep=2) == "20200102T000000Z-b"
    first, second = sorted(path.name for path in (tmp_path / "history").iterdir())
    assert first == "20200102T000000Z-b" and second > "2026"


def evaluated(folder: Path, experts: Path) -> Path:
    """A benchmark's folder as `t2 bench` leaves it: base and expert on the embedded base, in this process, which has torch already."""
    settings = {"name": "ours", "methods": ["base", "expert"], "tasks": ["embedded_code_seen"], "limit": 40, "experts": str(experts)}
    plan = make_plan(parse_config(settings))
    worker = Worker(plan.config, folder)
    folder.mkdir()
    worker.open()
    for cell in plan.cells:
        append(folder, worker.run(cell))
    write_manifest(folder, checked(folder, plan, files_of(plan.config), Worker.tasks(plan.config), grows=False))
    return folder


def test_an_expert_that_was_broken_on_purpose_fails_the_change(tmp_path: Path) -> None:
    """The shell form with the real gate, on answers of the embedded base: the main branch's run, then a broken expert. Here `bench` brings
    what was evaluated before; that the shell form hands its settings to it is tested above, and the command itself in tests/bench."""
    script = write_ci(tmp_path)[1]
    library = tmp_path / "experts" / "code"
    shutil.copytree(experts_dir() / "library" / "seed-0" / "code", library)
    evaluated(tmp_path / "made-main", library.parent)
    shutil.rmtree(library)
    Expert.load(experts_dir() / "library" / "seed-0" / "math").renamed("code", "code").save(library)
    evaluated(tmp_path / "made-change", library.parent)
    command = tmp_path / "t2"
    command.write_text(
        f'#!/bin/sh\ncase "$1" in bench) cp -r {tmp_path}/made-$(basename "$4") "$4";; *) exec {sys.executable} {ROOT}/cli.py "$@";; esac\n'
    )
    command.chmod(0o755)
    history = tmp_path / "history"
    common = {"T2": str(command), "BENCHMARK": "ours.yaml", "KEEP": "5"}
    first = sh(script, tmp_path / "main", history, **common)
    assert first.returncode == 0, first.stderr
    assert "No baseline" in first.stdout and len(list(history.iterdir())) == 1

    change = sh(script, tmp_path / "change", history, **common)
    assert change.returncode == 3, change.stderr
    text = (tmp_path / "change" / "leaderboard.md").read_text()
    assert "expert on embedded_code_seen: " in text and "1 significant regression against" in text
    assert "The runs were made with two experts named code (seed 0)" in text
    assert len(list(history.iterdir())) == 1, "what is worse is not kept"
    assert json.loads((tmp_path / "change" / "leaderboard.json").read_text())["title"] == "ours"
    assert "<title>" in (tmp_path / "change" / "page.html").read_text(encoding="utf-8")


def test_the_workflow_runs_the_shell_form_keeps_its_history_and_comments(tmp_path: Path) -> None:
    workflow = yaml.safe_load(write_ci(tmp_path)[0].read_text())
    steps = {step.get("name"): step for step in workflow["jobs"]["leaderboard"]["steps"]}
    run = steps["Run, compare and keep"]
    assert run["run"] == "ci/leaderboard.sh runs/change runs/history" and set(run["env"]) == {"KEEP", "ACCEPT"}
    restored, saved = steps["The runs that were kept"]["with"], steps["The runs that are kept now"]["with"]
    assert restored["path"] == saved["path"] == "runs/history"
    assert saved["key"].startswith(restored["restore-keys"]), "the newest of the main branch is found again"
    comment = steps["Comment the table"]
    assert "runs/change/leaderboard.md" in comment["run"] and comment["if"].startswith("always()")
    assert workflow["permissions"]["pull-requests"] == "write"
    assert set(workflow[True]) == {"push", "pull_request", "workflow_dispatch"}  # YAML reads the key `on` as true
