"""Training prompts: writes the vectors of an expert's training prompts beside it (`prompts.safetensors`), for `t2-nearest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2eval.basemodel.load import base_identity, load_base
from t2eval.environment.documents import question_of
from t2eval.environment.environment import Environment
from t2eval.errors import T2Error, UsageError
from t2eval.expert.adapter import Adapter
from t2eval.expert.expert import Expert
from t2eval.expert.library import load_any
from t2eval.expert.prompts import PROBES, PromptVectors
from t2eval.generation.engine import Engine
from t2eval.generation.vectors import prompt_vectors
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.vision.images import text_tokenizer

_BATCH = 32


@dataclass(frozen=True)
class Written:
    """What was written for one expert: where, of which task, and how many prompts."""

    name: str
    path: Path
    task: str
    prompts: int


def write_prompt_vectors(
    library: str | Path | Sequence[str | Path],
    *,
    task: str | None = None,
    model: str | None = None,
    include_path: str | Path | None = None,
    limit: int = 128,
) -> list[Written]:
    """Write `prompts.safetensors` beside each expert or adapter of a library; the classification expert needs none.

    Args:
        library: directories of experts, or expert and adapter directories.
        task: that they were trained on; None: as their cards say. An adapter has no such card.
        model: the base model, if not under the name on the cards.
        include_path: a folder of task YAMLs.
        limit: at most so many prompts of each, a seeded sample.

    Raises:
        UsageError: no task is known, or several base models are named.
        T2Error: the task has no training split, the base cannot be loaded, or a folder cannot be written.
    """
    experts = [each for each in load_any(library) if each.label != DISPATCH_LABEL]
    if not experts:
        raise UsageError(f"{library} holds the classification expert alone, which no question is sent to.")
    tasks = {each.name: task or _task_of(each) for each in experts}
    base = model or _base_of(experts)
    loaded, reader = load_base(base)
    engine = Engine(loaded, text_tokenizer(reader), batch_size=_BATCH)
    identity = str(base_identity(loaded)["id"])
    identity = Path(identity).name if Path(identity).is_dir() else identity  # for messages: this machine's folders mean nothing elsewhere
    probes = prompt_vectors(engine, PROBES)
    of = {name: training_questions(Environment(name, include_path=include_path), limit) for name in dict.fromkeys(tasks.values())}
    vectors = {name: PromptVectors(prompt_vectors(engine, texts), probes, name, identity) for name, texts in of.items()}
    return [
        Written(each.name, vectors[tasks[each.name]].save(_folder(each)), tasks[each.name], len(vectors[tasks[each.name]].vectors))
        for each in experts
    ]


def training_questions(environment: Environment, limit: int) -> list[str]:
    """What training documents of a task ask, as a strategy will ask it: without worked examples.

    Raises:
        T2Error: the task has no training split, or its documents ask nothing in words.
    """
    asked = [question_of(environment.task, example.doc) for example in environment.examples("train", limit=limit)]
    if not any(asked):
        raise T2Error(f"The training documents of task {environment.name!r} ask nothing in words: its expert cannot be found by prompts.")
    return [text for text in asked if text]


def _task_of(expert: Expert | Adapter) -> str:
    training = expert.card.training if isinstance(expert, Expert) else None
    if training is None:
        raise UsageError(f"Expert {expert.name!r} does not say which task it was trained on: give it alone, with --task TASK.")
    return training.task


def _base_of(experts: Sequence[Expert | Adapter]) -> str:
    named = sorted({str(each.card.base_model.id if isinstance(each, Expert) else each.base) for each in experts} - {"None"})
    if len(named) != 1:
        raise UsageError(f"The experts name {'several base models: ' + ', '.join(named) if named else 'no base model'}. Give --model.")
    return named[0]


def _folder(expert: Expert | Adapter) -> Path:
    assert expert.folder is not None  # it was loaded from one
    return expert.folder
