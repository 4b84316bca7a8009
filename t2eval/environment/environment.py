"""Environment: one lm-eval task as a reinforcement-learning environment, with its examples, prompts and the reward of an answer.

Nothing about a task is restated here. Documents, prompts, filters and metrics are lm-eval's own objects, so the reward of an answer
is what lm-eval would report for it: the task's filters (the first filter pipeline), then `process_results`, then the first metric.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from t2eval.basemodel.chat import tokenizer_chat
from t2eval.environment import harness, runs
from t2eval.environment.example import Example, Split
from t2eval.environment.loading import checked_config, load_task, make_task_manager, refuse_unprotected
from t2eval.environment.splits import Part, halves, source_of, split_roles
from t2eval.errors import T2Error, UsageError
from t2eval.vision.images import has_images, images_of, refuse_with_images, without_images

__all__ = ["Environment", "Example", "Split", "make_task_manager"]

_FEWSHOT_SEED = 1234
"""lm-eval's own default, so that few-shot prompts are its own."""
_DEFAULT_NEW_TOKENS = 256
"""What HFLM generates where a task does not say."""


class Environment:
    """One lm-eval task as examples with prompts, and the score of an answer.

    Attributes:
        name: the task's name.
        kind: `generate` or `choice`.
        metric: the main metric: the first of the task's list.
        filter: the main filter pipeline: the task's first.
        higher_is_better: of the main metric.
        unsafe_code: the metric runs model-written programs (in `t2eval.sandbox`; others are refused).
        until: the strings that end a generated answer.
        max_new_tokens: the most tokens of a generated answer.
        generation_kwargs: what lm-eval asks of a generated answer: its `generation_kwargs`, with `--gen_kwargs` in a run.
        num_fewshot: the worked examples in each prompt.
        images: whether documents have images; `images_of` gives an example's.
        task: lm-eval's own task object.
        manager: the TaskManager that loaded it; None where the task came with a run.
    """

    manager: Any

    def __init__(
        self,
        task: str,
        *,
        include_path: str | Path | Sequence[str | Path] | None = None,
        tokenizer: Any = None,
        apply_chat_template: bool = False,
        num_fewshot: int | None = None,
        task_manager: Any = None,
        chat_template_args: Mapping[str, Any] | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a task by name.

        Args:
            task: an lm-eval task name (not a group).
            include_path: further folders of task YAMLs.
            tokenizer: needed for `apply_chat_template`; of a vision-language model, its processor.
            apply_chat_template: prompts in the tokenizer's chat template, as `lm_eval --apply_chat_template`.
            num_fewshot: worked examples in each prompt; None: the task's own number, else 0.
            task_manager: an lm-eval TaskManager to load from.
            chat_template_args: further arguments for the chat template, as HFLM's.
            generation_kwargs: instead of the task's own, where lm-eval was given others (`--gen_kwargs`).

        Raises:
            UsageError: no such task, or a group of tasks.
            T2Error: the task's kind cannot be an environment, its code would run unprotected, or its data cannot be had.
        """
        if apply_chat_template and tokenizer is None:
            raise UsageError("apply_chat_template needs a tokenizer.")
        self.manager = task_manager if task_manager is not None else make_task_manager(include_path, task=task)
        checked_config(self.manager, task)
        loaded = load_task(self.manager, task)
        chat = tokenizer_chat(tokenizer, **(chat_template_args or {})) if apply_chat_template else None
        shots = int(num_fewshot if num_fewshot is not None else loaded.config.num_fewshot or 0)
        self._open(loaded, runs.Prompting(shots, chat), generation_kwargs)
        self._rewind: Callable[[], Any] = lambda: self.task.set_fewshot_seed(_FEWSHOT_SEED)
        self._deals = 1

    @classmethod
    def from_run(cls, run: runs.Run, sent: Mapping[int, Sequence[tuple[Any, ...]]] | None = None) -> Environment:
        """The environment of a task that lm-eval is evaluating: its documents have, letter for letter, the prompts that lm-eval sends.

        Args:
            run: the task with the arguments that its requests were built with.
            sent: the arguments of the requests that lm-eval sent, by the document's place in the scored split; those of this process
                where nothing is given.

        Raises:
            T2Error: the task's kind cannot be an environment, or its programs would run unprotected.
        """
        self = cls.__new__(cls)
        self.manager = None
        if runs.runs_programs_unprotected(run.task):
            refuse_unprotected(run.name)
        self._open(run.task, run.prompting(), run.generation_kwargs())
        self._rewind = lambda: runs.set_sampler_state(run.task, run.sampling)
        self._deals = int(run.arguments.get("world_size") or 1)
        self._order = run.order()
        self._sent = dict(run.sent() if sent is None else sent)
        return self

    def _open(self, task: Any, prompting: runs.Prompting, generation_kwargs: Mapping[str, Any] | None) -> None:
        self.task: Any = task
        self.name = str(task.config.task)
        self.prompting = prompting
        self.num_fewshot = prompting.num_fewshot
        self.unsafe_code = bool(task.config.unsafe_code or getattr(task, "UNSAFE_CODE", False))
        output_type = task.OUTPUT_TYPE
        if output_type not in ("generate_until", "multiple_choice"):
            raise T2Error(
                f"Task {self.name!r} has output type {output_type!r}: it has no answer that could be right or wrong. "
                "Use a task with generated answers (generate_until) or with choices (multiple_choice)."
            )
        self.kind: Literal["generate", "choice"] = "generate" if output_type == "generate_until" else "choice"
        names = harness.metric_names(task)
        if not names or names == ["bypass"]:
            raise T2Error(f"Task {self.name!r} is run without metrics (--predict_only), and nothing can be chosen without one.")
        self.metric: str = names[0]
        self.filter: str = harness.filter_name(task)
        self.higher_is_better = bool(task.higher_is_better().get(self.metric, True))
        self.generation_kwargs: dict[str, Any] = dict(generation_kwargs or task.config.generation_kwargs or {}) if self.generates else {}
        self.until, self.max_new_tokens = self._generation()
        self.t2: dict[str, Any] = runs.own_metadata(task)
        self._held_out: set[str] = set()
        self._pictured: dict[str, Any] = {}
        self._order: list[int] | None = None
        self._sent: dict[int, Sequence[tuple[Any, ...]]] = {}
        self.images = has_images(task)
        if self.images:
            refuse_with_images(self.name, self.kind, self.num_fewshot)

    @property
    def generates(self) -> bool:
        """Whether answers are generated, and not chosen."""
        return self.kind == "generate"

    def _generation(self) -> tuple[list[str], int]:
        if not self.generates:
            return [], 0
        settings = harness.generation_settings(self.generation_kwargs, _DEFAULT_NEW_TOKENS)
        until = settings.get("until") or []
        return ([until] if isinstance(until, str) else [str(item) for item in until]), int(settings["max_gen_toks"])

    # ------------------------------------------------------------------ splits
    def _plan(self, split: Split) -> tuple[str, Part]:
        return source_of(self.task.config, self.t2, split, self.name, sorted(map(str, getattr(self.task, "dataset", None) or {})))

    @property
    def has_test(self) -> bool:
        """Whether lm-eval scores a split of it."""
        return self._scored is not None

    @property
    def _scored(self) -> str | None:
        """The split that lm-eval scores."""
        return split_roles(self.task.config, self.t2)["test"]

    def split_source(self, split: Split) -> str:
        """Which lm-eval split `examples(split)` draws from, for the record: `"train"`, `"train (second half)"`, …

        Raises:
            T2Error: the task has nothing to draw this split from.
        """
        source, part = self._plan(split)
        return source if part == "all" else f"{source} ({part} half)"

    def examples(self, split: Split, limit: int | None = None, seed: int = 0) -> list[Example]:
        """The examples of a split, with prompts.

        Args:
            split: `train`, `validation`, `adaptation` or `test`; see the module's text for where each comes from.
            limit: at most so many: the first ones of `test` (as `lm_eval --limit`), a seeded sample, in order, of the others.
            seed: of that sample.

        Returns:
            The examples, in the split's order.

        Raises:
            T2Error: the task has nothing to draw this split from.
        """
        source, part = self._plan(split)
        docs = self._docs(source)
        indices = list(range(len(docs)))
        if part != "all":
            indices = halves(len(indices))[part]
        if limit is not None and limit < len(indices):
            indices = indices[:limit] if split == "test" else sorted(random.Random(seed).sample(indices, limit))
        with harness.compiled_once():
            built = self._built(docs, source, indices)
        if split == "adaptation" and source == self._scored:
            self._held_out = {example.key for example in built}
        return [example for example in built if example.key not in self._held_out] if split == "test" else built

    def _built(self, docs: Sequence[dict[str, Any]], source: str, indices: Sequence[int]) -> list[Example]:
        """The examples of some documents of a split.

        Worked examples are drawn by one generator, document after document: where lm-eval scores the split, the documents before one must
        have drawn theirs, in the process that they belong to, for it to get those that lm-eval gives it.
        """
        self._rewind()
        if not self.num_fewshot or source != self._scored:
            return [self._example(docs[index], source, index) for index in indices]
        found: dict[int, Example] = {}
        asked = set(indices)
        known = range(len(docs)) if self._order is None else self._order
        for share in runs.dealt(known, self._deals):
            wanted = [place for place, index in enumerate(share) if index in asked]
            self._rewind()
            for index in share[: wanted[-1] + 1] if wanted else []:
                if index in asked:
                    found[index] = self._example(docs[index], source, index)
                else:
                    runs.skip_draw(self.task, docs[index], self.num_fewshot)
        self._rewind()
        found |= {index: self._example(docs[index], source, index) for index in indices if index not in found}  # left out by --samples
        return [found[index] for index in indices]

    def _docs(self, source: str) -> list[dict[str, Any]]:
        dataset = self.task.dataset
        if source not in dataset:
            raise T2Error(f"Task {self.name!r} has no split {source!r}. Its dataset has: {', '.join(sorted(map(str, dataset)))}.")
        docs = dataset[source]
        if callable(self.task.config.process_docs):
            docs = self.task.config.process_docs(docs)
        if self.images:
            self._pictured[source] = docs
            docs = without_images(docs)
        return [dict(doc) for doc in docs]

    def images_of(self, example: Example) -> list[Any]:
        """The PIL images of an example, read or drawn now, and not kept."""
        return images_of(self.task, dict(self._pictured[example.split][example.index]))

    # ------------------------------------------------------------------ prompts
    def _context(self, doc: dict[str, Any], source: str) -> str | list[str]:
        task = self.task
        # lm-eval leaves a document out of its own worked examples on the test split only, and training may draw both from one split
        own = self.num_fewshot > 0 and hasattr(task, "sampler") and harness.fewshot_split(task) == source != self._scored
        with runs.never_itself(task, doc) if own else nullcontext():
            return runs.prompt_of(task, doc, self.prompting)

    def _example(self, doc: dict[str, Any], source: str, index: int) -> Example:
        told = {"doc": doc, "place": [source, index]} if self.images else doc  # one question may be asked about two pictures
        key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
        shared: dict[str, Any] = {"task": self.name, "split": source, "index": index, "doc": doc, "key": key}
        context = self._context(doc, source)
        sent = self._sent.get(index) if source == self._scored else None
        if self.generates:
            prompt = str(context if sent is None else sent[0][0])
            target = self._target(doc)
            answer = self._delimited(prompt, target, prefixed=bool(harness.answer_prefix(self.task, doc)))
            return Example(**shared, prompt=prompt, target=target, choices=None, gold=None, answer=answer)
        if sent is None:
            made = harness.choice_requests(self.task, doc, context, index, chat=self.prompting.chat is not None)
            sent = [tuple(request.args) for request in made]
        requests = tuple((str(pair[0]), str(pair[1])) for pair in sent)
        choices = tuple(str(choice) for choice in self.task.doc_to_choice(doc))
        requests = requests[: 2 * len(choices)]
        gold = self._gold(doc, choices)
        return Example(
            **shared,
            prompt=requests[0][0],
            target=choices[gold] if gold is not None else "",
            choices=choices,
            gold=gold,
            answer=requests[gold][1] if gold is not None else "",
            requests=requests,
        )

    def _target(self, doc: dict[str, Any]) -> str:
        if field := self.t2.get("answer_field"):
            if field not in doc:
                raise T2Error(f"Task {self.name!r}: metadata.t2.answer_field names {field!r}, but a document has: {', '.join(doc)}.")
            return str(doc[field])
        target = self.task.doc_to_target(doc)
        if isinstance(target, int) and self.task.config.doc_to_choice is not None:
            target = self.task.doc_to_choice(doc)[target]
        if isinstance(target, (list, tuple)):
            target = target[0] if target else ""
        return str(target)

    def _delimited(self, prompt: str, target: str, *, prefixed: bool) -> str:
        """The target as it continues the prompt: behind a `gen_prefix` as in lm-eval's worked examples, else behind the delimiter."""
        if prompt[-1:].isspace() or target[:1].isspace():
            return target
        if prefixed:
            return f" {target}"
        return target if self.prompting.chat is not None else f"{self.task.config.target_delimiter or ''}{target}"

    def _gold(self, doc: dict[str, Any], choices: Sequence[str]) -> int | None:
        gold = harness.gold_choice(self.task, doc)
        if isinstance(gold, (list, tuple)):
            gold = gold[0] if gold else None
        if isinstance(gold, str):
            gold = list(choices).index(gold) if gold in choices else None
        return int(gold) if gold is not None and 0 <= int(gold) < len(choices) else None

    # ------------------------------------------------------------------ scores
    def score(self, example: Example, response: str) -> float:
        """The main metric of one generated answer, by the task's own filters and `process_results`.

        Args:
            example: of this environment.
            response: the model's text, with stop strings already cut off, as lm-eval hands it to the filters.

        Returns:
            The metric's value; for exact match and the like 0.0 or 1.0.
        """
        return self.score_many([(example, response)])[0]

    def score_many(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        """`score` of many answers: filters run once over all, and programs run several at a time.

        Args:
            pairs: examples with their answers; an example may come several times.

        Returns:
            One value a pair, in order.

        Raises:
            T2Error: the task has choices instead of generated answers.
        """
        if not self.generates:
            raise T2Error(f"Task {self.name!r} has choices: its score comes from score_choice, not from a text.")
        if not pairs:
            return []
        answers = [(example.doc, example.prompt, response) for example, response in pairs]
        return [self.value(scores) for scores in harness.score_answers(self.task, answers, parallel=self.unsafe_code)]

    def score_choice(self, example: Example, loglikelihoods: Sequence[float], greedy: Sequence[bool] | None = None) -> float:
        """The main metric of one choice question, given the log-likelihood of each of `example.requests`.

        Args:
            example: of this environment.
            loglikelihoods: one a request, in nats (for mutual-information metrics the unconditional ones follow).
            greedy: whether each continuation is what greedy decoding would say; only an exact-match metric asks for it.

        Returns:
            The metric's value; for accuracy 0.0 or 1.0.
        """
        flags = list(greedy) if greedy is not None else [False] * len(loglikelihoods)
        if self.metric == "exact_match" and greedy is None:
            raise T2Error(f"Task {self.name!r} scores choices by exact match, which also needs the greedy flags.")
        results = [(float(value), bool(flag)) for value, flag in zip(loglikelihoods, flags, strict=True)]
        contexts = [context for context, _ in example.requests]
        context = contexts if harness.multiple_input(self.task) else contexts[0]
        return self.value(harness.score_choices(self.task, example.doc, context, results, chat=self.prompting.chat is not None))

    def value(self, result: Mapping[str, Any]) -> float:
        """The main metric as one number, from what `process_results` returned for one document."""
        value = result[self.metric] if self.metric in result else next(iter(result.values()))
        if self.kind == "choice" and isinstance(value, tuple) and len(value) == 2:  # f1, mcc: (gold, predicted) to be aggregated
            gold, predicted = value
            return float(predicted in gold if isinstance(gold, (list, tuple)) else predicted == gold)
        if isinstance(value, (int, float)) or hasattr(value, "item"):
            return float(value)
        return float(self.task.aggregation()[self.metric]([value]))
