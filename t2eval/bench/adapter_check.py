"""Adapter check: an expert's LoRA adapter beside the expert itself and the base model, on one task, as lm-eval scores them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from t2eval.bench.scores import main_metric
from t2eval.environment.harness import evaluate_task
from t2eval.environment.loading import checked_config, load_task, make_task_manager
from t2eval.environment.plain import plain_model
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.errors import T2Error
from t2eval.expert.card import Score
from t2eval.expert.expert import Expert
from t2eval.expert.library import adapted_base
from t2eval.stats.means import mean_stderr
from t2eval.stats.paired import Paired, paired


@dataclass(frozen=True)
class AdapterCheck:
    """Scores of the base model, the whole expert and its adapter, and the paired test of adapter - expert."""

    task: str
    metric: str
    base: Score
    expert: Score
    adapter: Score
    difference: Paired


def check_adapter(
    expert: str | Path | Expert,
    adapter: str | Path,
    task: str,
    *,
    model: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    include_path: str | None = None,
    apply_chat_template: bool = False,
) -> AdapterCheck:
    """Score a task three times: base weights, the expert merged into them, and the adapter as lm-eval's `peft=` puts it on them.

    Args:
        expert: or its directory.
        adapter: the folder that `export_lora` wrote.
        task: an lm-eval task.
        model: the base model, if not under the name on the card.
        limit: documents, the first ones; None: all.
        batch_size: of lm-eval.
        include_path: a folder of task YAMLs.
        apply_chat_template: of the model's tokenizer.

    Raises:
        T2Error: no such task, a metric that is no mean over documents, an expert that does not fit.
    """
    from peft import PeftModel

    quiet_lm_eval()
    manager = make_task_manager(include_path, task=task)
    checked_config(manager, task)
    loaded = load_task(manager, task)
    settings = {"limit": limit, "apply_chat_template": apply_chat_template}
    whole = expert if isinstance(expert, Expert) else Expert.load(expert)
    adapted, (fitting,), reader = adapted_base([whole], model)

    def scores(scored: Any) -> tuple[str, Score, dict[str, float]]:
        return _scores(plain_model(scored, reader, batch_size=batch_size), loaded, manager, **settings)

    with _taken_off(adapted):
        metric, base, _ = scores(adapted.model)
        with adapted.fast(fitting.z):
            _, merged, by_expert = scores(adapted.model)
    _, approximate, by_adapter = scores(PeftModel.from_pretrained(adapted.model, str(adapter)).eval())
    difference = paired(by_adapter, by_expert)
    assert difference is not None  # the same documents
    return AdapterCheck(task, metric, base, merged, approximate, difference)


@contextmanager
def _taken_off(adapted: Any) -> Iterator[None]:
    """The scaling for a while, and a plain model afterwards."""
    adapted.set_z(None)
    try:
        yield
    finally:
        adapted.detach()


def _scores(lm: Any, task: Any, manager: Any, **settings: Any) -> tuple[str, Score, dict[str, float]]:
    """The main metric, its score, and each document's.

    Raises:
        T2Error: the metric is no number for some document, or one of all documents together.
    """
    outcome = evaluate_task(lm, task, manager, log_samples=True, bootstrap_iters=0, confirm_run_unsafe_code=True, **settings)
    name = next(iter(outcome["results"]))
    metric, chosen = main_metric(task, outcome["results"][name])
    values = {sample["doc_id"]: sample.get(metric) for sample in outcome["samples"][name] if sample["filter"] == chosen}
    if missing := [document for document, value in values.items() if not isinstance(value, Real)]:
        raise T2Error(f"The metric {metric!r} of {name} is no number for document {missing[0]}: give a task that scores each document.")
    outcomes = {str(document): float(value) for document, value in values.items() if isinstance(value, Real)}
    mean, stderr = mean_stderr(list(outcomes.values()))
    return metric, Score(score=mean, stderr=stderr, n=len(outcomes)), outcomes
