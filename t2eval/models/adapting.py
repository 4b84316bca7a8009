"""Adapting: the strategy `t2-fewshot`, α by search on each task's adaptation examples."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from t2eval.environment.environment import Environment, Example
from t2eval.environment.runs import Run, run_of
from t2eval.errors import T2Error, UsageError
from t2eval.expert.adapter import Adapter
from t2eval.models.mounts import AdapterMix
from t2eval.models.options import FewshotOptions
from t2eval.models.strategy import Strategy
from t2eval.strategies.alpha import Coefficients
from t2eval.strategies.coarse import Stage, by_stages
from t2eval.strategies.fewshot import Adaptation, Candidates, adapt
from t2eval.strategies.hierarchy import children
from t2eval.strategies.search import Array

_log = logging.getLogger(__name__)

_NO_ANSWER = "has nothing to search by there: no answer is right or wrong. Use t2-expert, t2-prompt or t2-cls, which serve it."


@dataclass(frozen=True)
class AdapterCoefficients(Coefficients):
    """α over PEFT adapters: one each. `scales` has an empty mapping for each of `adapters`."""

    adapters: tuple[Adapter, ...] = ()

    def z(self, vector: Array) -> Any:
        """The mix of a flat vector."""
        weighed = [(each, float(alpha)) for each, alpha in zip(self.adapters, self.alphas(vector), strict=True)]
        return AdapterMix(tuple((each, alpha) for each, alpha in weighed if alpha) or tuple(weighed[:1]))


class Adapting(Strategy):
    """Searches α once a run, then answers all of the run's requests with the mix."""

    OPTIONS = FewshotOptions
    UNSERVED = {"loglikelihood": _NO_ANSWER, "loglikelihood_rolling": _NO_ANSWER}
    options: FewshotOptions

    def check_library(self) -> None:
        self.search = self.options.config(len(self.skills))
        # One expert alone: divided by its sum, α would be 1, and there would be nothing to search.
        self._normalize = self.search.normalize and len(self.skills) > 1

        if self.search.hierarchy:
            children([skill.label for skill in self.skills])  # refuses labels with nameless parts
            if len({skill.label for skill in self.skills}) < len(self.skills):
                raise UsageError("hierarchy=true goes by the experts' labels, and two experts have the same one.")
        self._adapters = self.adapters("t2-fewshot")
        if self._adapters and self.search.granularity != "task":
            raise UsageError(f"granularity={self.search.granularity}: PEFT mixes adapters as a whole. Leave it out, or use z experts.")
        if self._adapters and self.options.form is not None:
            raise UsageError("form= is how z experts are mixed; PEFT adapters have one form (W + Σ α ΔW for LoRA). Leave it out.")

    def prepare(self) -> None:
        granularity, form = self.search.granularity, self.search.form
        self._coefficients: Coefficients
        if self._adapters:
            self._coefficients = AdapterCoefficients([{}] * len(self._adapters), granularity, self._normalize, form, tuple(self._adapters))
        else:
            self._coefficients = Coefficients([expert.z for expert in self.z_skills], granularity, self._normalize, form)

    def forget(self) -> None:
        self._found: dict[int, Adaptation] = {}
        self._records: dict[int, dict[str, Any]] = {}
        self._names: dict[int, str] = {}

    def keys(self, requests: Sequence[Any]) -> list[Hashable]:
        of = [_run(request) for request in requests]
        # every process has requests of each run, and meets them in the order in which they were recorded
        for number, run in sorted({run.number: run for run in of}.items()):
            if number not in self._found:
                with self.first_pass.timed():
                    self._adapt(run)
        return [run.number for run in of]

    def scale(self, key: Hashable) -> Mapping[str, Tensor] | AdapterMix:
        return self._found[int(str(key))].z

    def environment(self, run: Run) -> Environment:
        """The environment that a run's α is searched in; the same on all processes."""
        sent: dict[int, Any] = {}
        for part in self.ranks().gather(run.sent()):
            sent |= part
        return Environment.from_run(run, sent)

    def adaptation_examples(self, environment: Environment) -> list[Example]:
        """The examples that α is searched on."""
        return environment.examples("adaptation", limit=self.search.shots, seed=self.options.adapt_seed)

    def reads_of(self, run: Run) -> Any:
        if run.kind in self.UNSERVED:
            return None
        environment = Environment.from_run(run)
        read = [[example.key, example.prompt, example.requests, example.answer] for example in self.adaptation_examples(environment)]
        scored = [environment.metric, environment.filter, run.task.dump_config(), dict(environment.generation_kwargs)]
        return [run.name, scored, read]

    def _adapt(self, run: Run) -> None:
        """Search the α of a run."""
        task = run.name
        environment = self.environment(run)
        examples = self.adaptation_examples(environment)
        if not examples:
            raise T2Error(f"Task {task!r} has no adaptation examples: its split {environment.split_source('adaptation')!r} is empty.")
        if len(examples) < self.search.shots:
            _log.warning(
                "Task %s has %d adaptation examples (split %s), fewer than shots=%d: all of them are used.",
                task,
                len(examples),
                environment.split_source("adaptation"),
                self.search.shots,
            )
        overlaps = examples[0].split == environment.split_source("test")
        if overlaps:
            _log.warning(
                "Task %s has neither a validation nor a training split apart from what is scored: alphas are searched on %d of its test "
                "documents, which lm-eval scores too. Their ids are in config.t2.adaptation.%s.doc_ids.",
                task,
                len(examples),
                task,
            )
        silent = self._rank != 0 or not sys.stderr.isatty()
        with tqdm(total=self.search.search.iterations, desc=f"t2-fewshot: alphas for {task}", disable=silent) as bar:

            def progress(iteration: int, score: float) -> None:
                bar.set_postfix(score=f"{score:.3f}")
                bar.update(iteration - bar.n)

            def searched(coefficients: Coefficients) -> Adaptation:
                candidates = self._candidates(coefficients, environment, examples)
                return adapt(coefficients, candidates, self.search, self.ranks(), progress)

            stages: list[Stage] = []
            with self.mounts.ready(self._adapters) if self._adapters else contextlib.nullcontext():
                if self.search.hierarchy:
                    labels = [skill.label for skill in self.skills]
                    found, alphas, stages = by_stages(labels, self._coefficients, searched)
                    found = replace(found, alphas=alphas, evaluations=sum(stage.evaluations for stage in stages))
                else:
                    found = searched(self._coefficients)
        self._found[run.number] = found
        self._records[run.number] = self._record(environment, examples, found, overlaps)
        if stages:
            self._records[run.number]["stages"] = [asdict(stage) for stage in stages]
        self._names[run.number] = task if task not in self._names.values() else f"{task} ({len(self._names) + 1})"

    def _candidates(self, coefficients: Coefficients, environment: Environment, examples: Sequence[Example]) -> Candidates:
        """What evaluates candidates of a task."""
        return Candidates(
            self.mounts if self._adapters else self.adapted,
            self.engine(),
            environment,
            examples,
            coefficients,
            self.settings(environment.generation_kwargs) if environment.kind == "generate" else None,
            self.search.ties,
            mergeable=not self.through_hooks,
            together=not self._adapters,
        )

    def _record(self, environment: Environment, examples: Sequence[Example], found: Adaptation, overlaps: bool) -> dict[str, Any]:
        search = self.search.search
        return {
            "split": environment.split_source("adaptation"),
            "examples": len(examples),
            "shots": self.search.shots,
            "doc_ids": [example.index for example in examples],
            "overlaps_test": overlaps,
            "evaluations": found.evaluations,
            "iterations": found.iterations,
            "converged": found.converged,
            "search": search.method,
            "population": search.population,
            "seed": search.seed,
            "ties": self.search.ties,
            "granularity": self.search.granularity,
            "alpha_rows": self._coefficients.groups,
            "normalize": self._normalize,
            "form": "peft" if self._adapters else self.search.form,
            "chosen": found.chosen,
            "metric": environment.metric,
            "score": found.score if environment.higher_is_better else -found.score,
            "history": found.history,
        }

    def report(self) -> dict[str, Any]:
        return {
            "alphas": {name: self._found[number].alphas for number, name in self._names.items()},
            "alpha_order": [expert.name for expert in self.skills],
            "adaptation": {name: self._records[number] for number, name in self._names.items()},
        }


def _run(request: Any) -> Run:
    run = run_of(request)
    if run is None:
        raise T2Error(
            f"A request of task {request.task_name!r} was not built by lm-eval's evaluator, so its task's adaptation examples are not "
            "known. Use lm_eval.simple_evaluate, or lm_eval.evaluate with tasks whose requests were built after the model was made."
        )
    return run
