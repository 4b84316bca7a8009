"""peft's method_comparison: one JSON file for each evaluated expert or adapter, with what its training cost.

A row knows the file that it evaluated by its digest, and the manifest knows where that lies: there the training's own record is. Rows
without one (strategies, the base, files that are gone) are left out and counted. peft's app asks for whole numbers that t2eval does not
measure: those of memory are the evaluation's peak, an upper bound of the mean; `t2eval.not_measured` names what is 0 or null for that
reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from t2eval.bench.rows import Row
from t2eval.errors import T2Error
from t2eval.expert.machine_paths import cleaned
from t2eval.leaderboard.exports.source import Source, text_of
from t2eval.store.files import read_record

_RECORD, _ADAPTER = "training.json", "adapter_config.json"
_PACKAGES = ("transformers", "datasets", "peft", "torch", "bitsandbytes")


def files(source: Source) -> tuple[dict[str, str], list[str]]:
    """The files by name."""
    places = {digest: Path(file) for file, digest in source.inputs.items()}
    found: dict[str, str] = {}
    left_out = 0
    for row in source.rows:
        file = _file_of(row, places)
        record = None if file is None else _record(file.parent)
        if file is None or record is None:
            left_out += row.method != "base"
            continue
        name = f"{row.method}--{source.model.replace('/', '_')}-{row.task}-seed{row.seed}.json"
        found[name] = text_of(_content(source, row, file, record), row.cell)
    notes = [f"{left_out} cells are left out: they are of no single expert or adapter whose training record is here."] if left_out else []
    return found, notes


def _file_of(row: Row, places: Mapping[str, Path]) -> Path | None:
    """The one expert or adapter that a row evaluated, where it still lies at its place."""
    used = row.hashes.get("adapter") or (row.hashes.get("experts") if row.kind == "expert" else None) or {}
    file = places.get(next(iter(used.values()))) if len(used) == 1 else None
    return file if file is not None and file.is_file() else None


class _Record(BaseModel):
    """What is taken from a training's record."""

    seconds: float
    steps: int = 0
    task: str | None = None
    hyperparameters: dict[str, Any] = {}
    scores: dict[str, dict[str, dict[str, Any]]] = {}


def _record(folder: Path) -> _Record | None:
    try:
        return read_record(folder / _RECORD, _Record, what="training record")
    except T2Error:
        return None


def _content(source: Source, row: Row, file: Path, record: _Record) -> dict[str, Any]:
    settings = dict(cleaned(record.hyperparameters))
    steps, batch = record.steps, settings.get("batch_size")
    validation = record.scores.get("after", {}).get("validation", {})
    peak = row.peak_memory_bytes or 0
    versions = {**dict.fromkeys(_PACKAGES, "unknown"), **row.versions}
    last = {
        "step": steps,
        "valid accuracy": validation.get("score"),
        "test accuracy": row.score,
        "train loss": None,
        "train samples": steps * batch if isinstance(batch, int) else 0,
        "train time": record.seconds,
        "eval time": row.seconds,
        "train total tokens": 0,
        "forgetting": None,
    }
    return {
        "run_info": {
            "created_at": source.made.isoformat(timespec="seconds"),
            "total_time": record.seconds + row.seconds,
            "experiment_name": f"{row.method}/{source.model}-{row.task}-seed{row.seed}",
            "peft_branch": "unknown",
            "train_config": {"model_id": source.model, **settings, "task": row.task, "trained_on": record.task, "seed": row.seed},
            "peft_config": _peft_config(row, file.parent),
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": peak,
            "accelerator_memory_max": peak,
            "accelerator_memory_reserved_99th": peak,
            "train_time": record.seconds,
            "file_size": file.stat().st_size,
            "num_trainable_params": row.trainable_parameters or 0,
            "num_total_params": None,
            "status": "success",
            "metrics": [last],
        },
        "meta_info": {
            "model_info": None,
            "dataset_info": None,
            "package_info": {f"{package}-version": version for package, version in versions.items()},
            "system_info": None,
            "pytorch_info": None,
        },
        "t2eval": {
            "method": row.method,
            "metric": row.metric,
            "score": row.score,
            "stderr": row.stderr,
            "n": row.n,
            "hashes": row.hashes,
            "bounds": "accelerator_memory_* are the peak of the evaluation",
            "not_measured": ["train loss", "train total tokens", "forgetting", "num_total_params"],
        },
    }


def _peft_config(row: Row, folder: Path) -> dict[str, Any]:
    """The adapter's own configuration; an expert has none of PEFT's, and says what it is."""
    if row.kind == "expert" and not (folder / _ADAPTER).is_file():
        return {"peft_type": "SVF"}
    try:
        return dict(cleaned(read_record(folder / _ADAPTER, dict[str, Any], what="adapter's configuration")))
    except T2Error:
        return {"peft_type": row.method.upper()}
