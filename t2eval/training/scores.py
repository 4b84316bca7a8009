"""Scores: the validation score that chooses a checkpoint, and the test score that is reported, with its paired test.

The test score is lm-eval's own: its HFLM over this very model, merged as `t2-expert` merges it, with `eval_batch_size`; so lm-eval
reproduces the recorded figure. A document for which the metric is no number (an empty answer, 0/0) counts as 0, and is named.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from t2eval.environment.environment import Environment, Example
from t2eval.environment.harness import evaluate_task
from t2eval.expert.card import Score
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.stats.means import mean_stderr
from t2eval.stats.paired import sign_test
from t2eval.training.config import TrainConfig
from t2eval.training.record import Comparison
from t2eval.training.trainable import Trainable
from t2eval.vision.features import Reader


def summarise(outcomes: Sequence[float]) -> Score:
    """Mean and standard error (sample deviation over √n, as lm-eval's) of per-example outcomes; what is no number counts as 0."""
    mean, stderr = mean_stderr([number(value) for value in outcomes])
    return Score(score=mean, stderr=stderr, n=len(outcomes))


def number(value: float) -> float:
    """An outcome, 0 where it is no finite number."""
    return value if math.isfinite(value) else 0.0


def nan_message(environment: Environment, examples: Sequence[Example], outcomes: Sequence[float]) -> str | None:
    """Which documents have no number for an outcome, in a sentence; None where all have.

    Args:
        environment: of the examples.
        examples, outcomes: in the same order.
    """
    wrong = [(example, value) for example, value in zip(examples, outcomes, strict=True) if not math.isfinite(value)]
    if not wrong:
        return None
    example, value = wrong[0]
    more = f" (and of {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return (
        f"The metric {environment.metric} of document {example.index} of split {example.split!r} of task {environment.name!r}{more} is "
        f"{value}: it counts as 0, a wrong answer. Mend the task's metric so that every answer has a number."
    )


def answer_settings(environment: Environment) -> GenerationSettings | None:
    """How a task's answers are generated, as lm-eval reads it from the task; None for a task with choices."""
    if environment.kind == "choice":
        return None
    settings = GenerationSettings.from_gen_kwargs(environment.generation_kwargs, environment.max_new_tokens)
    return replace(settings, max_new_tokens=environment.max_new_tokens)


def refuse_no_room(model: Any, tokenizer: Any, environment: Environment) -> None:
    """Refuse a task whose answers may be as long as the model's longest sequence, before anything is computed.

    Raises:
        T2Error: no room would be left for a prompt.
    """
    settings = answer_settings(environment)
    if settings is not None:
        Engine(model, tokenizer, batch_size=1).fit([], settings)


class Validator:
    """Scores examples with the model as trained so far.

    Args:
        trainable, environment, tokenizer: the run's.
        config: its `eval_batch_size` and `seed` (of tasks whose answers are drawn).
        reader: for a task with images.
    """

    def __init__(
        self, trainable: Trainable, environment: Environment, tokenizer: Any, config: TrainConfig, reader: Reader | None = None
    ) -> None:
        self._trainable, self._environment, self._reader, self._seed = trainable, environment, reader, config.seed
        self._engine = Engine(trainable.model, tokenizer, batch_size=config.eval_batch_size, reader=reader)
        self._settings = answer_settings(environment)

    def outcomes(self, examples: Sequence[Example]) -> list[float]:
        """The main metric of each example, answered as lm-eval would have it answered (or by the likeliest choice)."""
        if not examples:
            return []
        self._trainable.eval_mode()
        with self._trainable.fast():
            if self._settings is None:
                return self._chosen(examples)
            prompts, features = self._read(examples)
            completions = self._engine.complete(prompts, self._settings, seed=self._seed, features=features)
        return self._environment.score_many([(example, each.text) for example, each in zip(examples, completions, strict=True)])

    def _read(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[Any]]:
        """Each prompt's token ids, and the features of its images."""
        if self._reader is None:
            return [self._engine.encode(example.prompt) for example in examples], [None] * len(examples)
        read = [
            self._reader.read(example.prompt, partial(self._environment.images_of, example), (example.split, example.index))
            for example in examples
        ]
        return [ids for ids, _ in read], [features for _, features in read]

    def _chosen(self, examples: Sequence[Example]) -> list[float]:
        contexts: list[list[int]] = []
        continuations: list[list[list[int]]] = []
        asked: list[tuple[int, int]] = []  # of each request: its prompt's place, and its own among the prompt's continuations
        for example in examples:
            places: dict[tuple[int, ...], int] = {}
            for request in example.requests:
                context, continuation = self._engine.encode_pair(*request)
                if (place := places.get(tuple(context))) is None:
                    place = places[tuple(context)] = len(contexts)
                    contexts.append(context)
                    continuations.append([])
                asked.append((place, len(continuations[place])))
                continuations[place].append(continuation)
        found = self._engine.loglikelihoods(contexts, continuations)
        told = iter(found[place][number] for place, number in asked)
        scores = []
        for example in examples:
            own = [next(told) for _ in example.requests]
            scores.append(self._environment.score_choice(example, [each.value for each in own], [each.greedy for each in own]))
        return scores


