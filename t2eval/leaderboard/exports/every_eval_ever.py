"""every-eval-ever's schema (0.3.0): for each method and seed one JSON file, at the place that its data store has for it."""

from __future__ import annotations

import uuid
from typing import Any

from t2eval.bench.rows import Row
from t2eval.leaderboard.exports.source import Source, is_hub_id, text_of
from t2eval.paths import is_embedded

VERSION = "0.3.0"
_SHARES = frozenset({"acc", "acc_norm", "acc_mutual_info", "exact_match", "em", "f1", "pass_at_k", "pass@1", "vqa_accuracy"})
"""Metrics that lie between 0 and 1; the bounds of others are not said."""


def files(source: Source) -> tuple[dict[str, str], list[str]]:
    """The files by name."""
    found = {}
    for method, seed, rows in source.runs():
        content = _content(source, method, seed, rows)
        developer, name = _owner(source.model)
        same = uuid.uuid5(uuid.NAMESPACE_URL, f"{content['evaluation_id']}/{[(row.cell, row.score) for row in rows]}")
        own = uuid.UUID(bytes=same.bytes, version=4)  # the one version that the schema's own check takes; the same rows have the same name
        found[f"data/{source.name}/{developer}/{name}/{own}.json"] = text_of(content, f"{method}, seed {seed}")
    notes = [] if source.organization != "unknown" else ["Who made the rows is said to be unknown: name them with --organization."]
    return found, notes


def _owner(model: str) -> tuple[str, str]:
    """Who made a base model, and its name: a folder of this machine does not say the first."""
    if is_embedded(model):
        return "t2eval", model
    developer, _, name = model.rpartition("/")
    return developer or "unknown", name


def _content(source: Source, method: str, seed: int, rows: list[Row]) -> dict[str, Any]:
    stamp = str(source.made.timestamp())
    versions = rows[0].versions
    developer, name = _owner(source.model)
    run = f"{source.name}/{source.model.replace('/', '_')}/{method}-seed{seed}/{stamp}"
    return {
        "schema_version": VERSION,
        "evaluation_id": run,
        "evaluation_timestamp": stamp,
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": source.name,
            "source_type": "evaluation_run",
            "source_organization_name": source.organization,
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "lm_eval",
            "version": _version(versions, "lm_eval"),
            "additional_details": {"t2eval": _version(versions, "t2eval")},
        },
        "model_info": {
            "name": source.model if method == "base" else f"{source.model} with t2eval's {method}",
            "id": f"{developer}/{name}" if is_embedded(source.model) else source.model,
            "developer": developer,
            "inference_engine": {"name": "transformers", "version": _version(versions, "transformers")},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights" if is_hub_id(source.model) or is_embedded(source.model) else "unknown",
                "t2eval_method": method,
                "t2eval_seed": str(seed),
                **_inputs(rows),
            },
        },
        "evaluation_results": [_result(source, run, row) for row in rows],
    }


def _version(versions: dict[str, str], package: str) -> str:
    return versions.get(package) or versions.get(package.replace("_", "-")) or "unknown"


def _inputs(rows: list[Row]) -> dict[str, str]:
    """The digests of what the method used, and where it came from."""
    hashes: dict[str, Any] = {}
    for row in rows:
        for kind in ("experts", "adapter", "sources"):
            hashes |= {f"t2eval_{kind}_{name}": str(value) for name, value in (row.hashes.get(kind) or {}).items()}
    return hashes


def _result(source: Source, run: str, row: Row) -> dict[str, Any]:
    metric = (row.metric or "score").partition(",")[0]
    config: dict[str, Any] = {"metric_id": metric, "metric_name": metric, "lower_is_better": not row.higher_is_better}
    if metric in _SHARES:
        config |= {"score_type": "continuous", "min_score": 0.0, "max_score": 1.0, "metric_unit": "proportion"}
    uncertainty: dict[str, Any] = {"num_samples": row.n}
    if row.stderr is not None:
        uncertainty["standard_error"] = {"value": row.stderr, "method": "analytic" if row.clusters is None else "clustered"}
    details = {
        "n": row.n,
        "clusters": row.clusters,
        "seconds": row.seconds,
        "first_pass_seconds": row.first_pass_seconds,
        "second_pass_seconds": row.second_pass_seconds,
        "trainable_parameters": row.trainable_parameters,
        "peak_memory_bytes": row.peak_memory_bytes,
        "undefined_documents": ", ".join(map(str, row.undefined)) or None,
        "task_digest": row.hashes.get("task"),
    }
    shots = source.settings.get("num_fewshot")
    return {
        "evaluation_result_id": f"{run}/{row.task}/{metric}",
        "evaluation_name": row.task,
        "source_data": {"dataset_name": row.task, "source_type": "other"},
        "evaluation_timestamp": str(source.made.timestamp()),
        "metric_config": config,
        "score_details": {
            "score": row.score,
            "details": {name: str(value) for name, value in details.items() if value is not None},
            "uncertainty": uncertainty,
        },
        **({} if shots is None else {"generation_config": {"additional_details": {"num_fewshot": str(shots)}}}),
    }
