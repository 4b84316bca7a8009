"""Learning curves of the experts and baselines that a benchmark's rows were made with, as far as their logs and records are at hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from t2eval.bench.manifest import read as read_manifest
from t2eval.errors import T2Error
from t2eval.paths import joined
from t2eval.store.files import read_json_lines
from t2eval.training.config import RECORD
from t2eval.training.log import LOG
from t2eval.training.record import RunRecord

_POINTS = 400
_FIGURES = ("accuracy", "reward", "loss", "kl")


def learning(directories: Sequence[Path]) -> list[dict[str, Any]]:
    """The training runs whose folders a benchmark names or holds, finished or not.

    Args:
        directories: the folders with the benchmark's rows.

    Returns:
        For each run: `name`, `seed`, `finished`; of its record `task`, `method`, `metric`, `scores`, `chosen_step`, `seconds`; of its log
        `validations` [[step, score], …] and `batches` {figure: [[step, value], …]}, thinned to some hundred points.
    """
    found = {}
    for name, seed, folder in (each for directory in directories for each in _folders(directory)):
        if folder.resolve() not in found and (run := _run(folder)) is not None:
            found[folder.resolve()] = {"name": name, "seed": seed, **run}
    return sorted(found.values(), key=lambda run: (run["seed"], run["name"]))


def _folders(directory: Path) -> Iterator[tuple[str, int, Path]]:
    """Name, seed and folder of whatever may be a training run: in the benchmark's folder, and where its manifest says."""
    manifest = read_manifest(directory)
    config = {} if manifest is None else manifest["config"]
    own = [str(directory / part / "seed-{seed}") for part in ("experts", "baselines")]
    seeds = [seed for seed in config.get("seeds") or [] if isinstance(seed, int)]
    for pattern, seed in itertools.product([*_places(config.get("experts")), *_places(config.get("baselines"), "{method}"), *own], seeds):
        place = Path(pattern.replace("{seed}", str(seed)))
        if place.is_dir():
            yield from ((folder.name, seed, folder) for folder in sorted(place.iterdir()) if folder.is_dir())


def _places(value: object, until: str = "") -> list[str]:
    """The folders of a setting; of one with `{method}` in it, the folder above that."""
    if not isinstance(value, str):
        return []
    return [str(Path(part.partition(until)[0] + "x").parent) if until and until in part else part for part in joined(value)]


def _run(folder: Path) -> dict[str, Any] | None:
    """What a folder says of a training run; None where it is none."""
    record, log = folder / RECORD, folder / LOG
    if not record.is_file() and not log.is_file():
        return None
    try:
        said = RunRecord.read(folder) if record.is_file() else None
        lines = read_json_lines(log, what="training log", grows=True) if log.is_file() else []
    except (T2Error, ValidationError) as error:
        return {"finished": False, "problem": str(error).split("\n")[0], "validations": [], "batches": {}}
    lines = [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
    validations = [[line["step"], line["validation"]] for line in lines if isinstance(line.get("validation"), (int, float))]
    run: dict[str, Any] = {"finished": said is not None, "validations": validations, "batches": _batches(lines)}
    if said is not None:
        record_part = said.model_dump(mode="json", include={"task", "method", "metric", "scores", "chosen_step", "seconds"})
        before = said.score("before", "validation")
        start = [] if before is None or (validations and validations[0][0] == 0) else [[0, before.score]]
        run |= {**record_part, "validations": [*start, *validations] if validations else []}
    return run


def _batches(lines: Sequence[dict[str, Any]]) -> dict[str, list[list[float]]]:
    found = {}
    for name in _FIGURES:
        points = [[line["step"], line[name]] for line in lines if isinstance(line.get(name), (int, float))]
        if points:
            step = max(1, len(points) // _POINTS)
            found[name] = points[::step]
    return found
