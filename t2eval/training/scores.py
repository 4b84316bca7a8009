"""Scores: the validation score that chooses a checkpoint, and the test score that is reported, with its paired test.

The test score is lm-eval's own: its HFLM over this very model, merged as `t2-expert` merges it, with `eval_batch_size`; so lm-eval
reproduces the recorded figure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from t2eval.environment.environment import Environment, Example
from t2eval.environment.harness import evaluate_task
from t2eval.expert.card import Score
from t2eval.generation.rollouts import Sampler, choice_likelihoods, read_prompts
from t2eval.stats.means import mean_stderr
from t2eval.stats.paired import sign_test
from t2eval.training.config import TrainConfig
from t2eval.training.methods import Trainable
from t2eval.vision.features import Reader


def summarise(outcomes: Sequence[float]) -> Score:
    """Mean and standard error of per-example outcomes."""
    mean, stderr = mean_stderr(outcomes)
    return Score(score=mean, stderr=stderr, n=len(outcomes))


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


def validate(
    trainable: Trainable,
    environment: Environment,
    tokenizer: Any,
    examples: Sequence[Example],
    config: TrainConfig,
    reader: Reader | None = None,
) -> list[float]:
    """The main metric of each example, answered greedily (or by the likeliest choice) by the model as trained so far.

    Args:
        trainable, environment, tokenizer: the run's.
        examples: the validation examples.
        config: its `eval_batch_size`.
        reader: for a task with images.
    """
    trainable.eval_mode()
    with trainable.fast():
        if environment.kind == "choice":
            found = choice_likelihoods(trainable.model, tokenizer, examples, device=trainable.device, batch_size=config.eval_batch_size)
            return [
                environment.score_choice(example, [value for value, _ in row], [flag for _, flag in row])
                for example, row in zip(examples, found, strict=True)
            ]
        sampler = Sampler(trainable.model, tokenizer, environment.until, environment.max_new_tokens)
        prompts, images = read_prompts(environment, tokenizer, examples, reader)
        rollouts = sampler.generate(prompts, batch_size=config.eval_batch_size, images=images)
    return environment.score_many([(example, rollout.text) for example, rollout in zip(examples, rollouts, strict=True)])


@dataclass(frozen=True)
class TestScore:
    """What lm-eval reports for the test split, and each document's outcome by its index."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    score: Score
    outcomes: dict[int, float]


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
    outcomes = {int(sample["doc_id"]): environment.value({key: sample[key] for key in sample["metrics"]}) for sample in kept}
    key = f"{environment.metric},{environment.filter}"
    stderr = row.get(f"{environment.metric}_stderr,{environment.filter}")
    score = float(row[key]) if key in row else summarise(list(outcomes.values())).score
    return TestScore(Score(score=score, stderr=float(stderr) if isinstance(stderr, (int, float)) else None, n=len(outcomes)), outcomes)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def paired_test(before: dict[int, float], after: dict[int, float]) -> dict[str, float | int]:
    """The exact sign test on paired outcomes; for outcomes of 0 and 1 it is McNemar's exact test.

    Args:
        before, after: outcome by document index; the documents that both have are compared.

    Returns:
        `n`, `gained` and `lost` (documents that got better and worse), and the two-sided `p_value`.
    """
    both = sorted(before.keys() & after.keys())
    gained = sum(after[key] > before[key] for key in both)
    lost = sum(after[key] < before[key] for key in both)
    return {"n": len(both), "gained": gained, "lost": lost, "p_value": sign_test(gained, lost)}