def validate(
    trainable: Trainable,
    environment: Environment,
    tokenizer: Any,
    examples: Sequence[Example],
    config: TrainConfig,
    reader: Reader | None = None,
) -> list[float]:
    """`Validator.outcomes` of some examples, once."""
    return Validator(trainable, environment, tokenizer, config, reader).outcomes(examples)


@dataclass(frozen=True)
class TestScore:
    """What lm-eval reports for the test split, each document's outcome by its index, and which were no numbers, in a sentence."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    score: Score
    outcomes: dict[int, float]
    remark: str | None = None


def score_test(trainable: Trainable, environment: Environment, tokenizer: Any, config: TrainConfig, *, base: bool) -> TestScore:
    """The test split's score by lm-eval.

    Args:
        trainable, environment, tokenizer (or processor), config: the run's.
        base: of the base model instead of the trained one.
    """
    from t2eval.environment.plain import plain_model

    trainable.eval_mode()
    with trainable.base() if base else trainable.fast(), _quiet():
        lm = plain_model(trainable.model, tokenizer, batch_size=config.eval_batch_size)
        results = evaluate_task(
            lm,
            environment.task,
            environment.manager,
            num_fewshot=config.num_fewshot,
            limit=config.test_limit,
            apply_chat_template=config.apply_chat_template,
            confirm_run_unsafe_code=True,  # Environment has refused every task that does not use the sandbox
        )
    row, samples = results["results"][environment.name], results["samples"][environment.name]
    kept = [sample for sample in samples if sample["filter"] == environment.filter]
    raw = {int(sample["doc_id"]): environment.value({key: sample[key] for key in sample["metrics"]}) for sample in kept}
    outcomes = {key: number(value) for key, value in raw.items()}
    stderr = row.get(f"{environment.metric}_stderr,{environment.filter}")
    score = row.get(f"{environment.metric},{environment.filter}")
    if isinstance(score, (int, float)) and math.isfinite(score):
        error = float(stderr) if isinstance(stderr, (int, float)) else None
        return TestScore(Score(score=float(score), stderr=error, n=len(outcomes)), outcomes)
    return TestScore(summarise(list(outcomes.values())), outcomes, _test_remark(environment, raw))


def _test_remark(environment: Environment, raw: dict[int, float]) -> str | None:
    wrong = sorted(key for key, value in raw.items() if not math.isfinite(value))
    if not wrong:
        return None
    return (
        f"The metric {environment.metric} of {len(wrong)} of {len(raw)} test documents of task {environment.name!r}, the first {wrong[0]}, "
        f"is {raw[wrong[0]]}: they count as 0 here, and lm-eval's own mean is no number. Mend the task's metric."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def paired_test(before: dict[int, float], after: dict[int, float]) -> Comparison:
    """The exact sign test on paired outcomes; for outcomes of 0 and 1 it is McNemar's exact test.

    Args:
        before, after: outcome by document index; the documents that both have are compared.
    """
    both = sorted(before.keys() & after.keys())
    gained = sum(after[key] > before[key] for key in both)
    lost = sum(after[key] < before[key] for key in both)
    return Comparison(n=len(both), gained=gained, lost=lost, p_value=sign_test(gained, lost))
