import pytest

from t2eval.bench import commits
from t2eval.bench.config import BenchConfig
from t2eval.bench.execute import run
from t2eval.bench.plan import make_plan
from t2eval.errors import T2Error
from tests.bench.fakes import FakeWorker


def test_each_run_that_adds_rows_is_noted(tmp_path):
    config = {"model": "m", "methods": ("base",), "tasks": ("t1",)}
    for seeds, methods, lines in (((0,), ("base",), 1), ((0,), ("base",), 1), ((0,), ("base", "prompt"), 2)):
        plan = make_plan(BenchConfig(**{**config, "methods": methods, "seeds": seeds, "experts": str(tmp_path / "none")}))
        run(plan, tmp_path / "out", factory=FakeWorker)
        assert len(commits.read(tmp_path / "out")) == lines
    first, second = commits.read(tmp_path / "out")
    assert first.time <= second.time and first.time.endswith("+00:00")


def test_a_line_that_is_being_written_does_not_count_and_one_that_was_cut_off_is_no_part_of_the_next(tmp_path):
    commits.note(tmp_path)
    path = tmp_path / commits.COMMITS
    path.write_text(path.read_text() + '{"tim')
    assert len(commits.read(tmp_path)) == 1
    commits.note(tmp_path)
    assert len(commits.read(tmp_path)) == 2


def test_a_damaged_file_is_named_and_a_missing_one_is_none(tmp_path):
    assert commits.read(tmp_path) == []
    (tmp_path / commits.COMMITS).write_text('{"time": 3}\n')
    with pytest.raises(T2Error, match=r"commits.jsonl is not what a benchmark writes. Remove it"):
        commits.read(tmp_path)
