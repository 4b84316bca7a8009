"""Loading: one lm-eval task by name, with errors that a user can act on.

What must be refused is refused before the task's own code is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from t2eval.environment import harness
from t2eval.errors import T2Error, UsageError, did_you_mean, listed, near_matches, unknown
from t2eval.paths import tasks_dir


@lru_cache(maxsize=8)
def _task_manager(include: tuple[str, ...], defaults: bool) -> Any:
    return harness.open_index([str(tasks_dir()), *include], defaults=defaults)


def make_task_manager(include_path: str | Path | Sequence[str | Path] | None = None, *, task: str | None = None) -> Any:
    """lm-eval's TaskManager over its own tasks, t2eval's, and those under `include_path`; scanned once a process.

    Reading lm-eval's ten thousand YAML files takes seconds, so they are left out where `task` is found without them.

    Args:
        include_path: a folder of task YAMLs, or several.
        task: the only task that will be asked for.

    Returns:
        An `lm_eval.tasks.TaskManager`.

    Raises:
        UsageError: `include_path` is not a folder.
    """
    paths = [] if include_path is None else [include_path] if isinstance(include_path, (str, Path)) else list(include_path)
    for path in paths:
        if not Path(path).is_dir():
            raise UsageError(f"include_path {str(path)!r} is not a folder. Give the folder that holds the task's YAML file.")
    include = tuple(str(Path(path).resolve()) for path in paths)
    if task is not None and task in (few := _task_manager(include, False)).all_subtasks:
        return few
    return _task_manager(include, True)


def refuse_unreadable(include_path: str | Path | None) -> None:
    """Refuse a folder with a task file that does not parse: lm-eval passes over it, so that its task seems not to exist.

    Raises:
        T2Error: with the file and the place in it.
    """
    if include_path is None:
        return
    for file in sorted(Path(include_path).rglob("*.yaml")):
        remedy = "Mend it: lm-eval passes over it, and its task is missing."
        try:
            harness.read_config(file)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f", line {mark.line + 1}," if mark is not None else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise T2Error(f"The task file {file}{place} is not YAML: {problem}. {remedy}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise T2Error(f"The task file {file} cannot be read: {error}. {remedy}") from error


def checked_config(manager: Any, name: str) -> dict[str, Any]:
    """The task's raw YAML, after the checks that must come before its code is imported.

    Raises:
        UsageError: no such task, or a group of tasks.
        T2Error: its programs would run unprotected.
    """
    if not harness.is_known(manager, name):
        raise unknown("task", name, manager.all_subtasks)
    if name not in set(manager.all_subtasks):
        tasks = harness.members(manager, name) or ["see `lm_eval ls groups`"]
        raise UsageError(f"{name!r} is a group of tasks, and one task is needed. Its tasks: {', '.join(tasks[:20])}.")
    config = harness.raw_config(manager, name)
    t2 = (config.get("metadata") or {}).get("t2") or {}
    if config.get("unsafe_code") and not (is_ours(manager, name) or t2.get("sandbox")):
        refuse_unprotected(name)
    return config


def is_ours(manager: Any, name: str) -> bool:
    """Whether a task is one of t2eval's own."""
    path = harness.yaml_path(manager, name)
    return path is not None and path.resolve().is_relative_to(tasks_dir().resolve())


def refuse_unprotected(name: str) -> NoReturn:
    """Refuse a task whose metric runs model-written programs outside of the sandbox.

    Raises:
        T2Error: always.
    """
    hint = " Use t2_humaneval, the same problems." if name.startswith("humaneval") else ""
    raise T2Error(
        f"Task {name!r} runs model-written programs without protection (its own metric executes them in this machine's Python). "
        f"t2eval runs programs only in its sandbox.{hint} A task of your own that grades with t2eval.sandbox says so with "
        "`metadata: {t2: {sandbox: true}}`."
    )


def task_has_images(name: str, include_path: str | Path | Sequence[str | Path] | None = None) -> bool:
    """Whether a task's documents have images, without loading its data.

    Raises:
        UsageError, T2Error: as `checked_config`.
    """
    return checked_config(make_task_manager(include_path, task=name), name).get("doc_to_image") is not None


