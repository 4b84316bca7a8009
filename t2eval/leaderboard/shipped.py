"""The shipped experts and baselines: every run of the two embedded benchmarks, for every shipped seed, trained into `experts/`.

`python -m t2eval.leaderboard.shipped` does what is missing and keeps what is finished; `make embedded` pretrains the base first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from t2eval.bench import training
from t2eval.bench.plan import load_plan
from t2eval.bench.training import Job, train
from t2eval.leaderboard import demo
from t2eval.paths import experts_dir
from t2eval.workers.pool import Pool

SEEDS = (0, 1, 2)
# Only resuming and looking into a run need these.
_SCRATCH = ("checkpoints", "settings.json", "log.jsonl", "test_outcomes.json")


def jobs(root: Path, seed: int) -> list[Job]:
    """All runs of one seed: those of the language model, then those of the vision-language model.

    Args:
        root: gets `library/`, `baselines/`, `vlm-library/` and `vlm-baselines/`.
        seed: of the runs.
    """
    root = root.resolve()
    adapter = "seed-{seed}/{method}-{label}"
    places = {
        "experts": f"{root}/library/seed-{{seed}}+{root}/vlm-library/seed-{{seed}}",
        "baselines": f"{root}/baselines/{adapter}+{root}/vlm-baselines/{adapter}",
    }
    vision = load_plan(experts_dir() / "benchmarks" / "embedded-vision.yaml", {**places, "seeds": [seed]})
    return [*demo.jobs(root, full=True, seed=seed), *training.jobs(vision)]


def tidy(folder: Path) -> None:
    """Remove from a finished run what only resuming needs."""
    for path in (folder / name for name in _SCRATCH):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=None, help="The folder that gets them; default: experts/.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Runs at a time, one thread each.")
def main(output: Path | None, workers: int) -> None:
    """Train the shipped experts and baselines."""
    root = output or experts_dir()
    todo = [job for seed in SEEDS for job in jobs(root, seed)]
    with Pool(workers) as pool:
        train(todo, pool, click.echo)
    for job in todo:
        tidy(job.output)


if __name__ == "__main__":
    main()
