"""The demo: train an expert (or all of them) on the embedded base model, then benchmark every method on every embedded task.

What is not trained here is shipped with t2eval, and the closing text says which is which.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.bench.execute import RunResult, end_with_parent, run, speak_into, worker_environment
from t2eval.bench.plan import BASELINES, load_plan
from t2eval.bench.report import Leaderboard, leaderboard
from t2eval.bench.rows import write_atomically
from t2eval.errors import T2Error, UsageError
from t2eval.loading import quiet_lm_eval
from t2eval.resources import experts_dir

if TYPE_CHECKING:
    from t2eval.training.config import TrainConfig

SKILLS = ("math", "code", "reasoning")
EXPERTS = (*SKILLS, "dispatch")
LIVE = "math"
EXAMPLES = 300
_MARKER = "demo.json"
_RECORD = "training.json"


@dataclass(frozen=True)
class Job:
    """One training run: the recipe's name, the folder of what it makes, and the seed."""

    recipe: str
    output: Path
    seed: int = 0

    @property
    def finished(self) -> bool:
        """Whether the run has ended (its record is written last)."""
        return (self.output / _RECORD).is_file()

    def config(self) -> TrainConfig:
        """The recipe's settings, with this run's folder and seed."""
        from t2eval.training.config import TrainConfig

        return TrainConfig.from_yaml(experts_dir() / "recipes" / f"{self.recipe}.yaml", output=self.output, seed=self.seed, resume=True)

    def __str__(self) -> str:
        record = json.loads((self.output / _RECORD).read_text(encoding="utf-8"))
        before, after = (record["scores"][when] for when in ("before", "after"))
        split = "test" if "test" in after else "validation"
        scored = f"{before[split]['score']:.3f} → {after[split]['score']:.3f} on the {split} split (n={after[split]['n']})"
        return f"{self.recipe}: {scored}, {record['seconds']:.0f} s"


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
    library, baselines = root / "library" / f"seed-{seed}", root / "baselines" / f"seed-{seed}"
    if not full:
        return [Job(LIVE, library / LIVE, seed)]
    experts = [Job(name, library / name, seed) for name in EXPERTS]
    return experts + [Job(f"{method}-{skill}", baselines / f"{method}-{skill}", seed) for method in BASELINES for skill in SKILLS]


def shipped_seeds() -> tuple[int, ...]:
    """The seeds whose experts are all shipped."""
    from t2eval.base import embedded_library_dir

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
    from t2eval.base import embedded_baseline_dir, embedded_library_dir

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


def _train_alone(job: Job, pipe: Connection) -> None:
    """One run in a process of its own, with one thread. Sends nothing, or what went wrong."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    speak_into(Path(os.devnull))
    import torch

    from t2eval.training.train import train_expert

    quiet_lm_eval()
    torch.set_num_threads(1)
    try:
        train_expert(job.config(), progress=False)
    except Exception as error:  # noqa: BLE001 - the parent raises it; this process has no terminal of its own
        pipe.send(str(error) if isinstance(error, T2Error) else f"{type(error).__name__}: {error}")


def _start(job: Job) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_train_alone, args=(job, theirs), daemon=True)
    with worker_environment(1):
        process.start()
    theirs.close()
    return process, ours


def _reason(process: Any, pipe: Connection) -> str:
    try:
        return str(pipe.recv())
    except EOFError:
        return f"its process ended with exit code {process.exitcode}."


def _train_all(pending: Sequence[Job], workers: int, say: Callable[[str], None]) -> None:
    """Runs side by side, one thread each: two of them on two cores end sooner than one after the other with two threads."""
    waiting, running = list(pending), dict[int, tuple[Job, Any, Connection]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                process, pipe = _start(job)
                running[process.sentinel] = job, process, pipe
            for sentinel in wait(list(running)):
                job, process, pipe = running.pop(int(sentinel))  # type: ignore[arg-type]
                process.join()
                if not job.finished:
                    raise T2Error(f"Training {job.recipe!r} failed: {_reason(process, pipe)}")
                say(f"[{len(pending) - len(waiting) - len(running)}/{len(pending)}] trained {job}")
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.join()


def train(todo: Sequence[Job], workers: int, say: Callable[[str], None]) -> None:
    """Do the runs that are not finished; one that was cut off goes on from its checkpoint.

    Raises:
        T2Error: a run fails, or Ctrl-C.
    """
    pending = [job for job in todo if not job.finished]
    for job in todo:
        if job.finished:
            say(f"already trained: {job}")
    quiet_lm_eval()
    try:
        if len(pending) == 1:
            from t2eval.training.train import train_expert

            say(f"training {pending[0].recipe} …")
            train_expert(pending[0].config())
            say(f"trained {pending[0]}")
        elif pending:
            say(f"training {len(pending)} experts and baselines, {workers} at a time …")
            _train_all(pending, workers, say)
    except KeyboardInterrupt:
        raise T2Error("Interrupted while training. Run the same command again: it continues.") from None


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
    train(todo, workers, progress)
    settings = {
        "experts": str((output / "library").resolve() / "seed-{seed}"),
        "baselines": str((output / "baselines").resolve() / "seed-{seed}" / "{method}-{label}"),
        "limit": limit,
        "seeds": list(chosen),
    }
    plan = load_plan(experts_dir() / "benchmarks" / "embedded.yaml", settings)
    progress(f"benchmarking {len(plan.config.methods)} methods on {len(plan.config.tasks)} tasks, {len(plan.cells)} cells …")
    result = run(plan, output / "bench", workers=workers, progress=lambda event: progress(str(event)))
    demo = Demo(leaderboard(output / "bench"), result, tuple(str(job) for job in todo), said, time.perf_counter() - started)
    write_atomically(output / "leaderboard.md", demo.to_markdown().encode())
    return demo
