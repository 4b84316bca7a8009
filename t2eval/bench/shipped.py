"""The shipped experts and baselines: every recipe in `experts/recipes`, trained for every shipped seed into `experts/`.

`python -m t2eval.bench.shipped` does what is missing and keeps what is finished; `make embedded` pretrains the base first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from t2eval.bench.demo import jobs
from t2eval.bench.pool import Pool
from t2eval.bench.training import train
from t2eval.resources import experts_dir

SEEDS = (0, 1, 2)
# Only resuming and looking into a run need these.
_SCRATCH = ("checkpoints", "settings.json", "log.jsonl", "test_outcomes.json")


def tidy(folder: Path) -> None:
    """Remove from a finished run what only resuming needs."""
    for path in (folder / name for name in _SCRATCH):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=None, help="Where library/ and baselines/ go; default: experts/.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Runs at a time, one thread each.")
def main(output: Path | None, workers: int) -> None:
    """Train the shipped experts and baselines."""
    root = output or experts_dir()
    todo = [job for seed in SEEDS for job in jobs(root, full=True, seed=seed)]
    with Pool(workers) as pool:
        train(todo, pool, click.echo)
    for job in todo:
        tidy(job.output)


if __name__ == "__main__":
    main()
