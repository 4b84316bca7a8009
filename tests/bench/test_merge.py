"""Merging: shards give the table of the whole; what is there twice, differs, or is missing is said by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from t2eval.bench import rows
from t2eval.bench.config import BenchConfig
from t2eval.bench.execute import run
from t2eval.bench.merge import merged
from t2eval.bench.plan import Plan, make_plan
from t2eval.bench.rows import read_samples, write_samples
from t2eval.bench.shards import Shard, shard_of
from t2eval.cli import main
from t2eval.errors import UsageError
from t2eval.leaderboard.comparison import compare
from t2eval.leaderboard.gate import fail_on_regression
from t2eval.leaderboard.report import leaderboard
from tests.bench.fakes import FakeWorker
from tests.bench.test_execute import facts


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    library = tmp_path_factory.mktemp("library")
    return make_plan(BenchConfig(model="fake", methods=("base", "prompt", "cls"), tasks=("t1", "t2"), seeds=(0, 1), experts=str(library)))


@pytest.fixture(scope="module")
def made(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, and its three shards in `parts`."""
    folder = tmp_path_factory.mktemp("made")
    run(plan, folder / "whole", factory=FakeWorker)
    for index in (1, 2, 3):
        shard = Shard(index, 3)
        run(shard_of(plan, shard), folder / "parts" / shard.folder, factory=FakeWorker)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(folder: Path, number: int, **changes: object) -> rows.Row:
    """Change one row where it lies."""
    found = rows.read(folder)
    found[number] = found[number].model_copy(update=changes)
    (folder / rows.ROWS).write_text("".join(row.model_dump_json() + "\n" for row in found))
    return found[number]


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "parts").iterdir())


def test_shards_make_the_table_of_the_whole(here: Path) -> None:
    whole = facts(leaderboard(here / "whole"))
    assert facts(leaderboard(here / "parts")) == whole, "the folder that holds them"
    assert facts(leaderboard(shards(here)[::-1])) == whole, "their own folders, in any order"
    assert [str(item) for item in compare(shards(here), "cls", "prompt")] == [
        str(item) for item in compare(here / "whole", "cls", "prompt")
    ]
    assert not fail_on_regression(here / "parts", here / "whole").worse
    assert not fail_on_regression(here / "whole", here / "parts").notes
    printed = CliRunner().invoke(main, ["leaderboard", *map(str, shards(here)), "--format", "json"])
    assert printed.exit_code == 0
    assert len(json.loads(printed.stdout)["entries"]) == len(leaderboard(here / "whole").entries)


def test_one_shard_in_a_folder_is_found(here: Path) -> None:
    for path in shards(here)[1:]:
        shutil.rmtree(path)
    board = leaderboard(here / "parts")
    assert "Missing: shards 2/3, 3/3." in board.notes
    (cells,) = [note for note in board.notes if "have no row" in note]
    assert cells.startswith("Missing: 6 cells have no row: fake__base__t2__seed0, ")


def test_equal_duplicates_count_once_and_are_named(here: Path) -> None:
    copied = here / "copied"
    shutil.copytree(shards(here)[0], copied)
    edit(copied, 0, seconds=99.0, peak_memory_bytes=5)
    found = merged([here / "parts", copied])
    assert len(found.rows) == 10
    assert len(found.notes) == 4 and all("with equal results, and counts once" in note for note in found.notes)
    assert found.rows[0].seconds != 99.0
    assert "fake__base__t1__seed0 lies in" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": 0.25}, r"score is [\d.]+ in .*shard-1-of-3 and 0.25 in .*copied"),
        ({"n": 3}, "n is 40 in .* and 3 in"),
        ({"hashes": {"task": "other"}}, "made with two versions of the task t1"),
    ],
)
def test_a_cell_with_two_results_is_refused_by_name(here: Path, changes: dict[str, object], message: str) -> None:
    first, copied = shards(here)[0], here / "copied"
    edit(first, 0, hashes={"task": "one"})
    shutil.copytree(first, copied)
    edit(copied, 0, **changes)
    with pytest.raises(UsageError, match=f"fake__base__t1__seed0 lies in .*copied with different results.*{message}"):
        leaderboard([here / "parts", copied])


def test_other_outcomes_behind_one_score_are_seen(here: Path) -> None:
    first, copied = shards(here)[0], here / "copied"
    shutil.copytree(first, copied)
    row = rows.read(copied)[0]
    samples = read_samples(copied, row)
    right, wrong = (next(s for s in samples if s.score == value) for value in (1.0, 0.0))
    swapped = {right.doc_id: 0.0, wrong.doc_id: 1.0}
    write_samples(copied, row.cell, [s.model_copy(update={"score": swapped.get(s.doc_id, s.score)}) for s in samples])
    with pytest.raises(UsageError, match="their examples have other scores"):
        merged([first, copied])


def test_a_cell_that_failed_in_one_place_counts_where_it_worked(here: Path) -> None:
    first, copied = shards(here)[0], here / "copied"
    shutil.copytree(first, copied)
    failed = edit(first, 0, status="failed", error="KeyError: broken", score=None, samples=None)
    found = merged([here / "parts", copied])
    (row,) = [row for row in found.rows if row.cell == failed.cell]
    assert row.status == "ok"
    assert f"it failed in {first}, and the row of {copied} counts" in found.notes[0]
    assert not leaderboard([copied, here / "parts"]).failures


def test_parts_of_other_benchmarks_are_refused(here: Path) -> None:
    second = shards(here)[1]
    file = second / "manifest.json"
    content = json.loads(file.read_text())
    content["config"] |= {"experts": "/elsewhere/library"}
    file.write_text(json.dumps(content))
    assert len(merged([here / "parts"]).rows) == 10, "places may differ between machines"
    content["config"] |= {"limit": 7}
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="are of different benchmarks: limit is None in the first and 7 in the second"):
        leaderboard(here / "parts")


def test_rows_made_with_other_inputs_are_refused_across_folders(here: Path) -> None:
    for path, version in zip(shards(here), ("1", "2", "2"), strict=True):
        for number in range(len(rows.read(path))):
            edit(path, number, versions={"torch": version})
    with pytest.raises(UsageError, match=r"do not belong beside each other: .* two versions of torch \(1 and 2\)"):
        leaderboard(here / "parts")


def test_a_folder_that_is_named_in_vain_is_refused(here: Path) -> None:
    with pytest.raises(UsageError, match="nothing-here holds no finished cells"):
        leaderboard([here / "whole", here / "nothing-here"])
