"""Scores: what lm-eval says of a cell, as the metric, the score and the examples of its row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from t2eval.bench.documents import write_documents
from t2eval.bench.rows import Sample, write_samples
from t2eval.environment.documents import cluster_of
from t2eval.environment.harness import metric_names
from t2eval.errors import T2Error
from t2eval.stats.clusters import clustered_stderr
from t2eval.stats.means import mean_stderr
from t2eval.store.digests import object_digest


def main_metric(task: Any, results: Mapping[str, Any]) -> tuple[str, str]:
    """The metric a task is ranked by, the first of its list, and its first filter: those that training rewards, too.

    Args:
        task: lm-eval task.
        results: lm-eval's results of it, with keys `metric,filter`.

    Raises:
        T2Error: the task reports no metric.
    """
    found = [(key.split(",", 1)[0], key.split(",", 1)[1]) for key in results if "," in key and "_stderr," not in key]
    if not found:
        raise T2Error("The task reports no metric.")
    name = next(iter(metric_names(task)), None)
    metric, chosen = next((pair for pair in found if pair[0] == name), found[0])
    return metric, chosen


def scored(folder: Path, cell: str, task: Any, outcome: Mapping[str, Any], labels: Mapping[int, str]) -> dict[str, Any]:
    """The fields of a row that are about scores, after its examples have been written.

    Documents for which the metric is not a number are left out of the score, and listed in `undefined`.

    Args:
        folder: the benchmark's.
        cell: its key, which names the file of examples.
        task: lm-eval task, the only one of the run.
        outcome: of `lm_eval.simple_evaluate`.
        labels: document → the label that it was given, where the method dispatches.

    Raises:
        T2Error: the metric is not a number at all.
    """
    name = next(iter(outcome["results"]))
    results, logged = outcome["results"][name], outcome["samples"][name]
    metric, chosen = main_metric(task, results)
    samples = _samples(task, logged, (metric, chosen), labels)
    write_documents(folder, prompts_digest(outcome, name), logged)
    undefined = [sample.doc_id for sample in samples if sample.undefined]
    kept = [sample for sample in samples if sample.score is not None]
    values = [sample.score for sample in kept if sample.score is not None]
    if undefined and not values:
        raise T2Error(f"The metric {metric!r} is not a number for any document of {name} (NaN or infinite): its score says nothing.")
    # A corpus-level metric (perplexity, BLEU) is no mean over examples: it has a score but no error bar of this kind.
    averaged = len(values) + len(undefined) == len(samples) and bool(values)
    score, stderr = mean_stderr(values) if averaged else (float(results[f"{metric},{chosen}"]), None)
    clusters = [sample.cluster for sample in kept if sample.cluster is not None]
    if averaged and clusters:
        stderr = clustered_stderr(values, clusters)
    if not math.isfinite(score):
        raise T2Error(f"The metric {metric!r} of {name} is {score}, which is no score.{_unscored(samples, values)}")
    return {
        "metric": metric,
        "higher_is_better": bool(outcome["higher_is_better"].get(name, {}).get(metric, True)),
        "score": score,
        "stderr": stderr,
        "n": len(values) if averaged else len(samples),
        "clusters": len(set(clusters)) if averaged and clusters else None,
        "undefined": undefined,
        "samples": write_samples(folder, cell, samples),
    }


def _unscored(samples: Sequence[Sample], values: Sequence[float]) -> str:
    return "" if values else f" It is of all {len(samples)} documents together, so that none can be left out."


def prompts_digest(outcome: Mapping[str, Any], name: str) -> str:
    """A digest of the documents of a run, in order, with the prompts and gold answers that lm-eval sent for them."""
    asked = {sample["doc_id"]: [sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]] for sample in outcome["samples"][name]}
    return object_digest([[doc, *asked[doc]] for doc in sorted(asked)])


def _samples(task: Any, logged: Sequence[Mapping[str, Any]], ranked: tuple[str, str], labels: Mapping[int, str]) -> list[Sample]:
    """The samples of the filter that the task is ranked by.

    Args:
        task: lm-eval's; one that knows why an answer has its score (`why`) is asked.
        logged: lm-eval's samples.
        ranked: metric and filter.
        labels: document → label.
    """
    metric, chosen = ranked
    samples = []
    why = getattr(task, "why", None)
    for sample in logged:
        if sample["filter"] != chosen:
            continue
        value, doc = sample.get(metric), sample["doc_id"]
        score = float(value) if isinstance(value, Real) else None
        undefined = score is not None and not math.isfinite(score)
        response = _response(sample)
        samples.append(
            Sample(
                doc_id=doc,
                doc_hash=sample["doc_hash"],
                score=None if undefined else score,
                undefined=undefined,
                response=response,
                dispatch=labels.get(doc),
                raw=_raw(sample, response),
                metrics=_metrics(sample),
                why=why(sample["doc"], sample["filtered_resps"]) if why else None,
                probabilities=(sample.get("t2") or {}).get("probabilities"),
                cluster=cluster_of(task, sample["doc"]),
            )
        )
    return samples


def _metrics(sample: Mapping[str, Any]) -> dict[str, float] | None:
    """Every metric of one example that is a finite number; None where there is only one metric."""
    names = sample.get("metrics") or ()
    found = {str(name): sample[name] for name in names if isinstance(sample.get(name), Real) and math.isfinite(sample[name])}
    return {name: float(value) for name, value in found.items()} if len(names) > 1 else None


def _raw(sample: Mapping[str, Any], response: str) -> str | None:
    """The model's own text, where one answer was asked for and the filter made another of it."""
    given: Sequence[Any] = sample.get("resps") or []
    first = given[0][0] if len(given) == 1 and isinstance(given[0], (list, tuple)) and len(given[0]) == 1 else None
    return first if isinstance(first, str) and first != response else None


def _response(sample: Mapping[str, Any]) -> str:
    """What the model said: the text, or the log-likelihoods of the choices."""
    filtered = sample["filtered_resps"]
    first = filtered[0] if len(filtered) == 1 else filtered
    return first if isinstance(first, str) else json.dumps(first, default=str)
