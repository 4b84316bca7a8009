"""The guard of the benchmarks: runs the small CPU cases and compares their ratios with `benchmarks/baseline.json`.

    python benchmarks/bench_check.py                       all cases (`make bench-check`)
    python benchmarks/bench_check.py train_step first_pass only these
    python benchmarks/bench_check.py --update              write what is measured as the new baseline: say in the commit why

A case is one benchmark's script with the arguments that the baseline has for it. Of its last line of JSON every key ending in `_ratio` is
compared: less is better, and more than (1 + tolerance) times the baseline's is worse. Seconds are never compared. A ratio that seems worse
is measured again, at most twice, and the least counts, so that one disturbed run fails nothing.

Exit status: 0, all ratios hold; 1, one is worse; 2, a case, a baseline or a ratio is missing or unknown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from t2eval.errors import T2Error, unknown
from t2eval.store.files import read_record, write_json

FOLDER = Path(__file__).resolve().parent
BASELINE = FOLDER / "baseline.json"
CASES = ("train_step", "merged_forward", "choice_step", "learning_paths", "rollouts", "first_pass", "mixed_batch", "expert_cost")
TRIES = 3
WORSE, BROKEN = 1, 2

Ratios = dict[str, float]
Measure = Callable[[str, Sequence[str]], Ratios]


def measured(case: str, arguments: Sequence[str]) -> Ratios:
    """The ratios that a benchmark's script gives.

    Raises:
        T2Error: the script is not there, fails, or prints no ratio.
    """
    script = FOLDER / f"{case}.py"
    if not script.is_file():
        raise T2Error(f"Case {case!r} has no script: {script} does not exist.")
    finished = subprocess.run([sys.executable, str(script), "--json", *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise T2Error(f"Case {case!r} failed with exit status {finished.returncode}:\n{finished.stderr[-2000:]}")
    return ratios_of(case, finished.stdout)


def ratios_of(case: str, printed: str) -> Ratios:
    """The ratios in what a script printed.

    Raises:
        T2Error: its last line is not JSON, or has no ratio.
    """
    lines = printed.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except ValueError as error:
        raise T2Error(f"Case {case!r}: the last line is not JSON: {lines[-1][:200]}") from error
    ratios = {name: float(value) for name, value in found.items() if name.endswith("_ratio")} if isinstance(found, dict) else {}
    if not ratios:
        raise T2Error(f"Case {case!r} gave no ratio: no key of its last line ends in _ratio.")
    return ratios


class Case(BaseModel):
    """What the baseline keeps of a case: the script's arguments, its ratios, and a tolerance where it needs one of its own."""

    model_config = ConfigDict(extra="forbid")

    arguments: list[str]
    ratios: dict[str, float] = {}
    tolerance: float | None = Field(default=None, gt=0)


class Baseline(BaseModel):
    """`benchmarks/baseline.json`."""

    model_config = ConfigDict(extra="forbid")

    tolerance: float = Field(gt=0)
    measured: str
    cases: dict[str, Case]


def load(path: Path = BASELINE) -> Baseline:
    """The baseline.

    Raises:
        T2Error: it cannot be read, or lacks a part.
    """
    return read_record(path, Baseline, what="baseline of the benchmarks", remedy="Take it from the repository again.")


def chosen(names: Sequence[str], baseline: Baseline) -> list[str]:
    """The cases to run.

    Raises:
        UsageError: a name that is no case.
        T2Error: a case without a baseline, or a baseline of no case.
    """
    for name in names:
        if name not in CASES:
            raise unknown("case", name, CASES)
    if strange := sorted(set(baseline.cases) - set(CASES)):
        raise T2Error(f"The baseline has {', '.join(strange)}, and there is no such case: take it out, or name it in CASES.")
    wanted = list(names or CASES)
    if missing := [name for name in wanted if name not in baseline.cases]:
        raise T2Error(f"Case {', '.join(missing)} has no baseline: give it its arguments in {BASELINE.name}, and run with --update.")
    return wanted


def judge(case: str, kept: Case, tolerance: float, measure: Measure, again: int = TRIES) -> list[tuple[str, float, float, float]]:
    """(ratio, baseline, limit, least measured) of one case's ratios. Measures until all hold, `again` times at most.

    Raises:
        T2Error: a ratio that the baseline has and the script does not give, or the other way about.
    """
    limits = {name: float(value) * (1 + tolerance) for name, value in kept.ratios.items()}
    least: Ratios = {}
    for _ in range(again):
        found = measure(case, kept.arguments)
        if found.keys() != limits.keys():
            odd = ", ".join(sorted(found.keys() ^ limits.keys()))
            raise T2Error(f"Case {case!r}: the baseline and the script differ in what they have: {odd}. Run with --update {case}.")
        least = {name: min(value, least.get(name, value)) for name, value in found.items()}
        if all(least[name] <= limits[name] for name in limits):
            break
    return [(name, float(kept.ratios[name]), limits[name], least[name]) for name in limits]


def check(names: Sequence[str], baseline: Baseline, measure: Measure = measured, say: Callable[[str], None] = print) -> list[str]:
    """Run the cases; the names of those that are worse."""
    worse = []
    for case in chosen(names, baseline):
        began, kept = time.monotonic(), baseline.cases[case]
        tolerance = kept.tolerance or baseline.tolerance
        for name, before, limit, now in judge(case, kept, tolerance, measure):
            word = "ok" if now <= limit else "WORSE"
            say(f"{case:15} {name:22} {now:7.3f}   baseline {before:.3f}, at most {limit:.3f}   {word}")
            if now > limit and case not in worse:
                worse.append(case)
        say(f"{case:15} {time.monotonic() - began:.0f} s")
    return worse


def update(names: Sequence[str], baseline: Baseline, measure: Measure = measured, count: int = 3) -> None:
    """Measure the cases and put their ratios into the baseline: of `count` runs the middle one."""
    for case in chosen(names, baseline):
        runs = [measure(case, baseline.cases[case].arguments) for _ in range(count)]
        baseline.cases[case].ratios = {name: sorted(run[name] for run in runs)[count // 2] for name in runs[0]}
        print(f"{case}: {', '.join(f'{name} {[run[name] for run in runs]}' for name in runs[0])}")


def main(arguments: Sequence[str] | None = None, measure: Measure = measured, path: Path = BASELINE) -> int:
    """Check, or update; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where none is given")
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument("--runs", type=int, default=3, help="with --update: how many, of which the middle one is kept")
    options = parser.parse_args(arguments)
    try:
        baseline = load(path)
        if options.update:
            update(options.cases, baseline, measure, options.runs)
            write_json(path, baseline.model_dump(mode="json", exclude_none=True))
            return 0
        worse = check(options.cases, baseline, measure)
    except T2Error as error:
        print(f"bench-check: {error}", file=sys.stderr)
        return BROKEN
    if worse:
        print(f"bench-check: worse than {path.name}: {', '.join(worse)}", file=sys.stderr)
        return WORSE
    return 0


if __name__ == "__main__":
    sys.exit(main())
