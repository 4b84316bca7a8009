"""The command line: exit codes, messages, help, and what it does not import."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from t2eval import cli
from t2eval.errors import T2Error, unknown


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command `t2 fail` that raises what it is given."""

    def make(error: BaseException, *, during: BaseException | None = None) -> Result:
        @click.command()
        def fail() -> None:
            if during is None:
                raise error
            try:
                raise during
            except type(during):
                raise error from None

        monkeypatch.setitem(cli.main.commands, "fail", fail)
        return invoke("fail")

    return make


def all_commands(command: click.Command = cli.main, path: str = "t2") -> list[tuple[str, click.Command]]:
    children = command.commands.items() if isinstance(command, click.Group) else []
    return [(path, command), *(found for name, child in children for found in all_commands(child, f"{path} {name}"))]


@pytest.mark.parametrize(("path", "command"), all_commands())
def test_every_command_has_help_with_examples(path: str, command: click.Command) -> None:
    assert command.help, path
    assert re.search(r"Examples?:\n", command.help), path
    result = invoke(*path.split()[1:], "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_examples_name_real_commands_and_options() -> None:
    """Each `t2 …` line of an example parses, up to values that only exist at the user's."""
    commands = dict(all_commands())
    for path, command in all_commands():
        for line in re.findall(r"^ *(?:[A-Z0-9_]+=\S+ )?(t2 .+)$", (command.help or "").split("Example", 1)[1], re.MULTILINE):
            words = re.split(r"\s{2,}| \| ", line)[0].split()
            known = next(" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in commands)
            if known == "t2 lm-eval":
                continue
            options = {option for parameter in commands[known].params for option in parameter.opts} | {"--help"}
            used = {word for word in words if word.startswith("--")}
            assert used <= options, f"{path}: {line}"


def test_start_up_is_light_and_quick(root: Path) -> None:
    code = (
        "import sys, t2eval, t2eval.cli\n"
        "from click.testing import CliRunner\n"
        "assert 'doctor' in CliRunner().invoke(t2eval.cli.main, ['--help']).output\n"
        "print(*(name for name in ('torch', 'transformers', 'lm_eval', 'pydantic', 'numpy', 'yaml', 'datasets') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

    def seconds() -> float:
        """Of the processor, not of the clock: other tests run beside this one."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "cli", "--help"], cwd=root, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_launcher_runs_from_the_checkout(root: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(root / "cli.py"), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "t2eval, version" in done.stdout


def test_exit_code_of_a_users_mistake(failing: Any) -> None:
    failed = failing(T2Error("The base model 'x' cannot be reached. Check the name."))
    assert failed.exit_code == 1
    assert failed.stderr == "Error: The base model 'x' cannot be reached. Check the name.\n"
    wrong = failing(unknown("task", "embeded_math_seen", ["embedded_math_seen"]))
    assert wrong.exit_code == 2
    assert "Did you mean 'embedded_math_seen'?" in wrong.stderr
    assert "Traceback" not in failed.stderr + wrong.stderr


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["bench"], ["leaderboard", ".", "--format", "html"], ["train-expert", "--method", "qlora"]]
)
def test_exit_code_of_wrong_usage(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_wrong_values_are_usage_errors() -> None:
    for arguments in (
        ["train-expert", "--output", "x"],
        ["train-expert", "--task", "t", "--output", "x", "--set", "nonsense"],
        ["train-expert", "--task", "t", "--output", "x", "--set", "learning=1"],
        ["train-expert", "--task", "t", "--output", "x", "--seed", "1", "--set", "seed=2"],
        ["leaderboard", "runs/x", "--compare", "a", "b", "--fail-on-regression", "runs/y"],
        ["bench", "absent.yaml", "--output", "x"],
        ["expert", "mix", "x", "--alphas", "half", "--output", "y"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.stderr.startswith("Error: ")


def test_settings_are_read_as_yaml() -> None:
    from t2eval.cli.settings import parse_settings

    assert parse_settings("--set", ("lr=0.004", "kl=[0, 0.1]", "test=false", "label=math")) == {
        "lr": 0.004,
        "kl": [0, 0.1],
        "test": False,
        "label": "math",
    }


def test_a_plan_is_printed_and_nothing_is_left(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    shown = invoke("bench", "paper-mistral-7b", "--plan", "--output", output, "--methods", "base,expert", "--seeds", "0,1")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("Plan of paper-mistral-7b: mistralai/Mistral-7B-Instruct-v0.3, bfloat16\nCells: 18 (")
    assert "7.25G (assumed)" in shown.stdout
    given = ("--assume", "answer_speed=1", "--assume", "read_speed=1e9", "--limit", "3600", "--methods", "base")
    plan = json.loads(invoke("bench", "paper-mistral-7b", "--plan", "--json", "--output", output, *given).stdout)
    math = next(work for work in plan["evaluations"] if work["name"] == "base on t2_math")
    assert math["hours"]["value"] == pytest.approx(200, rel=0.01)
    assert not (tmp_path / "out").exists()
    assert invoke("bench", "paper-mistral-7b", "--plan", "--assume", "speed=1").exit_code == 2
    assert invoke("bench", "paper-mistral-7b", "--plan", "--methods", "bse").exit_code == 2
    twice = invoke("bench", "paper-mistral-7b", "--plan", "--assume", "read_speed=1", "--assume", "read_speed=2")
    assert (twice.exit_code, twice.stderr) == (2, "Error: --assume sets read_speed twice.\n")


def test_a_full_disk_is_one_message(failing: Any) -> None:
    result = failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/rows.jsonl"))
    assert result.exit_code == 1
    assert "the disk is full while writing runs/rows.jsonl" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_ctrl_c_is_one_line(failing: Any) -> None:
    result = failing(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted: what was finished is kept."
    resumable = failing(T2Error("Interrupted: 3 of 9 cells are done."), during=KeyboardInterrupt())
    assert resumable.exit_code == 130
    assert resumable.stderr == "Error: Interrupted: 3 of 9 cells are done.\n"


def test_sigint_ends_a_real_process(root: Path) -> None:
    code = (
        "import os, signal, click\nfrom t2eval.cli import main\n"
        "@click.command()\ndef wait():\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "main.add_command(wait)\nmain(['wait'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip() == "Interrupted: what was finished is kept."


def test_unexpected_errors_ask_for_a_report(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(RuntimeError("shapes differ"))
    assert result.exit_code == 1
    assert "Unexpected error: RuntimeError: shapes differ" in result.stderr
    assert "T2EVAL_DEBUG=1" in result.stderr
    monkeypatch.setenv("T2EVAL_DEBUG", "1")
    assert "in fail" in _stderr_of_debug(failing)


def _stderr_of_debug(failing: Any) -> str:
    return str(failing(RuntimeError("shapes differ")).stderr)


def test_a_gate_gives_three(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2eval.leaderboard import comparison, gate

    worse = comparison.Comparison("cls", "math", 0.5, 0.9, -0.4, -0.5, -0.3, 100, 0.001, "McNemar")
    found = gate.Gate((worse,), ("The runs differ in n: cls on math 100 here, 50 there.",))
    monkeypatch.setattr(gate, "fail_on_regression", lambda directories, other, leave_out_changed=False: found)
    result = invoke("leaderboard", "new", "--fail-on-regression", "old")
    assert result.exit_code == 3
    assert "cls on math" in result.stdout
    assert "Note: The runs differ in n" in result.stderr
    monkeypatch.setattr(
        gate, "fail_on_regression", lambda directories, other, leave_out_changed=False: gate.Gate((), ("No baseline: old",))
    )
    assert invoke("leaderboard", "new", "--fail-on-regression", "old").exit_code == 0
    monkeypatch.setattr(comparison, "compare", lambda directory, first, second: [worse])
    compared = invoke("leaderboard", "new", "--compare", "cls", "base", "--format", "json")
    assert compared.exit_code == 0
    assert json.loads(compared.stdout)[0]["gain"] == -0.4


def test_ci_files_are_written_for_a_repository(tmp_path: Path) -> None:
    result = invoke("leaderboard", "--init-ci", str(tmp_path))
    assert (result.exit_code, (tmp_path / ".github/workflows/leaderboard.yml").is_file()) == (0, True), result.output
    assert invoke("leaderboard").exit_code == 2
    assert "answer different questions" in invoke("leaderboard", "x", "--init-ci", "y", "--compare", "a", "b").stderr


def test_tasks_are_listed_with_sizes_and_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2eval.checks import catalogue

    entries = catalogue.list_tasks()
    monkeypatch.setattr(catalogue, "list_tasks", lambda _folder: entries)
    result = invoke("tasks", "--json")
    assert result.exit_code == 0, result.output
    found = {task["name"]: task for task in json.loads(result.stdout)}
    assert found["embedded_math_seen"]["splits"].keys() == {"train", "validation", "test"}
    assert found["embedded_math_unseen"]["splits"].keys() == {"adaptation", "test"}
    assert all(found[name]["splits"]["test"] >= 400 for name in found if name.startswith("embedded_"))
    assert found["embedded_code_seen"]["needs"] == ["code execution"]
    assert found["embedded_math_seen"]["needs"] == []
    assert found["embedded_reasoning_seen"]["label"] == "reasoning"
    assert "embedded_math_seen" in invoke("tasks").stdout


def test_tasks_path_is_the_folder() -> None:
    folder = Path(invoke("tasks", "path").stdout.strip())
    assert (folder / "embedded" / "embedded_math_seen.yaml").is_file()


def test_doctor_reports_and_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from t2eval.checks import doctor
    from t2eval.checks.check import Check

    good = Check("python", "ok", "3.11")
    monkeypatch.setattr(doctor, "examine", lambda: [good])
    assert invoke("doctor").exit_code == 0
    monkeypatch.setattr(doctor, "examine", lambda: [good, Check("sandbox", "missing", "no bwrap", "apt-get install bubblewrap")])
    sick = invoke("doctor")
    assert sick.exit_code == 1
    assert "→ apt-get install bubblewrap" in sick.stdout
    report = json.loads(invoke("doctor", "--json").stdout)
    assert report["healthy"] is False
    assert report["checks"][1]["status"] == "missing"


def test_doctor_sees_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from t2eval import paths
    from t2eval.basemodel import folders
    from t2eval.checks import doctor

    monkeypatch.setattr(folders, "embedded_base_dir", lambda _name: tmp_path)
    missing = doctor.embedded_base()
    assert (missing.status, "model.safetensors" in missing.detail) == ("missing", True)
    monkeypatch.setattr(paths, "tasks_dir", lambda: tmp_path)
    assert doctor._tasks().status == "missing"
    (tmp_path / "file").write_text("")
    assert doctor.writable("cache", tmp_path / "file" / "below", "T2EVAL_CACHE").status == "missing"
    assert doctor.writable("cache", tmp_path / "new" / "below", "T2EVAL_CACHE").status == "ok"
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("T2EVAL_SANDBOX", "nonsense")
    assert doctor.sandbox().status == "missing"


def test_ones_own_tasks_are_listed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2eval.checks import catalogue

    folder = tmp_path / "my_tasks"
    folder.mkdir()
    code = "import datasets\n\ndef load(**_):\n    return {'test': datasets.Dataset.from_list([{'q': '1'}] * 3)}\n"
    (folder / "mine.py").write_text(code)
    (folder / "mine.yaml").write_text(
        "task: zz_mine\ncustom_dataset: !function mine.load\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\nmetric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {t2: {label: mine}}\n"
    )
    entry = catalogue._entry
    monkeypatch.setattr(catalogue, "_entry", lambda manager, name: entry(manager, name) if "mine" in name else None)
    found = catalogue.list_tasks(folder)
    assert found[0] == catalogue.TaskEntry("zz_mine", "mine", "exact_match", {"test": 3}, ())
    assert len(found) == len(catalogue.list_tasks()) + 1
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = invoke("tasks", "--include-path", str(empty))
    assert (refused.exit_code, "No task was found in" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-expert", "--task", "t", "--output", "{file}"], "is a file"),
        (["train-expert", "--task", "t", "--output", "x", "--config", "{folder}"], "is a directory"),
        (["train-expert", "--task", "t", "--output", "x", "--include-path", "{folder}/absent"], "does not exist"),
        (["train-expert", "--task", "t", "--output", "x", "--include-path", "{file}"], "is a file"),
        (["train-expert", "--task", "t", "--output", "x", "--seed", "-1"], "-1 is not in the range"),
        (["train-expert", "--task", "t", "--output", "x", "--steps", "0"], "0 is not in the range"),
        (["train-expert", "--task", "t", "--output", "x", "--max-seconds", "0"], "is not in the range"),
        (["tasks", "--include-path", "{folder}/absent"], "does not exist"),
        (["bench", "embedded", "--output", "{file}"], "is a file"),
        (["bench", "embedded", "--seeds", "0,-1"], "not '-1'"),
        (["bench", "embedded", "--seeds", ""], "not ''"),
        (["bench", "embedded", "--methods", "base,,cls"], "--methods takes names"),
        (["demo", "--workers", "0"], "0 is not in the range"),
        (["demo", "--seeds", "a"], "not 'a'"),
        (["demo", "--output", "{file}"], "is a file"),
        (["paper", "table1", "--output", "{file}"], "is a file"),
        (["expert", "import", "{folder}", "--output", "x"], "is a directory"),
        (["expert", "show", "{file}"], "is a file"),
    ],
)
def test_a_wrong_value_is_refused_by_name(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    result = invoke(*(word.format(file=tmp_path / "a-file", folder=tmp_path) for word in arguments))
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_paper_says_where_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2eval.paper import report
    from t2eval.paper.item import Result

    def run_item(item: Any, lab: Any) -> Any:
        (lab.output / "cells").mkdir()
        return report.Done(item, Result(()), "the table", 1.0)

    monkeypatch.setattr(report, "run_item", run_item)
    result = invoke("paper", "table1", "--output", str(tmp_path / "p"), "--quick")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Files: {tmp_path / 'p' / 'table1'}; what items share: {tmp_path / 'p' / 'cells'}"


_CLOSED = """
import os, sys
from t2eval.cli import main
sys.argv = ["t2", "--version"]
try:
    main()
finally:
    opened = os.open(os.environ["FILE"], os.O_WRONLY | os.O_CREAT)
    os.write(1, b"printed")
    os.write(opened, b"%d" % (opened > 2))
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_what_is_printed_where_a_stream_is_closed_lands_in_no_file(tmp_path, closed):
    command = f'"{sys.executable}" -c "$PROGRAM" {closed}'
    environment = {**os.environ, "PROGRAM": _CLOSED, "FILE": str(tmp_path / "file")}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "file").read_text() == "1"
