"""Cells, one at a time: the base model loaded once, one cell's method put on it, evaluated by lm-eval, taken off again."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2eval.bench.base import Base
from t2eval.bench.config import BASELINES, BenchConfig
from t2eval.bench.inputs import adapter_facts, expert_facts, expert_of, task_digest
from t2eval.bench.memory import PeakMemory
from t2eval.bench.plan import Cell, open_tasks, task_label
from t2eval.bench.rows import Row
from t2eval.bench.scores import prompts_digest, scored
from t2eval.environment.harness import evaluate_task
from t2eval.environment.loading import checked_config, load_task
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.errors import T2Error
from t2eval.models.registry import strategy_class
from t2eval.store.files import is_disk_full
from t2eval.store.versions import versions
from t2eval.svf.attachment import attached
from t2eval.training.methods import find_method
from t2eval.vision.images import reads_images


class Worker:
    """Evaluates cells of one plan.

    Args:
        config: the benchmark file.
        output: the benchmark's folder, where samples are written.
    """

    def __init__(self, config: BenchConfig, output: Path) -> None:
        self.config = config
        self.output = output
        self._tasks: dict[str, Any] = {}

    @staticmethod
    def tasks(config: BenchConfig) -> dict[str, str]:
        """Digests of a plan's tasks as they are now.

        Raises:
            T2Error: a task that does not exist, or whose programs would run unprotected.
        """
        manager = open_tasks(config.tasks, config.include_path)
        return {name: task_digest(manager, name) for name in config.tasks}

    def open(self) -> None:
        """Load the base model and index the tasks.

        Raises:
            T2Error: a model or task that does not exist.
        """
        _describe_machine_once()
        quiet_lm_eval()
        self._manager = open_tasks(self.config.tasks, self.config.include_path)
        self.base = Base(self.config)

    def run(self, cell: Cell) -> Row:
        """Evaluate a cell and write its samples. An error becomes a failed row, and so does a cell that leaves the base changed.

        Raises:
            DiskError, OSError: the disk is full.
            T2Error: the base that a cell has changed cannot be loaded again.
        """
        started = time.perf_counter()
        identity: dict[str, Any] = {"cell": cell.key, "model": cell.model, "method": cell.method, "task": cell.task, "seed": cell.seed}
        fields: dict[str, Any] = {}
        error = None
        try:
            fields = self._evaluate(cell)
        except Exception as raised:
            if is_disk_full(raised):
                raise
            error = str(raised) if isinstance(raised, T2Error) else f"{type(raised).__name__}: {raised}"
        if (changed := self._left_changed()) is not None:
            self.base.reload()
            error = error or f"The base model was not as it had been loaded after this cell ({changed} differs). Run it again."
        if error is not None:
            return Row(**identity, status="failed", error=error, seconds=round(time.perf_counter() - started, 3), versions=versions())
        return Row(**identity, status="ok", versions=versions(), **fields)

    def _left_changed(self) -> str | None:
        """What of the base a cell changed. Where memory does not suffice to look, that counts as a change: the base is loaded anew."""
        try:
            return self.base.changed()
        except (MemoryError, RuntimeError):  # torch says it by a RuntimeError
            return "for want of memory it was not seen what"

    def _task(self, name: str) -> Any:
        """lm-eval's task. What it would run unprotected has been refused, so that lm-eval's own question need not be asked."""
        if name not in self._tasks:
            checked_config(self._manager, name)
            self._tasks[name] = load_task(self._manager, name)
        return self._tasks[name]

    def _evaluate(self, cell: Cell) -> dict[str, Any]:
        task = self._task(cell.task)
        with self._language_model(cell) as (lm, facts):
            peak = PeakMemory(str(getattr(lm, "device", "cpu")))
            started = time.perf_counter()
            outcome = evaluate_task(
                lm,
                task,
                self._manager,
                num_fewshot=self.config.num_fewshot,
                apply_chat_template=self.config.apply_chat_template,
                limit=self.config.limit,
                log_samples=True,
                bootstrap_iters=0,
                confirm_run_unsafe_code=True,
            )
            seconds = round(time.perf_counter() - started, 3)
            info: dict[str, Any] | None = lm.t2_info() if hasattr(lm, "t2_info") else None
            labels = lm.dispatched(cell.task) if hasattr(lm, "dispatched") else {}
        return {
            **scored(self.output, cell.key, task, outcome, labels),
            "seconds": seconds,
            "first_pass_seconds": info["first_pass"]["seconds"] if info else 0.0,
            "second_pass_seconds": info["second_pass"]["seconds"] if info else seconds,
            "trainable_parameters": facts["trainable_parameters"],
            "peak_memory_bytes": peak.bytes(),
            "t2": info and _finite(info),
            "hashes": {
                "task": task_digest(self._manager, cell.task),
                "prompts": prompts_digest(outcome, cell.task),
                **facts["hashes"],
            },
        }

    # ------------------------------------------------------------------ methods
    def _language_model(self, cell: Cell) -> contextlib.AbstractContextManager[tuple[Any, dict[str, Any]]]:
        """An lm-eval model for a cell, and what its row says about it. The base weights are as before afterwards."""
        if cell.method == "base":
            return contextlib.nullcontext((self._plain(self.base.model, cell.method), {"trainable_parameters": 0, "hashes": {}}))
        return self._adapted(cell) if cell.method in BASELINES else self._with_experts(cell)

    def _plain(self, model: Any, method: str) -> Any:
        from t2eval.environment.plain import plain_model

        return plain_model(model, self.base.tokenizer, batch_size=self.config.batch_size, **self.config.model_args.get(method, {}))

    @contextlib.contextmanager
    def _adapted(self, cell: Cell) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The base as a baseline left it: with an adapter on it, unmerged, or with weights of its own; then the base's own again."""
        folder = self.config.adapter(cell.method, self._label(cell), cell.seed)
        facts = adapter_facts(folder, cell.method)
        with find_method(cell.method).mounted(self.base.model, folder) as model:
            yield self._plain(model, cell.method), facts

    @contextlib.contextmanager
    def _with_experts(self, cell: Cell) -> Iterator[tuple[Any, dict[str, Any]]]:
        """A strategy's lm-eval model, made for this cell. Its hooks stay for the next one, and do nothing without z."""
        kind, own = self.config.kind(cell.method), self.config.own_experts(cell.method, cell.seed)
        experts = self.config.experts_argument(cell.seed) if own is None else own
        settings = {**self.config.model_args.get(cell.method, {}), "experts": experts}
        if kind == "expert":
            settings["experts"] = str(expert_of(str(settings["experts"]), self._label(cell)))
        elif kind == "fewshot":
            settings.setdefault("adapt_seed", cell.seed)
        facts = expert_facts(kind, str(settings["experts"]))
        if self.config.include_path:
            settings.setdefault("include_path", self.config.include_path)
        build = strategy_class(kind, with_images=reads_images(self.base.tokenizer))
        lm = build(pretrained=self.base.model, tokenizer=self.base.tokenizer, batch_size=self.config.batch_size, **settings)
        try:
            yield lm, facts
        finally:
            if (scaling := attached(self.base.model)) is not None:
                scaling.set_z(None)

    def _label(self, cell: Cell) -> str:
        return task_label(self.config, cell.task, self._task(cell.task).config.metadata)


def _describe_machine_once() -> None:
    """lm-eval describes the machine in every result, by a dozen subprocesses: a second a cell, were it not asked once a process."""
    from torch.utils import collect_env

    described: Any = collect_env.get_pretty_env_info
    if not hasattr(described, "cache_info"):
        collect_env.get_pretty_env_info = described = functools.cache(described)
    described()


def _finite(value: Any) -> Any:
    """A value for JSON, with None for a number that is not finite: the score of a candidate for whose examples the metric says nothing."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
