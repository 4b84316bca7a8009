"""Questions: the text of a request's document without its few-shot examples, and what a task's YAML says about its skill."""

from __future__ import annotations

import logging
from typing import Any

from t2eval.environment.documents import question_of
from t2eval.environment.environment import make_task_manager
from t2eval.errors import T2Error
from t2eval.vision.images import PLACEHOLDER, images_of_request

_log = logging.getLogger(__name__)


class Questions:
    """Looks tasks up by name, lazily, and each once.

    Args:
        include_path: further folders of task YAMLs.
        plain: whether a document's own `question` field is the question (the format of the embedded tasks); otherwise it is what
            the task asks, with the choices that it shows.
    """

    def __init__(self, include_path: str | None, *, plain: bool) -> None:
        self._include_path, self._plain = include_path, plain
        self._tasks: dict[str, Any] = {}

    def text(self, request: Any) -> str:
        """The question of an lm-eval request, without the places of its images."""
        text = self._text(request)
        return text if images_of_request(request) is None else text.replace(PLACEHOLDER, "").strip()

    def _text(self, request: Any) -> str:
        doc = request.doc if isinstance(request.doc, dict) else {}
        if self._plain and isinstance(doc.get("question"), str):
            return str(doc["question"]).strip()
        task = self._task(str(request.task_name))
        if task is not None and (text := question_of(task, doc)):
            return text
        if isinstance(doc.get("question"), str):
            return str(doc["question"]).strip()
        blocks = [block for block in str(request.args[0]).split("\n\n") if block.strip()]
        return blocks[-1].strip() if blocks else ""

    def _task(self, name: str) -> Any:
        if name not in self._tasks:
            manager = make_task_manager(self._include_path, task=name)
            try:
                self._tasks[name] = manager.load([name])["tasks"].get(name) if name in manager.task_index else None
            except (OSError, ValueError, KeyError) as error:
                _log.warning("Task %s cannot be loaded by name (%s): dispatch reads the last block of each prompt instead.", name, error)
                self._tasks[name] = None
        return self._tasks[name]


def skill_label(task: str, include_path: str | None) -> str | None:
    """The skill that a task's YAML names under `metadata: {t2: {label: …}}`, or None."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = make_task_manager(include_path, task=task).task_index.get(task)
    if entry is None or entry.yaml_path is None:
        return None
    try:
        config = load_yaml(entry.yaml_path, resolve_func=False, recursive=True)
    except OSError as error:
        raise T2Error(f"The YAML of task {task!r} cannot be read: {error}") from error
    metadata = config.get("metadata")
    label = (metadata.get("t2") or {}).get("label") if isinstance(metadata, dict) else None
    return str(label) if label is not None else None
