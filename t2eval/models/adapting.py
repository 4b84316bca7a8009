"""Adapting: the strategy `t2-fewshot`, α by search on each task's adaptation examples."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from t2eval.environment.environment import Environment, Example
from t2eval.errors import T2Error
from t2eval.models.options import FewshotOptions
from t2eval.models.strategy import Strategy
from t2eval.strategies.alpha import Coefficients
from t2eval.strategies.fewshot import Adaptation, Candidates, adapt

_log = logging.getLogger(__name__)


class Adapting(Strategy):
    """Searches α once a task, then answers all of the task's requests with the mix."""

    OPTIONS = FewshotOptions
    options: FewshotOptions

    def prepare(self) -> None:
        self.search = self.options.config()
        # One expert alone: divided by its sum, α would be 1, and there would be nothing to search.
        self._normalize = self.search.normalize and len(self.skills) > 1
        self._coefficients = Coefficients([expert.z for expert in self.skills], self.search.granularity, self._normalize, self.search.form)
        self._found: dict[str, Adaptation] = {}
        self._records: dict[str, dict[str, Any]] = {}

    def keys(self, requests: Sequence[Any]) -> list[Hashable]:
        generated = (request for request in requests if request.request_type == "generate_until")
        tasks: dict[str, Any] = dict.fromkeys((str(request.task_name) for request in requests), None)
        tasks.update({str(request.task_name): request.args[1] for request in generated})
        shared = self.ranks().gather(tasks)  # a rank without documents of a task still helps to search its alphas
        for task, settings in sorted({task: settings for part in shared for task, settings in part.items()}.items()):
            if task not in self._found:
                with self.first_pass.timed():
                    self._adapt(task, settings)
        return [str(request.task_name) for request in requests]

    def scale(self, key: Hashable) -> Mapping[str, Tensor]:
        return self._found[str(key)].z

    def _adapt(self, task: str, settings: Mapping[str, Any] | None) -> None:
        """Search the α of a task; `settings` are what lm-eval asks for its generated answers, so that the search answers alike."""
        environment = Environment(
            task,
            include_path=self.include_path,
            tokenizer=self.reader_of_prompts,
            apply_chat_template=self._chat,
            num_fewshot=self.num_fewshot,
            chat_template_args=self.chat_template_args,
            generation_kwargs=settings,
        )
        examples = environment.examples("adaptation", limit=self.search.shots, seed=self.options.adapt_seed)
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
        candidates = Candidates(
            self.adapted,
            self.runner(),
            environment,
            examples,
            self._coefficients,
            self.encoding(),
            self.search.ties,
            mergeable=not self.through_hooks,
        )
        with tqdm(total=self.search.search.iterations, desc=f"t2-fewshot: alphas for {task}", disable=self._rank != 0) as bar:

            def progress(iteration: int, score: float) -> None:
                bar.set_postfix(score=f"{score:.3f}")
                bar.update(iteration - bar.n)

            found = adapt(self._coefficients, candidates, self.search, self.ranks(), progress)
        self._found[task] = found
        self._records[task] = self._record(environment, examples, found, overlaps)

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
            "form": self.search.form,
            "chosen": found.chosen,
            "metric": environment.metric,
            "score": found.score if environment.higher_is_better else -found.score,
            "history": found.history,
        }

    def report(self) -> dict[str, Any]:
        return {
            "alphas": {task: found.alphas for task, found in self._found.items()},
            "alpha_order": [expert.name for expert in self.skills],
            "adaptation": self._records,
        }
