"""Recorded: one evaluation of a model object after the other: what each chose and spent, and which of its answers lm-eval may keep.

The part of a strategy (`strategy.py`) that follows lm-eval's evaluator: an evaluation begins with requests of a new run, or when lm-eval
sets its response cache; what the last one found is then forgotten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from t2eval.environment import harness, response_cache, runs
from t2eval.environment.loading import refuse_unknown_scoring
from t2eval.errors import UsageError
from t2eval.expert.adapter import Adapter
from t2eval.expert.expert import Expert
from t2eval.generation.usage import Usage
from t2eval.models import identity
from t2eval.models.evaluation import Evaluation, closing_line
from t2eval.models.launch import under_lm_eval
from t2eval.paths import tasks_dir
from t2eval.svf.attachment import attached

_log = logging.getLogger(__name__)


class Recorded:
    """The evaluations of one model object. `Strategy` adds what is chosen in them."""

    UNSERVED: ClassVar[Mapping[str, str]] = {}
    """Output type of a task → why the strategy has nothing for it."""
    options: Any
    experts: list[Expert | Adapter]
    adapted: Any
    model: Any
    tokenizer: Any
    max_length: int
    max_gen_toks: int
    chat_template_args: dict[str, Any]
    cache_hook: Any
    _given: dict[str, Any]
    _rank: int
    _world_size: int

    # what a strategy defines
    def forget(self) -> None:
        """Forget what was found for the last evaluation."""

    def report(self) -> dict[str, Any]:
        """What the strategy adds to `config.t2`; on data-parallel runs, called on every rank."""
        return {}

    def reads_of(self, run: runs.Run) -> Any:
        """What the first pass reads of a run besides its requests, for the identity of its answers; can be written as JSON."""
        return None

    def explain(self, run_name: str, document: int) -> dict[str, Any] | None:
        """What was chosen for one document, for the logged samples."""
        return None

    # ------------------------------------------------------------------ one evaluation after the other
    @property
    def first_pass(self) -> Usage:
        return self._evaluation.first_pass

    @property
    def second_pass(self) -> Usage:
        return self._evaluation.second_pass

    def _begin(self, after: int) -> None:
        """Forget the last evaluation; the runs of the next one have numbers above `after`."""
        self._evaluation = Evaluation(after, after)
        self._table: str | None = None
        self.forget()

    def _enter(self, requests: Sequence[Any]) -> None:
        """See which evaluation requests belong to: lm-eval builds all requests of one before the first is answered."""
        found = {run.number: run for run in map(runs.run_of, requests) if run is not None}
        if found and max(found) > self._evaluation.last_run:
            if self._evaluation.asked:
                self._begin(self._evaluation.last_run)
            self._evaluation.last_run = runs.recorded()
            self._table = None
        for _, run in sorted(found.items()):
            self._refuse_run(run)
        self._evaluation.asked += len(requests)
        if response_cache.caches_responses(self.cache_hook):
            self._table_name()  # while the base's weights are in place

    def _refuse_tasks(self) -> None:
        """Refuse the tasks of the evaluation that makes this model, before anything is loaded."""
        evaluation = harness.running_evaluation() if self.UNSERVED else None
        if evaluation is None:
            return
        manager = evaluation.get("task_manager")
        if manager is None:
            own = [self.options.include_path] if self.options.include_path else []
            manager = harness.open_index([str(tasks_dir()), *own], defaults=False)
        for task, kind in harness.asked_output_types(evaluation.get("tasks") or [], manager).items():
            self._refuse(task, kind)

    def _refuse(self, task: str, kind: str) -> None:
        if kind in self.UNSERVED:
            model = f"t2-{self.options.strategy}{self.options.suffix}"
            raise UsageError(f"Task {task!r} has output type {kind!r}, and {model} {self.UNSERVED[kind]}")

    def _refuse_run(self, run: runs.Run) -> None:
        self._refuse(run.name, run.kind)
        refuse_unknown_scoring(run.task)
        if run.arguments.get("cache_requests") and (stale := runs.stale(run)):
            raise UsageError(
                f"lm-eval's cache of requests (--cache_requests) holds other requests of task {run.name!r} than this run would build: "
                f"{stale}. Its key knows neither seeds nor what a group, --gen_kwargs or an edited YAML changes. Run once with "
                "--cache_requests refresh."
            )

    def finish_evaluation(self, results: Mapping[str, Any] | None, chosen: Mapping[str, list[int]] | None) -> None:
        """lm-eval has evaluated: write what was chosen beside each logged sample, and say it in one line.

        Args:
            results: what lm-eval returns; None where another rank returns it.
            chosen: lm-eval's `--samples`.
        """
        if getattr(self, "chat_applied", False):
            self.chat_applied = False  # hf-multimodal would go on as if the next evaluation's prompts were chats too
        if results is None:
            return
        for task, samples in (results.get("samples") or {}).items():
            places = (chosen or {}).get(task)
            for sample in samples:
                document = places.index(sample["doc_id"]) if places and harness.renumbers_samples() else int(sample["doc_id"])
                explained = self.explain(task.split("::")[-1], document)
                if explained is not None:
                    sample["t2"] = explained
        line = closing_line(self.t2_info())
        if under_lm_eval():
            print(line, file=sys.stderr, flush=True)
        else:
            _log.info(line)

    # ------------------------------------------------------------------ lm-eval's response cache
    def identity(self) -> dict[str, Any]:
        """Everything that decides an answer besides the request and the run: base, tokenizer, experts, strategy, options, arguments."""
        scales = {id(parameter) for parameter in self._scales()}
        return {
            "class": type(self).__name__,
            "options": self.options.model_dump(mode="json", exclude=set(identity.HARMLESS)),
            "experts": [[e.name, e.label, e.description, e.sha256, _form(e)] for e in self.experts],
            "given": identity.given_facts(self._given),
            "model": identity.model_facts(self.model, scales),
            "tokenizer": identity.tokenizer_facts(getattr(self, "processor", None) or self.tokenizer),
            "lengths": [int(self.max_length), int(self.max_gen_toks)],
            "chat": self.chat_template_args,
        }

    def _table_name(self) -> str:
        if self._table is None:
            current = runs.since(self._evaluation.after)
            self._table = f"t2_{identity.digest([self.identity(), [self.reads_of(run) for run in current]])}"
        return self._table

    def set_cache_hook(self, cache_hook: Any) -> None:
        """lm-eval keys its response cache by the request alone: each identity gets a table of its own in the file."""
        if response_cache.caches_responses(cache_hook):
            self._begin(runs.recorded())  # an evaluation begins, of which this model may not see a single request
            response_cache.own_table(cache_hook, self._table_name)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def _collective(self) -> bool:
        return not response_cache.caches_responses(self.cache_hook)

    # ------------------------------------------------------------------ the record
    def _gather(self, thing: Any) -> list[Any]:
        found: list[Any] = [None] * int(self._world_size)
        torch.distributed.all_gather_object(found, thing)
        return found

    def _share(self) -> None:
        """Give every rank all ranks' records, while all of them are here."""
        own = self._evaluation.record(self.report())
        self._evaluation.totals = self._gather(own) if self._world_size > 1 and self._collective() else [own]

    def merge_reports(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """One report from those of all ranks."""
        return reports[0]

    def t2_info(self) -> dict[str, Any]:
        """`config.t2` of lm-eval's results file. Seconds are the slowest rank's, tokens those of all ranks."""
        records = self._evaluation.totals or [self._evaluation.record(self.report())]
        info = {
            "strategy": self.options.strategy,
            "experts": [
                {
                    "name": expert.name,
                    "label": expert.label,
                    "sha256": expert.sha256,
                    **_kind(expert),
                }
                for expert in self.experts
            ],
            "dispatch": {},
            "alphas": {},
            "adaptation": {},
            **self.merge_reports([each["report"] for each in records]),
            **self._evaluation.passes(records),
        }
        if response_cache.caches_responses(self.cache_hook):
            info["asked"] = sum(each["asked"] for each in records)
            if not info["asked"]:
                info["note"] = "every answer came from lm-eval's response cache (--use_cache): nothing was chosen now"
        return info

    def _scales(self) -> list[torch.nn.Parameter]:
        """The trainable parameters that scaling put beside the base's own; none where nothing is scaled."""
        scaling = attached(self.model)
        return [] if scaling is None else list(scaling.trainable().values())

    def get_model_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super().get_model_info()  # type: ignore[misc]
        scales = sum(parameter.numel() for parameter in self._scales())
        if isinstance(info.get("model_num_parameters"), int) and info["model_num_parameters"] > scales:
            info["model_num_parameters"] -= scales
        return {**info, "t2": self.t2_info()}


def _form(expert: Expert | Adapter) -> str:
    return str(expert.card.parameterisation) if isinstance(expert, Expert) else expert.kind


def _kind(expert: Expert | Adapter) -> dict[str, str | None]:
    """What an expert is known by besides its digest: its basis and source, or an adapter's type and base."""
    if isinstance(expert, Adapter):
        return {"peft_type": expert.kind, "base_model": expert.base}
    return {"basis_fingerprint": _short(expert), **({"source": expert.source} if expert.source else {})}


def _short(expert: Expert) -> str:
    """The basis fingerprint of an expert's card as one hash."""
    return hashlib.sha256(json.dumps(expert.card.basis_fingerprint, sort_keys=True).encode()).hexdigest()[:16]
