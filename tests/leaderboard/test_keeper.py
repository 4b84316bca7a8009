"""What the keeper of a leaderboard meets: a run that grows while it is read, odd names, a model's texts, slips at the command line."""

import threading

import pytest
from click.testing import CliRunner

from t2eval import cli
from t2eval.bench.plan import Cell
from t2eval.bench.rows import ROWS, Row, append
from t2eval.errors import UsageError
from t2eval.leaderboard.exports import export
from t2eval.leaderboard.gate import fail_on_regression
from t2eval.leaderboard.page.document import write_page
from t2eval.leaderboard.report import leaderboard
from tests.leaderboard.page.runs import HOSTILE, put


def t2(*arguments):
    """The command: its exit code and all that it printed."""
    result = CliRunner().invoke(cli.main, ["leaderboard", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def fail(folder, error, method="cls", task="sums"):
    cell = Cell("embedded", method, task, 0)
    append(folder, Row(cell=cell.key, model="embedded", method=method, task=task, seed=0, status="failed", error=error))


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_row_that_is_being_written_is_not_there_yet(tmp_path, part):
    """Readers take no lock: a run writes its rows while the table, the page and the exports are made."""
    run = tmp_path / "run"
    put(run, "base", "sums")
    whole = (run / ROWS).read_bytes()
    put(run, "expert", "größe")
    grown = (run / ROWS).read_bytes()
    (run / ROWS).write_bytes(whole)
    before = leaderboard(run).to_json()
    line = grown[len(whole) :].replace(b"\\u00f6", "ö".encode())
    cut = line.index("ö".encode()) + 1 if part == 0.5 else int(len(line) * part)  # in the middle of a letter, too
    with (run / ROWS).open("ab") as file:
        file.write(line[:cut])
    (run / "commits.jsonl").write_text('{"time": "2026-01-01T00:00:00+00:00"}\n{"ti')
    assert leaderboard(run).to_json() == before
    assert write_page(tmp_path / "page.html", run) > 10_000
    assert len(export(run, "lm-eval", tmp_path / "out")[0]) == 2
    assert fail_on_regression(run, run).worse == ()
    with (run / ROWS).open("ab") as file:
        file.write(line[cut:])
    assert leaderboard(run).methods == ("base", "expert")


def test_a_run_that_grows_is_read_at_any_time(tmp_path):
    put(tmp_path, "base", "sums0")
    done = threading.Event()

    def write():
        for number in range(12):
            put(tmp_path, "expert" if number % 2 else "base", f"sums{1 + number // 2}")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(len(leaderboard(tmp_path).entries))
    writer.join()
    assert seen == sorted(seen) and len(seen) > 1
    assert len(leaderboard(tmp_path).entries) == 13


def test_markdown_shows_what_a_model_wrote_as_text(tmp_path):
    put(tmp_path, "base", "sums")
    put(tmp_path, "expert", "sums")
    put(tmp_path, "expert", "a|b <img src=x>")
    fail(tmp_path, f"KeyError: @somebody ``` {HOSTILE}\nsecond line")
    board = leaderboard(tmp_path)
    text = board.to_markdown()
    (line,) = (line for line in text.split("\n") if "FAILED" in line)
    assert line.startswith("- FAILED: cls on sums, seed 0: ```` KeyError: @somebody ``` </script>") and line.endswith(" ````")
    assert "\\u202e" in line and "\\u001b" in line and "\\u2028" in line
    assert "| method | a\\|b &lt;img src=x> | sums |" in text and "p < 0.05" in text
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert board.failures[0].error.endswith(HOSTILE[-20:]), "JSON has it as it is"
    put(tmp_path / "old", "cls", "sums")
    (broken,) = fail_on_regression(tmp_path, tmp_path / "old").worse
    assert "failed now: KeyError: @somebody" in str(broken) and "second line" not in str(broken) and "\u202e" not in str(broken)


@pytest.mark.parametrize(
    "name", ["two words", "-dash", "ünïcödé 😀", "a&b<c>\"'", "new\nline", "percent%20", "[x]*", "shard-3-of-2", "\u202e"]
)
def test_folders_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / name, "base", "sums")
    put(tmp_path / name, "expert", "sums")
    assert t2("--", name)[0] == 0
    assert t2("--html", "page.html", "--earlier", name, "--", name)[0] == 0
    assert "<title>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert t2("--fail-on-regression", name, "--", name) == (0, f"No significant regression against {name}.\n")


def test_a_page_is_written_over_nothing_but_a_page(tmp_path):
    put(tmp_path / "run", "base", "sums")
    rows = (tmp_path / "run" / ROWS).read_bytes()
    code, said = t2(tmp_path / "run", "--html", tmp_path / "run" / ROWS)
    assert code == 2 and "rows.jsonl is there already, and is no page: it would be lost. Give another --html." in said
    assert (tmp_path / "run" / ROWS).read_bytes() == rows
    for _ in range(2):
        assert t2(tmp_path / "run", "--html", tmp_path / "page.html")[0] == 0
    (tmp_path / "null").symlink_to("/dev/null")
    code, said = t2(tmp_path / "run", "--html", tmp_path / "null")
    assert code == 1 and "it is no regular file" in said and (tmp_path / "null").is_symlink()


def test_a_file_in_place_of_a_folder_is_a_slip(tmp_path):
    put(tmp_path, "base", "sums")
    with pytest.raises(UsageError, match=r"rows.jsonl is a file. Give the folder that it is in"):
        leaderboard(tmp_path / ROWS)
    with pytest.raises(UsageError, match=r"rows.jsonl is a file. Give the folder of the run that .* is held against"):
        fail_on_regression(tmp_path, tmp_path / ROWS)


@pytest.mark.parametrize(
    "options, said",
    [
        (("--port", "8000"), "--port is for --serve: give it too."),
        (("--earlier", "."), "--earlier is for --html or --serve: give one of them too."),
        (("--output", "x"), "--output is for --export: give it too."),
        (("--leave-out-changed-tasks",), "--leave-out-changed-tasks is for --fail-on-regression: give it too."),
        (("--html", "p.html", "--format", "json"), "--format and --html do not go together: --format would be ignored."),
        (("--init-ci", ".", "--earlier", "."), "do not go together: "),
        (("--init-ci", "."), "DIRECTORY and --init-ci do not go together: DIRECTORY would be ignored."),
        (("--html", "p.html", "--serve"), "--html and --serve answer different questions: give one of them."),
    ],
)
def test_no_option_is_ignored(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    code, told = t2("run", *options)
    assert code == 2 and said in told
    assert not list(tmp_path.iterdir())
