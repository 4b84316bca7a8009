"""The guard of the benchmarks: what fails it, by which exit status, and what it names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_check
import pytest

from t2eval.errors import T2Error


def _baseline(folder: Path, **changes: Any) -> Path:
    """All cases with one time ratio of 0.5, and two of them with another."""
    cases = {case: {"arguments": ["--turns", "1"], "ratios": {"time_ratio": 0.5}} for case in bench_check.CASES}
    cases["train_step"]["ratios"] = {"time_ratio": 0.5, "memory_ratio": 0.4}
    content = {"tolerance": 0.2, "measured": "here", "cases": {**cases, **changes}}
    path = folder / "baseline.json"
    path.write_text(json.dumps(content))
    return path


class Scripts:
    """What the scripts would give: a list of time ratios a case, one a run; 0.5 where none is given."""

    def __init__(self, **times: list[float]) -> None:
        self.times, self.runs = times, list[str]()

    def __call__(self, case: str, arguments: Sequence[str]) -> dict[str, float]:
        assert list(arguments) == ["--turns", "1"]
        self.runs.append(case)
        given = self.times.get(case, [0.5])
        time = given.pop(0) if len(given) > 1 else given[0]
        return {"time_ratio": time, "memory_ratio": 0.4} if case == "train_step" else {"time_ratio": time}


def test_ratios_within_the_tolerance_pass(tmp_path: Path) -> None:
    scripts = Scripts(choice_step=[0.59], train_step=[0.3])
    assert bench_check.main([], scripts, _baseline(tmp_path)) == 0
    assert scripts.runs == list(bench_check.CASES)


def test_a_worse_ratio_fails_and_names_the_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_check.main([], Scripts(choice_step=[0.61]), _baseline(tmp_path)) == bench_check.WORSE
    printed = capsys.readouterr()
    assert "worse than baseline.json: choice_step\n" in printed.err
    (line,) = (line for line in printed.out.splitlines() if "WORSE" in line)
    assert line.split()[:3] == ["choice_step", "time_ratio", "0.610"]


def test_a_disturbed_run_is_measured_again_and_the_least_counts(tmp_path: Path) -> None:
    scripts = Scripts(choice_step=[0.9, 0.8, 0.55])
    assert bench_check.main(["choice_step"], scripts, _baseline(tmp_path)) == 0
    assert scripts.runs == ["choice_step"] * 3
    assert bench_check.main(["choice_step"], Scripts(choice_step=[0.9, 0.8, 0.7, 0.5]), _baseline(tmp_path)) == bench_check.WORSE


def test_a_case_has_its_own_tolerance(tmp_path: Path) -> None:
    wide = {"arguments": ["--turns", "1"], "ratios": {"time_ratio": 0.5}, "tolerance": 0.4}
    assert bench_check.main(["choice_step"], Scripts(choice_step=[0.69]), _baseline(tmp_path, choice_step=wide)) == 0


def test_unknown_and_missing_cases_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(names: list[str], **changes: Any) -> str:
        assert bench_check.main(names, Scripts(), _baseline(tmp_path, **changes)) == bench_check.BROKEN
        return capsys.readouterr().err

    assert "train_stepp" in (said := refused(["train_stepp"])) and "train_step" in said.replace("train_stepp", "")
    assert (
        "there is no such case" in (said := refused([], train_leap={"arguments": [], "ratios": {"time_ratio": 1.0}}))
        and "train_leap" in said
    )
    path = _baseline(tmp_path)
    content = json.loads(path.read_text())
    del content["cases"]["rollouts"]
    path.write_text(json.dumps(content))
    assert bench_check.main([], Scripts(), path) == bench_check.BROKEN
    assert "Case rollouts has no baseline" in capsys.readouterr().err
    path.write_text("{}")
    assert bench_check.main([], Scripts(), path) == bench_check.BROKEN
    assert str(path) in capsys.readouterr().err


def test_a_ratio_that_only_one_of_both_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"arguments": ["--turns", "1"], "ratios": {"time_ratio": 0.5, "lost_ratio": 0.5}}
    assert bench_check.main(["choice_step"], Scripts(), _baseline(tmp_path, choice_step=more)) == bench_check.BROKEN
    assert "'choice_step'" in (said := capsys.readouterr().err) and "lost_ratio" in said


def test_update_writes_the_middle_of_three(tmp_path: Path) -> None:
    path = _baseline(tmp_path)
    assert bench_check.main(["--update", "choice_step"], Scripts(choice_step=[0.9, 0.7, 0.8]), path) == 0
    kept = bench_check.load(path)
    assert kept.cases["choice_step"].ratios == {"time_ratio": 0.8} and kept.cases["train_step"].ratios["time_ratio"] == 0.5


def test_what_a_script_prints() -> None:
    assert bench_check.ratios_of("x", 'words\n{"benchmark": "x", "time_ratio": 0.5, "sizes": 3}\n') == {"time_ratio": 0.5}
    for printed in ("", "words", '{"benchmark": "x"}', "[1]"):
        with pytest.raises(T2Error, match="'x'"):
            bench_check.ratios_of("x", printed)


def test_the_repository_s_baseline_has_every_case_and_every_case_a_script(tmp_path: Path) -> None:
    kept = bench_check.load()
    assert set(kept.cases) == set(bench_check.CASES) and all(case.ratios for case in kept.cases.values())
    assert all((bench_check.FOLDER / f"{case}.py").is_file() for case in bench_check.CASES)
    with pytest.raises(T2Error, match="'no_such'"):
        bench_check.measured("no_such", [])
