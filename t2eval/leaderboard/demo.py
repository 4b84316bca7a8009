"""The demo: train an expert (or all of them) on the embedded base model, then benchmark every method on every embedded task.

What is not trained here is shipped with t2eval, and the closing text says which is which. The demo of a real model (`smollm2`) ships
nothing: it trains one expert and one LoRA on ARC-Easy, and benchmarks them on ARC-Easy and ARC-Challenge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.basemodel.devices import available_cores
from t2eval.bench import training
from t2eval.bench.config import BASELINES, DEFAULT_METHODS, PAPER_BASELINES
from t2eval.bench.execute import RunResult, run
from t2eval.bench.plan import Plan, load_plan
from t2eval.bench.shipped import assemble, plan_in, shipped_seeds
from t2eval.bench.training import Job
from t2eval.errors import UsageError, unknown
from t2eval.leaderboard.report import leaderboard
from t2eval.leaderboard.table import Leaderboard
from t2eval.paths import EMBEDDED, SMOLLM2
from t2eval.store.files import read_record, write_json, write_text
from t2eval.store.guard import refuse_other_settings
from t2eval.store.lock import locked
from t2eval.workers.pool import Pool

LIVE = "math"
EXAMPLES = {EMBEDDED: 300, SMOLLM2: 100}
"""Model of a demo → how many test examples of a task it scores, unless told."""
FURTHER = tuple(name for name in BASELINES if name not in PAPER_BASELINES)
"""Baselines beside the paper's: only `full` trains and shows them."""
_MARKER, _REMEDY = "demo.json", "Choose another --output."


@dataclass(frozen=True)
class Demo:
    """What a demo left: the table, the benchmark's outcome, and what was trained in it."""

    board: Leaderboard
    result: RunResult
    trained: tuple[str, ...]
    shipped: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 1 where a cell failed."""
        return self.result.exit_code

    def to_markdown(self) -> str:
        """The leaderboard, and which experts and baselines are the demo's own."""
        lines = [self.board.to_markdown(), "Trained now:", *(f"- {line}" for line in self.trained)]
        if self.shipped:
            lines += ["", f"Shipped with t2eval, trained by the same recipes: {'; '.join(self.shipped)}."]
        return "\n".join([*lines, "", f"This run took {self.seconds:.0f} s."]) + "\n"


def jobs(root: Path, full: bool, seeds: Sequence[int] = (0,)) -> list[Job]:
    """The training runs: the expert that the demo trains before one's eyes; or (`full`) everything of seed 0, and of the other seeds the
    baselines that are not shipped."""
    found = training.jobs(plan_in(root, seeds=[0]))
    if not full:
        return [job for job in found if job.name == LIVE]
    return [*found, *training.jobs(plan_in(root, seeds=sorted({0, *seeds}), methods=list(FURTHER)))]


def plan_of(
    model: str, output: Path, limit: int | None = None, seeds: Sequence[int] | None = None, methods: Sequence[str] | None = None
) -> Plan:
    """What a demo benchmarks.

    Args:
        model: of `EXAMPLES`.
        output: gets what is trained.
        limit: test examples a task; None: the demo's own number.
        seeds, methods: None: the demo's own.

    Raises:
        UsageError: there is no demo of this model.
    """
    if model not in EXAMPLES:
        raise unknown("model of a demo", model, EXAMPLES)
    settings = {"limit": limit or EXAMPLES[model], "seeds": None if seeds is None else list(seeds), "methods": methods and list(methods)}
    if model == EMBEDDED:
        return plan_in(output, **settings)
    return training.settle(load_plan(f"{model}-demo", settings), output)


def _claim(output: Path, mark: dict[str, object]) -> None:
    """Mark a folder as this kind of demo's.

    Raises:
        UsageError: it is another kind's.
    """
    marker = output / _MARKER
    if marker.exists():
        refuse_other_settings(output, {"model": EMBEDDED} | kept_mark(marker), mark, remedy=_REMEDY)
    write_json(marker, mark)


def kept_mark(marker: Path) -> dict[str, Any]:
    """What a folder's mark says. Raises T2Error where it is damaged."""
    return read_record(marker, dict[str, Any], what="mark of a demo", remedy=_REMEDY, limit=4096)


def _embedded_seeds(seeds: Sequence[int] | None, full: bool) -> tuple[int, ...]:
    """The seeds of the embedded base's demo: those that are asked for, else 0 and all that are shipped.

    Raises:
        UsageError: one that is not shipped, nor trained here.
    """
    shipped = shipped_seeds()
    chosen = tuple(seeds) if seeds is not None else tuple(sorted({0, *shipped}))
    for seed in chosen:
        if seed not in shipped and not (seed == 0 and full):
            raise UsageError(f"No experts of seed {seed} are shipped. There are: {', '.join(map(str, shipped)) or 'none'}.")
    return chosen


def run_demo(
    output: str | Path,
    full: bool = False,
    workers: int | None = None,
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
    progress: Callable[[str], None] = print,
    model: str = EMBEDDED,
) -> Demo:
    """Train, benchmark, report. Run again with the same folder, it continues.

    Args:
        output: gets what is trained, `bench/` and `leaderboard.md`.
        full: of the embedded base: train all experts and baselines of seed 0 instead of one expert, and of every seed the baselines that
            are not shipped (VeRA, TinyLoRA, LoRA-XS, full fine-tuning).
        workers: processes; by default one a core, at most 8.
        limit: test examples a task; None: `EXAMPLES`.
        seeds: to be benchmarked. Of the embedded base 0 is (partly) trained here and the others are shipped, by default 0 and all that
            are shipped; of a real model all are trained here, by default 0 alone.
        progress: told each step in a line.
        model: of `EXAMPLES`.

    Raises:
        UsageError: no such demo, the folder holds another kind of demo, or a seed is not shipped.
        T2Error: training or the benchmark could not run, or Ctrl-C; what is finished stays.
    """
    started = time.perf_counter()
    output = Path(output)
    if full and model != EMBEDDED:
        raise UsageError(
            f"--full is the embedded base's: there is no full demo of {model}. `t2 bench FILE.yaml` trains what a file's methods need."
        )
    if model == EMBEDDED:
        seeds = _embedded_seeds(seeds, full)
    plan = plan_of(model, output, limit, seeds, [*DEFAULT_METHODS, *FURTHER] if full else None)
    with locked(output, "demo"):
        _claim(output, {"full": full, "model": model})
        if model == EMBEDDED:
            todo = jobs(output, full, plan.config.seeds)
            said = assemble(output, {job.output for job in todo}, plan.config.seeds)
        else:
            todo, said = training.jobs(plan), ()
        with Pool(workers or min(8, available_cores())) as pool:
            training.train(todo, pool, progress)
            progress(f"benchmarking {len(plan.config.methods)} methods on {len(plan.config.tasks)} tasks, {len(plan.cells)} cells …")
            result = run(plan, output / "bench", pool=pool, progress=lambda event: progress(str(event)))
        demo = Demo(leaderboard(output / "bench"), result, tuple(str(job) for job in todo), said, time.perf_counter() - started)
        write_text(output / "leaderboard.md", demo.to_markdown())
    return demo
