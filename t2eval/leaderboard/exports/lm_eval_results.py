"""lm-eval's results format: for each method and seed a folder with `results_<date>.json` and `samples_<task>_<date>.jsonl`.

The method is a folder of its own, as a model is in lm-eval, so that its tools (`make_table`, its notebooks' loaders) read every run.
"""

from __future__ import annotations

from typing import Any

from t2eval.bench.config import BASELINES, EXPERT_METHODS
from t2eval.bench.rows import Row
from t2eval.expert.machine_paths import cleaned
from t2eval.leaderboard.exports.source import Source, text_of
from t2eval.store.files import json_text

_FILTER = "none"
"""Rows do not name the filter that their metric was taken after."""


def files(source: Source) -> tuple[dict[str, str], list[str]]:
    """The files by name."""
    date = source.made.replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")
    found: dict[str, str] = {}
    for method, seed, rows in source.runs():
        folder = f"{source.model.replace('/', '__')}__{method}-seed{seed}"
        found[f"{folder}/results_{date}.json"] = text_of(_results(source, method, seed, rows), f"{method}, seed {seed}")
        for row in rows:
            if lines := _samples(source, row):
                found[f"{folder}/samples_{row.task}_{date}.jsonl"] = lines
    return found, []


def _results(source: Source, method: str, seed: int, rows: list[Row]) -> dict[str, Any]:
    shots, settings = source.settings.get("num_fewshot"), source.settings
    versions = rows[0].versions
    name = f"{source.model}__{method}"
    return {
        "results": {row.task: _scores(row) for row in rows},
        "group_subtasks": {row.task: [] for row in rows},
        "configs": {row.task: {"task": row.task, "metadata": {"t2eval_task_digest": row.hashes.get("task")}} for row in rows},
        "versions": {row.task: "N/A" for row in rows},
        "n-shot": {} if shots is None else {row.task: shots for row in rows},
        "higher_is_better": {row.task: {_metric(row): row.higher_is_better} for row in rows},
        "n-samples": {row.task: {"original": None, "effective": row.n} for row in rows},
        "config": {
            "model": f"t2-{rows[0].kind}" if rows[0].kind in EXPERT_METHODS else "hf",
            "model_args": {"pretrained": source.model, **_given(method, rows)},
            "batch_size": settings.get("batch_size"),
            "device": settings.get("device"),
            "limit": settings.get("limit"),
            "t2": {row.task: cleaned(row.t2) for row in rows if row.t2 is not None},
        },
        "t2eval": {
            "benchmark": source.name,
            "method": method,
            "seed": seed,
            "versions": versions,
            "rows": {
                row.task: {"seconds": row.seconds, "trainable_parameters": row.trainable_parameters, "hashes": row.hashes} for row in rows
            },
        },
        "date": source.made.timestamp(),
        "lm_eval_version": versions.get("lm_eval") or versions.get("lm-eval"),
        "transformers_version": versions.get("transformers"),
        "model_source": "hf",
        "model_name": name,
        "model_name_sanitized": name.replace("/", "__"),
        "total_evaluation_time_seconds": str(round(sum(row.seconds for row in rows), 3)),
    }


def _given(method: str, rows: list[Row]) -> dict[str, str]:
    """The experts or adapters of a run, where its tasks had the same ones; each row's own are in `t2eval.rows`."""
    kind, name = ("adapter", "peft") if method in BASELINES else ("experts", "experts")
    found = {
        "+".join((row.hashes.get("sources") or {}).get(each, each) for each in row.hashes[kind]) for row in rows if row.hashes.get(kind)
    }
    return {name: found.pop()} if len(found) == 1 else {}


def _metric(row: Row) -> str:
    return (row.metric or "score").partition(",")[0]


def _scores(row: Row) -> dict[str, Any]:
    metric = _metric(row)
    return {
        "alias": row.task,
        "sample_len": row.n,
        f"{metric},{_FILTER}": row.score,
        f"{metric}_stderr,{_FILTER}": "N/A" if row.stderr is None else row.stderr,
    }


def _samples(source: Source, row: Row) -> str:
    lines = []
    for sample in source.samples(row):
        scores: dict[str, Any] = {**(sample.metrics or {}), _metric(row): sample.score}
        said: dict[str, Any] = {
            "doc_id": sample.doc_id,
            "resps": [[sample.raw if sample.raw is not None else sample.response]],
            "filtered_resps": [sample.response],
            "filter": _FILTER,
            "metrics": list(scores),
            "doc_hash": sample.doc_hash,
            **scores,
        }
        if sample.dispatch is not None:
            said["t2"] = {"dispatch": sample.dispatch, "probabilities": sample.probabilities}
        lines.append(json_text(said, what=f"a sample of {row.cell}", indent=None))
    return "".join(f"{line}\n" for line in lines)
