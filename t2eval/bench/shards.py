"""Shards: a benchmark's cells in parts that jobs on several machines run by themselves, each into a folder of its own.

Which cells a shard has follows from the benchmark file and the number of shards alone, never from what is finished or where: every job
computes the same parts. Cells that wait for the same training are one part, so that nothing is trained twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2eval.bench.config import EXPERT_METHODS, BenchConfig
from t2eval.bench.plan import Cell, Plan
from t2eval.errors import UsageError

SLURM = "slurm"
_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")
_MOST = 100_000


@dataclass(frozen=True, order=True)
class Shard:
    """One part of `count`; `index` counts from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        """The name of its folder inside the benchmark's; with leading zeros, so that folders sort as shards do."""
        return f"shard-{self.index:0{len(str(self.count))}}-of-{self.count}"


def parse_shard(text: str, environ: Mapping[str, str] | None = None) -> Shard:
    """A shard as a user names it.

    Args:
        text: `2/8` (from 1/8 to 8/8), or `slurm`: the place of this task in its job array, whatever number the array begins with.
        environ: the environment, by default this process's.

    Raises:
        UsageError: not of that form, no such part, or no job array that can be counted.
    """
    if text.strip().lower() == SLURM:
        return _slurm(os.environ if environ is None else environ)
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if match is None:
        raise UsageError(f"--shard takes I/N, such as 2/8, or {SLURM}, not {text!r}.")
    index, count = int(match[1]), int(match[2])
    if not 1 <= count <= _MOST:
        raise UsageError(f"--shard {text}: the number of shards must be from 1 to {_MOST}, not {count}.")
    if not 1 <= index <= count:
        raise UsageError(f"--shard {text}: shards count from 1, so the {count} are 1/{count} to {count}/{count}.")
    return Shard(index, count)


def _slurm(environ: Mapping[str, str]) -> Shard:
    """From the variables that Slurm sets in each task of `sbatch --array`."""
    place = _variable(environ, "SLURM_ARRAY_TASK_ID")
    count = _variable(environ, "SLURM_ARRAY_TASK_COUNT")
    first = _variable(environ, "SLURM_ARRAY_TASK_MIN")
    step = _variable(environ, "SLURM_ARRAY_TASK_STEP", 1) or 1
    index, rest = divmod(place - first, step)
    if rest or not 0 <= index < count:
        last = environ.get("SLURM_ARRAY_TASK_MAX", "?")
        raise UsageError(
            f"--shard {SLURM}: task {place} of an array of {count} from {first} to {last} has no place that can be counted: "
            f"the numbers must follow each other in even steps. Submit with `sbatch --array=1-{count}`."
        )
    return Shard(index + 1, count)


def _variable(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name, "")
    if value.isdecimal():
        return int(value)
    if default is not None and not value:
        return default
    said = f"is {value!r}, which is no number" if value else "is not set"
    raise UsageError(
        f"--shard {SLURM}: {name} {said}: this is no task of a Slurm job array. Submit with `sbatch --array=1-8`, or give I/N."
    )


def unsharded_task(environ: Mapping[str, str] | None = None) -> str | None:
    """A warning for a task of a job array that is about to run all cells; None elsewhere."""
    environ = os.environ if environ is None else environ
    count = environ.get("SLURM_ARRAY_TASK_COUNT", "")
    if not count.isdecimal() or int(count) < 2:
        return None
    task = environ.get("SLURM_ARRAY_TASK_ID", "?")
    return f"this is task {task} of a Slurm array of {count}, and it runs all cells: --shard {SLURM} would run a part of them."


def shard_of(plan: Plan, shard: Shard) -> Plan:
    """The part of a plan that is one shard.

    Parts are as even in cells as the groups of cells that need one training allow, the largest groups first. Where there are
    fewer groups than shards, the last shards have no cells.
    """
    groups: dict[Any, list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault(needs(plan.config, cell), []).append(cell)
    parts: list[list[Cell]] = [[] for _ in range(shard.count)]
    for group in sorted(groups.values(), key=len, reverse=True):  # stable: equal ones stay in the plan's order
        min(parts, key=len).extend(group)
    mine = set(parts[shard.index - 1])
    return replace(plan, cells=tuple(cell for cell in plan.cells if cell in mine), shard=str(shard))


def needs(config: BenchConfig, cell: Cell) -> Any:
    """What a cell shares with those that wait for the same training: the experts of a seed, or one baseline's adapters of a seed.

    A cell that waits for none stands alone: the base's, and all of them where the benchmark file has no `train:` section.
    """
    if config.train is None or not config.is_trained(cell.method):
        return cell
    kind = config.kind(cell.method)
    return ("experts" if kind in EXPERT_METHODS else kind), cell.seed


def shard_folders(folder: Path) -> list[Path]:
    """The folders of the shards inside a benchmark's, in order."""
    found = [(shard.count, shard.index, path) for path in folder.glob("shard-*-of-*") if path.is_dir() and (shard := parse_name(path))]
    return [path for *_, path in sorted(found)]


def parse_name(folder: Path) -> Shard | None:
    """The shard whose folder has this name; None where it is no shard's."""
    match = _FOLDER.fullmatch(folder.name)
    return Shard(int(match[1]), int(match[2])) if match else None


def missing_shards(found: Sequence[str]) -> list[str]:
    """The shards that are not among some, for each number of shards among them: `2/8`."""
    there = {parse_shard(name) for name in found}
    counts = sorted({shard.count for shard in there})
    return [str(other) for count in counts for index in range(1, count + 1) if (other := Shard(index, count)) not in there]