_NETWORK_PACKAGES = {"httpx", "httpx2", "httpcore", "huggingface_hub", "requests"}
_HUB_REMEDY = (
    "If the hub cannot be reached from here, load the task once where it can and copy the folder that HF_HOME names "
    "(then set HF_HUB_OFFLINE=1), or point the task's YAML at local files."
)


def load_task(manager: Any, name: str) -> Any:
    """lm-eval's task object.

    Raises:
        T2Error: its data cannot be had, or are not what its YAML says of them; it names the task's file, and the field or data file.
    """
    try:
        task = harness.load(manager, name)
    except T2Error:
        raise
    except Exception as error:  # a task's own code, jinja2, datasets and the hub's client raise dozens of types
        _refuse_unregistered(manager, name, error)
        raise T2Error(_explained(manager, name, error)) from error
    refuse_unknown_scoring(task, harness.yaml_path(manager, name))
    return task


def refuse_unknown_scoring(task: Any, path: Path | None = None) -> None:
    """Refuse a task with a metric or an aggregation that lm-eval does not know, before anything is generated for it.

    Args:
        task: lm-eval's task object.
        path: its YAML, where that is known.

    Raises:
        T2Error: with the name and those that are near it.
    """
    if (found := harness.unknown_scoring(task)) is not None:
        raise _no_such_scoring(str(task.config.task), path, *found)


def _refuse_unregistered(manager: Any, name: str, error: Exception) -> None:
    """The same where the task did not load by it, which says no more than `KeyError: None`."""
    config = harness.raw_config(manager, name)
    if not isinstance(error, (KeyError, TypeError, ValueError)) or config.get("process_results") or "class" in config:
        return
    known = harness.registered("metric")
    for entry in config.get("metric_list") or []:
        metric = entry.get("metric") if isinstance(entry, dict) else None
        if isinstance(metric, str) and "/" not in metric and metric not in known and not entry.get("hf_evaluate"):  # a path is a function
            raise _no_such_scoring(name, harness.yaml_path(manager, name), "metric", metric) from error


def _no_such_scoring(task: str, path: Path | None, kind: Literal["metric", "aggregation"], name: str) -> T2Error:
    known = harness.registered(kind)
    hint = did_you_mean(map(repr, near_matches(name, known)))
    where = f" ({path})" if path is not None else ""
    return T2Error(
        f"Task {task!r}{where} has the {kind} {name!r}, which lm-eval does not know.{hint} It knows {listed(known)}. Mend the "
        "YAML's metric_list, or give it a function of your own (`!function utils.score`)."
    )


def _explained(manager: Any, name: str, error: Exception) -> str:
    """What is wrong with a task that could not be loaded, in a user's words."""
    config = harness.raw_config(manager, name)
    where = harness.yaml_path(manager, name)
    task = f"task {name!r}" + (f" ({where})" if where is not None and not is_ours(manager, name) else "")
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    data = f" Its data files: {files}." if files else ""
    if type(error).__name__ == "UndefinedError":  # jinja2's: a template asks for what a document lacks
        return f"The templates of {task} use a field that its documents do not have: {error}. Mend the YAML's {{{{…}}}}, or the data."
    if isinstance(error, (StopIteration, IndexError)):
        return f"A split of {task} has no documents.{data} Give it some, or leave the split out of the YAML."
    cause: BaseException = error
    while cause.__cause__ is not None:  # datasets says only that something went wrong, and what did stands below
        cause = cause.__cause__
    first = str(cause).strip().splitlines()[0] if str(cause).strip() else "it says nothing"
    kind = f"{type(cause).__name__}: {first.rstrip('.')}"
    if isinstance(cause, UnicodeDecodeError):
        return f"The data of {task} are not in UTF-8 ({first}).{data} Save them in UTF-8."
    if files:
        return f"The data of {task} could not be loaded: {kind}.{data} Mend the file, or the YAML's data_files."
    # which HTTP client the hub's library raises from depends on its version: told by package, not by class
    packages = _NETWORK_PACKAGES | {"datasets"}
    if isinstance(error, (OSError, ValueError, EOFError)) or type(error).__module__.split(".")[0] in packages:
        return f"The data of task {name!r} could not be loaded: {kind} {_HUB_REMEDY}"
    return f"The {task} cannot be loaded: {kind}. Mend its YAML, or the Python beside it."
