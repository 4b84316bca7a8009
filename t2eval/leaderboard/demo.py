"""The demo: train an expert (or all of them) on the embedded base model, then benchmark every method on every embedded task.

What is not trained here is shipped with t2eval, and the closing text says which is which.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.bench import training
from t2eval.bench.execute import RunResult, run
from t2eval.bench.plan import BASELINES, Plan, load_plan
from t2eval.bench.rows import write_atomically
from t2eval.bench.training import Job
from t2eval.errors import UsageError
from t2eval.leaderboard.report import Leaderboard, leaderboard
from t2eval.paths import experts_dir
from t2eval.workers.pool import Pool

SKILLS = ("math", "code", "reasoning")
EXPERTS = (*SKILLS, "dispatch")
LIVE = "math"
EXAMPLES = 300
_MARKER = "demo.json"


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


def jobs(root: Path, full: bool, seed: int = 0) -> list[Job]:
    """The training runs of one seed: the expert that the demo trains before one's eyes, or (`full`) all thirteen."""
    found = training.jobs(_plan(root, seeds=[seed]))
    return found if full else [job for job in found if job.name == LIVE]


def _plan(root: Path, **settings: Any) -> Plan:
    """The embedded benchmark, with its experts and baselines under `root`."""
    places = {"experts": root / "library" / "seed-{seed}", "baselines": root / "baselines" / "seed-{seed}" / "{method}-{label}"}
    absolute = {field: str(place.resolve()) for field, place in places.items()}
    return load_plan(experts_dir() / "benchmarks" / "embedded.yaml", {**absolute, **settings})


def shipped_seeds() -> tuple[int, ...]:
    """The seeds whose experts are all shipped."""
    from t2eval.basemodel.load import embedded_library_dir

    found = [int(path.name.removeprefix("seed-")) for path in Path(embedded_library_dir(0)).parent.glob("seed-*")]
    return tuple(seed for seed in sorted(found) if all((Path(embedded_library_dir(seed)) / name).is_dir() for name in EXPERTS))


def assemble(root: Path, full: bool, seeds: Sequence[int]) -> tuple[str, ...]:
    """Copy the shipped experts and baselines that this demo does not train.

    Args:
        root: gets `library/seed-<n>/<expert>` and `baselines/seed-<n>/<method>-<skill>`.
        full: seed 0 is trained anew and is not copied.
        seeds: which to copy.

    Returns:
        What was shipped, in words.
    """
    from t2eval.basemodel.load import embedded_baseline_dir, embedded_library_dir

    root = root.resolve()
    made = {job.output for job in jobs(root, full)}
    said = []
    for seed in seeds:
        names = []
        library = Path(embedded_library_dir(seed))
        sources = sorted(library.iterdir()) if library.is_dir() else []
        targets = [(path, root / "library" / f"seed-{seed}" / path.name) for path in sources]
        for method in BASELINES:
            for skill in SKILLS:
                source = Path(embedded_baseline_dir(method, skill, seed))
                targets.append((source, root / "baselines" / f"seed-{seed}" / source.name))
        for source, target in targets:
            if target in made:
                continue
            _copy(source, target)
            names += [source.name] if source.is_dir() else []
        said += [f"seed {seed}: {', '.join(names)}"] if names else []
    return tuple(said)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder; what a killed copy left is done again."""
    if target.exists() or not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        write_atomically(target, source.read_bytes())
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, symlinks=False)
    partial.rename(target)


def _claim(output: Path, full: bool) -> None:
    """Mark a folder as this kind of demo's.

    Raises:
        UsageError: it is the other kind's.
    """
    marker = output / _MARKER
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")).get("full") != full:
        raise UsageError(f"{output} holds a demo {'without' if full else 'with'} --full. Choose another --output.")
    write_atomically(marker, json.dumps({"full": full}).encode() + b"\n")


def run_demo(
    output: str | Path,
    full: bool = False,
    workers: int | None = None,
    limit: int | None = EXAMPLES,
    seeds: Sequence[int] | None = None,
    progress: Callable[[str], None] = print,
) -> Demo:
    """Train, benchmark, report. Run again with the same folder, it continues.

    Args:
        output: gets `library/`, `baselines/`, `bench/` and `leaderboard.md`.
        full: train all experts and baselines of seed 0 instead of one expert.
        workers: processes; by default one a core, at most 8.
        limit: test examples a task.
        seeds: to be benchmarked: 0 is (partly) trained here, the others are shipped; by default 0 and all that are shipped.
        progress: told each step in a line.

    Raises:
        UsageError: the folder holds another kind of demo, or a seed is not shipped.
        T2Error: training or the benchmark could not run, or Ctrl-C; what is finished stays.
    """
    started = time.perf_counter()
    output = Path(output)
    shipped = shipped_seeds()
    chosen = tuple(seeds) if seeds is not None else tuple(sorted({0, *shipped}))
    for seed in chosen:
        if seed not in shipped and not (seed == 0 and full):
            raise UsageError(f"No experts of seed {seed} are shipped. There are: {', '.join(map(str, shipped)) or 'none'}.")
    workers = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, full)
    said = assemble(output, full, chosen)
    todo = jobs(output, full)
    with Pool(workers) as pool:
        training.train(todo, pool, progress)
        plan = _plan(output, limit=limit, seeds=list(chosen))
        progress(f"benchmarking {len(plan.config.methods)} methods on {len(plan.config.tasks)} tasks, {len(plan.cells)} cells …")
        result = run(plan, output / "bench", pool=pool, progress=lambda event: progress(str(event)))
    demo = Demo(leaderboard(output / "bench"), result, tuple(str(job) for job in todo), said, time.perf_counter() - started)
    write_atomically(output / "leaderboard.md", demo.to_markdown().encode())
    return demo
