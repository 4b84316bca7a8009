"""The pool: processes that live from run to run, are replaced when they die, and are gone when it is closed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2eval.bench.config import BenchConfig
from t2eval.bench.execute import run
from t2eval.bench.plan import make_plan
from t2eval.errors import T2Error, UsageError
from t2eval.workers import processes
from t2eval.workers.pool import Outcome, Pool
from t2eval.workers.processes import gpus_of, threads_each
from tests.bench.fakes import FakeWorker, Steered


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def answers(pool: Pool, log: Path, *items: Any, **settings: Any) -> list[Outcome]:
    with contextlib.closing(pool.run(Steered(), items, log, **settings)) as outcomes:
        return list(outcomes)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_live_on_and_are_made_ready_anew(pool: Pool, tmp_path: Path) -> None:
    assert pool.pids == (), "started before they are needed"
    first = answers(pool, tmp_path / "a.log", *["wait"] * 4)
    second = answers(pool, tmp_path / "b.log", *["wait"] * 4)
    assert {found.value[0] for found in first} == {found.value[0] for found in second} == set(pool.pids)
    assert len(pool.pids) == 2
    assert sorted(found.value[1] for found in second) == [1, 1, 2, 2], "something of the first run was left"
    assert (tmp_path / "a.log").read_text() == (tmp_path / "b.log").read_text() == "printed wait\n" * 4


def test_each_process_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    with Pool(3, gpus=("4", "GPU-5")) as pool:
        found = answers(pool, tmp_path / "log", *["environment"] * 6)
        assert sorted({each.value[0] for each in found}) == ["4", "GPU-5"]
        assert sorted(pool._gpu_of.values()) in (["4", "4", "GPU-5"], ["4", "GPU-5", "GPU-5"])
    with Pool(2, gpus=("0", "1")) as pool:
        (died, *rest) = answers(pool, tmp_path / "log", "die", *["environment"] * 4)
        assert sorted(pool._gpu_of.values()) == ["0", "1"], "the process that takes a dead one's place has its GPU"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, ("0", "1", "2")),
        ("cuda", None, ("0", "1", "2")),
        ("auto", "5, GPU-7", ("5", "GPU-7")),
        ("auto", "", ()),
        ("auto", "-1", ()),
        ("cuda:1", None, ()),
        ("cpu", "5", ()),
        ("balanced", None, ()),
    ],
)
def test_gpus_are_divided_only_where_no_device_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, expected: tuple[str, ...]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_of(device) == expected


def test_threads_are_the_users_or_a_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with Pool(2) as pool:
        assert {each.value[1] for each in answers(pool, tmp_path / "log", "environment", "environment")} == {"3"}
    monkeypatch.delenv("OMP_NUM_THREADS")
    with Pool(2) as pool:
        assert {each.value[1] for each in answers(pool, tmp_path / "log", "environment", "environment")} == {"4"}
    assert threads_each(16) == 1


def test_no_more_processes_than_items(pool: Pool, tmp_path: Path) -> None:
    assert [found.value[1] for found in answers(pool, tmp_path / "log", 1)] == [1]
    assert len(pool.pids) == 1
    assert answers(pool, tmp_path / "log") == []


def test_a_group_stays_in_one_process(pool: Pool, tmp_path: Path) -> None:
    found = answers(pool, tmp_path / "log", *["wait", "fine"] * 5, group=lambda item: item)
    places = {item: {each.value[0] for each in found if each.item == item} for item in ("wait", "fine")}
    assert len(places["wait"]) == 1 or len(places["fine"]) == 1


def test_a_process_that_dies_costs_its_item_and_is_replaced(pool: Pool, tmp_path: Path) -> None:
    found = answers(pool, tmp_path / "log", "die", *["wait"] * 4)
    assert [(each.item, each.exit_code) for each in found if each.exit_code is not None] == [("die", 9)]
    assert sum(each.value is not None for each in found) == 4
    assert len(pool.pids) == 2
    idle = pool.pids[0]
    os.kill(idle, signal.SIGKILL)
    while idle in pool.pids:
        time.sleep(0.01)
    after = answers(pool, tmp_path / "log", *["wait"] * 4)
    assert all(each.value is not None for each in after)
    assert idle not in pool.pids and len(pool.pids) == 2


def test_errors_come_back_in_a_form_that_can_be_read(pool: Pool, tmp_path: Path) -> None:
    odd, full, fine = answers(pool, tmp_path / "log", "unreadable", "full", 1, group=lambda item: "same")
    errors = {each.item: each.error for each in (odd, full, fine)}
    assert isinstance(errors["unreadable"], T2Error) and str(errors["unreadable"]) == "Unreadable: odd"
    assert isinstance(errors["full"], OSError) and errors["full"].errno == errno.ENOSPC
    assert errors[1] is None


@pytest.mark.parametrize(("mode", "kind", "message"), [("refuse", UsageError, "No such base"), ("die", T2Error, r"ready \(exit code 7\)")])
def test_a_process_that_cannot_be_made_ready_ends_the_run(
    pool: Pool, tmp_path: Path, mode: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        list(pool.run(Steered(mode), [1, 2], tmp_path / "log"))
    assert len(answers(pool, tmp_path / "log", 1, 2)) == 2, "the pool can go on"


def test_who_stops_asking_ends_what_is_busy(pool: Pool, tmp_path: Path) -> None:
    answers(pool, tmp_path / "log", *["wait"] * 4)
    before = pool.pids
    with contextlib.closing(pool.run(Steered(), ["sleep", "fine", "sleep"], tmp_path / "log")) as outcomes:
        assert next(outcomes).item == "fine"
    assert not any(lives(pid) for pid in before)


def test_an_interrupt_leaves_no_answer_for_the_next_run(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(pool, tmp_path / "log", *["wait"] * 4)
    before = pool.pids

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("t2eval.workers.pool.wait", interrupted)
        answers(pool, tmp_path / "log", "sleep", "sleep")
    assert not any(lives(pid) for pid in before), "what they would have said is nobody's"
    found = answers(pool, tmp_path / "log", "wait", "fine")
    assert sorted(outcome.item for outcome in found) == ["fine", "wait"] and not set(before) & set(pool.pids)


def test_nothing_runs_after_close(tmp_path: Path) -> None:
    pool = Pool(2)
    answers(pool, tmp_path / "log", *["wait"] * 4)
    pids = pool.pids
    assert len(pids) == 2
    pool.close()
    assert pool.pids == () and not any(lives(pid) for pid in pids)


def test_benchmarks_share_processes(pool: Pool, tmp_path: Path) -> None:
    config = BenchConfig(model="fake", methods=("base", "prompt"), tasks=("t1", "t2"), experts=str(tmp_path / "library"))
    assert run(make_plan(config), tmp_path / "a", pool=pool, factory=FakeWorker).exit_code == 0
    pids = pool.pids
    other = config.model_copy(update={"limit": 5})
    assert [row.n for row in run(make_plan(other), tmp_path / "b", pool=pool, factory=FakeWorker).rows] == [5] * 4
    assert pool.pids == pids and len(pids) == 2
