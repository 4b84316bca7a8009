"""Evaluation results: an expert's test score as the hub reads it, in `.eval_results/NAME.yaml` beside the model card.

The hub shows such a score on the leaderboard of the data set that it is of. A data set that has a leaderboard says so by an `eval.yaml`,
whose tasks have ids of their own: the task of the same configuration and split is the one that the score is of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from t2eval.basemodel.hub_errors import answer_of, one_line
from t2eval.basemodel.probe import HubData
from t2eval.errors import T2Error
from t2eval.expert.card import ExpertCard
from t2eval.expert.hub import api
from t2eval.store.files import read_yaml

FOLDER = ".eval_results"
_BENCHMARK = "eval.yaml"
_UNNAMED = (None, "default", "main")
"""What the configuration of a data set that has only one may be called."""


class NoBenchmark(T2Error):
    """A data set has no leaderboard that a score could be shown on; the message says why."""


def eval_results(card: ExpertCard, data: HubData, task_id: str, split: str) -> str:
    """The YAML of an expert's score on a data set's test split.

    Args:
        card: with a test score after training.
        data: the data set.
        task_id: as its `eval.yaml` has it.
        split: of the data set.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    training = card.training
    assert training is not None
    score = training.scores["after"]["test"]
    error = "" if score.stderr is None else f", standard error {score.stderr:.4f}"
    notes = (
        f"t2eval expert {card.name} ({training.method}, {training.objective}) on {card.base_model.id}; task {training.task}, "
        f"{training.metric or 'score'} on {score.n} examples of {split}{error}"
    )
    entry = EvalResultEntry(dataset_id=data.name, task_id=task_id, value=score.score, notes=notes)
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=1000)


def has_test_score(card: ExpertCard) -> bool:
    """Whether a card says how the expert did on its task's test split."""
    return card.training is not None and "test" in card.training.scores.get("after", {})


def test_split(card: ExpertCard) -> str:
    """The split of the data set that the test score is of; `test` where the card does not say."""
    stated = (card.training.splits if card.training else {}).get("test")
    source = stated.get("source") if isinstance(stated, Mapping) else stated
    return str(source).partition("[")[0] if source else "test"


def benchmark_task(data: HubData, split: str) -> str:
    """The id of a data set's task, as the hub's leaderboard of that data set knows it.

    Raises:
        NoBenchmark: the data set has no leaderboard, or none of this configuration and split, or the hub does not say.
    """
    from huggingface_hub.errors import EntryNotFoundError

    try:
        file = api().hf_hub_download(data.name, _BENCHMARK, repo_type="dataset")
    except EntryNotFoundError:
        raise NoBenchmark(f"{data.name} is no benchmark of the hub (it has no {_BENCHMARK})") from None
    except Exception as error:
        if answer_of(error) is None:
            raise
        raise NoBenchmark(f"the hub does not say whether {data.name} is a benchmark: {one_line(error)}") from error
    return task_in(Path(file), data, split)


def task_in(file: Path, data: HubData, split: str) -> str:
    """The id of the one task of a configuration and split in an `eval.yaml`.

    Raises:
        NoBenchmark: there is none, there are several, or the file is damaged.
    """
    try:
        tasks = read_yaml(file, what=f"{_BENCHMARK} of {data.name}")["tasks"]
        fitting = [task for task in tasks if _same_config(task, data) and task.get("split", split) == split]
        (found,) = {str(task["id"]) for task in fitting}
    except (T2Error, KeyError, TypeError, AttributeError, ValueError):
        raise NoBenchmark(f"the {_BENCHMARK} of {data.name} has no single task of configuration {data.config} and split {split}") from None
    return found


def _same_config(task: Mapping[str, Any], data: HubData) -> bool:
    config = task.get("config")
    return config == data.config or (config in _UNNAMED and data.config in _UNNAMED)


def not_shown(reasons: Sequence[str]) -> str:
    """One line about the scores that were left out."""
    return f"No entry in {FOLDER} for {'; '.join(reasons)}. The scores are in the model cards."
