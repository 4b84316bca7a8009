"""The shipped experts and baselines: every run of the two embedded benchmarks, for every shipped seed, trained into `experts/`.

`python -m t2eval.bench.shipped` does what is missing and keeps what is finished; `make embedded` pretrains the base first.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click

from t2eval.basemodel.devices import available_cores
from t2eval.bench import training
from t2eval.bench.config import PAPER_BASELINES
from t2eval.bench.plan import Plan, load_plan
from t2eval.bench.training import Job, train
from t2eval.paths import experts_dir
from t2eval.store.files import read_bytes, write_bytes
from t2eval.workers.pool import Pool

SEEDS = (0, 1, 2)
SKILLS = ("math", "code", "reasoning")
EXPERTS = (*SKILLS, "dispatch")
# Only resuming and looking into a run need these.
_SCRATCH = ("checkpoints", "settings.json", "log.jsonl", "test_outcomes.json")


def plan_in(root: Path, **settings: Any) -> Plan:
    """The benchmark of the embedded language model, with its experts and baselines under `root`."""
    places = {"experts": root / "library" / "seed-{seed}", "baselines": root / "baselines" / "seed-{seed}" / "{method}-{label}"}
    absolute = {field: str(place.resolve()) for field, place in places.items()}
    return load_plan(experts_dir() / "benchmarks" / "embedded.yaml", {**absolute, **settings})


def shipped_seeds() -> tuple[int, ...]:
    """The seeds whose experts are all shipped."""
    from t2eval.basemodel.folders import embedded_library_dir

    found = [int(path.name.removeprefix("seed-")) for path in Path(embedded_library_dir(0)).parent.glob("seed-*")]
    return tuple(seed for seed in sorted(found) if all((Path(embedded_library_dir(seed)) / name).is_dir() for name in EXPERTS))


def assemble(root: Path, made: Collection[Path], seeds: Sequence[int]) -> tuple[str, ...]:
    """Copy the shipped experts and baselines, all but those that are trained anew.

    Args:
        root: gets `library/seed-<n>/<expert>` and `baselines/seed-<n>/<method>-<skill>`.
        made: the folders of what is trained anew.
        seeds: which to copy.

    Returns:
        What was shipped, in words.
    """
    from t2eval.basemodel.folders import embedded_baseline_dir, embedded_library_dir

    root = root.resolve()
    said = []
    for seed in seeds:
        names = []
        library = Path(embedded_library_dir(seed))
        sources = sorted(library.iterdir()) if library.is_dir() else []
        targets = [(path, root / "library" / f"seed-{seed}" / path.name) for path in sources]
        for method in PAPER_BASELINES:
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
        write_bytes(target, read_bytes(source))
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, symlinks=False)
    partial.rename(target)


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
    return [*training.jobs(plan_in(root, seeds=[seed])), *training.jobs(vision)]


def tidy(folder: Path) -> None:
    """Remove from a finished run what only resuming needs."""
    for path in (folder / name for name in _SCRATCH):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=None, help="The folder that gets them; default: experts/.")
@click.option("--workers", default=available_cores(), show_default=True, help="Runs at a time; each takes its share of the cores.")
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
