"""Shards: the same parts wherever they are computed, every cell in exactly one, trainings in one part, arrays that begin anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from t2eval.bench import manifest
from t2eval.bench.config import DEFAULT_METHODS as METHODS
from t2eval.bench.config import BenchConfig
from t2eval.bench.execute import run
from t2eval.bench.plan import Plan, load_plan, make_plan
from t2eval.bench.shards import Shard, missing_shards, needs, parse_shard, shard_folders, shard_of, unsharded_task
from t2eval.cli import main
from t2eval.errors import UsageError
from tests.bench.fakes import FakeWorker

TRAINED = {"train": {"skills": {"math": {"task": "t2_gsm8k"}}}}


def plan_of(tasks: int, seeds: int, methods: tuple[str, ...] = METHODS, **more: object) -> Plan:
    names = tuple(f"t{number}" for number in range(tasks))
    return make_plan(BenchConfig(model="fake", methods=methods, tasks=names, seeds=tuple(range(seeds)), **more))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 40), st.booleans())
def test_every_cell_is_in_exactly_one_shard(tasks: int, seeds: int, count: int, trained: bool) -> None:
    plan = plan_of(tasks, seeds, **TRAINED if trained else {})
    parts = [shard_of(plan, Shard(index, count)).cells for index in range(1, count + 1)]
    assert sorted(cell.key for part in parts for cell in part) == sorted(cell.key for cell in plan.cells)
    for part in parts:
        assert list(part) == [cell for cell in plan.cells if cell in part], "a shard keeps the plan's order"
    if trained:  # cells that wait for one training are not parted
        homes: dict[object, set[int]] = {}
        for index, part in enumerate(parts):
            for cell in part:
                homes.setdefault(needs(plan.config, cell), set()).add(index)
        assert all(len(home) == 1 for home in homes.values())
    else:
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_cells_of_one_training_stay_together() -> None:
    plan = load_plan("embedded")
    together = {needs(plan.config, cell) for cell in plan.cells if cell.method in ("expert", "prompt", "cls", "fewshot") and cell.seed == 1}
    assert together == {("experts", 1)}
    parts = [shard_of(plan, Shard(index, 3)).cells for index in (1, 2, 3)]
    assert sorted(len(part) for part in parts) == [44, 44, 44]


@pytest.mark.parametrize(("text", "shard"), [("1/1", Shard(1, 1)), ("2/8", Shard(2, 8)), (" 8 / 8 ", Shard(8, 8))])
def test_shards_as_they_are_named(text: str, shard: Shard) -> None:
    assert parse_shard(text) == shard


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/8", "shards count from 1, so the 8 are 1/8 to 8/8"),
        ("9/8", "shards count from 1"),
        ("1/0", "from 1 to"),
        ("-1/8", "takes I/N"),
        ("2", "takes I/N"),
        ("", "takes I/N"),
        ("a/b", "takes I/N"),
        ("slurm", "SLURM_ARRAY_TASK_ID is not set: this is no task of a Slurm job array"),
    ],
)
def test_wrong_shards_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_shard(text, {})


def array(task: object, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    """What Slurm sets in a task of `--array=first-last:step`."""
    names = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.parametrize(
    ("first", "last", "step"),
    [(0, 7, 1), (1, 8, 1), (100, 107, 1), (0, 28, 4), (3, 3, 1)],
)
def test_an_array_may_begin_anywhere(first: int, last: int, step: int) -> None:
    tasks = range(first, last + 1, step)
    found = [parse_shard("slurm", array(task, first, last, len(tasks), step)) for task in tasks]
    assert found == [Shard(index, len(tasks)) for index in range(1, len(tasks) + 1)]


def test_an_uneven_array_is_refused() -> None:
    assert parse_shard("slurm", array(1, 1, 7, 3)) == Shard(1, 3)
    with pytest.raises(UsageError, match=r"task 7 of an array of 3 from 1 to 7 .* Submit with `sbatch --array=1-3`"):
        parse_shard("slurm", array(7, 1, 7, 3))  # --array=1,3,7
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_COUNT is 'many', which is no number"):
        parse_shard("slurm", {**array(1, 1, 2, 2), "SLURM_ARRAY_TASK_COUNT": "many"})


def test_an_array_task_that_runs_everything_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert unsharded_task({}) is None
    assert unsharded_task(array(1, 1, 1, 1)) is None
    for name, value in array(3, 1, 4, 4).items():
        monkeypatch.setenv(name, value)
    command = ["bench", "embedded", "--output", str(tmp_path), "--executor", "nonsense"]  # ends before anything is read
    assert "this is task 3 of a Slurm array of 4, and it runs all cells: --shard slurm" in CliRunner().invoke(main, command).stderr
    assert "Slurm" not in CliRunner().invoke(main, [*command, "--shard", "slurm"]).stderr


def test_folders_sort_as_their_numbers(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        (tmp_path / Shard(index, 12).folder).mkdir()
    (tmp_path / "shard-x-of-3").mkdir()
    assert [path.name for path in shard_folders(tmp_path)] == ["shard-01-of-12", "shard-02-of-12", "shard-10-of-12"]
    assert missing_shards(["1/3", "2/2"]) == ["1/2", "2/3", "3/3"]


def test_a_shard_has_a_folder_of_its_own_and_does_not_grow(tmp_path: Path) -> None:
    plan = plan_of(2, 2, ("base", "prompt"), experts=str(tmp_path / "library"))
    first, second = (shard_of(plan, Shard(index, 2)) for index in (1, 2))
    assert len(run(first, tmp_path / "1", factory=FakeWorker).rows) == 3
    assert run(first, tmp_path / "1", factory=FakeWorker).skipped == 3
    assert (manifest.read(tmp_path / "1") or {})["shard"] == "1/2"
    with pytest.raises(UsageError, match=r"was begun for shard 1/2, and this is shard 2/2. Give the same --shard"):
        run(second, tmp_path / "1", factory=FakeWorker)
    with pytest.raises(UsageError, match="was begun for shard 1/2, and this is all cells"):
        run(plan, tmp_path / "1", factory=FakeWorker)
    with pytest.raises(UsageError, match="tasks was"):
        larger = plan_of(3, 2, ("base", "prompt"), experts=str(tmp_path / "library"))
        run(shard_of(larger, Shard(1, 2)), tmp_path / "1", factory=FakeWorker)
    narrowed = run(first, tmp_path / "one-seed", seeds=[0], factory=FakeWorker)
    assert len(narrowed.rows) == 2, "the part of what is left, not what is left of the part"


def test_a_shard_without_cells_says_so(tmp_path: Path) -> None:
    plan = plan_of(1, 1, ("base",))
    assert run(shard_of(plan, Shard(2, 2)), tmp_path, factory=FakeWorker).rows == ()
    assert (manifest.read(tmp_path) or {})["shard"] == "2/2"
