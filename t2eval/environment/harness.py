"""Harness: what lm-eval does not promise, for the releases that t2eval works with.

lm-eval promises its command line, `simple_evaluate`, its model classes and the task YAMLs. Everything else that t2eval needs of it (the
task index, a task's filters and metrics, how requests are made, the table of the response cache) differs between releases, and stands
here and in `runs.py` only, once for each form that it has:

- 0.4.13: `TaskManager.task_index`, filters and metrics on the task, `Instance(metadata=(task, doc_id, repeats))`;
- 0.5 (pre-release): `_task_index`, *scorers* (a filter with its metrics) on the task, `Instance(task_name=…, doc_id=…)`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from t2eval.errors import T2Error

OLDEST, TOO_NEW = "0.4.13", "0.6"


@lru_cache(maxsize=1)
def check_version() -> Version:
    """lm-eval's version.

    Raises:
        T2Error: t2eval does not work with it.
    """
    try:
        found = Version(version("lm_eval"))
    except (PackageNotFoundError, InvalidVersion) as error:
        raise T2Error(f'lm-eval is not installed: {error}. Install it with `pip install "lm-eval>={OLDEST},<{TOO_NEW}"`.') from error
    if not Version(OLDEST) <= found < Version(f"{TOO_NEW}.dev0"):
        raise T2Error(
            f"lm-eval {found} is installed, and this t2eval works with {OLDEST} up to, but not with, {TOO_NEW}. "
            f'Install one of these with `pip install "lm-eval>={OLDEST},<{TOO_NEW}"`, or a t2eval that knows the newer one.'
        )
    return found


# ---------------------------------------------------------------------- the index of tasks
def open_index(include: Sequence[str], *, defaults: bool) -> Any:
    """lm-eval's TaskManager over some folders, without its warnings of tasks that it sees twice (the plug-in knows ours already)."""
    check_version()
    from lm_eval.tasks import TaskManager

    index_log = logging.getLogger("lm_eval.tasks._index")
    level = index_log.level
    index_log.setLevel(logging.ERROR)
    try:
        return TaskManager(include_path=list(include), include_defaults=defaults)
    finally:
        index_log.setLevel(level)


def _entry(manager: Any, name: str) -> Any:
    index = manager._task_index if hasattr(type(manager), "_task_index") else manager.task_index
    return index.get(name)


def is_known(manager: Any, name: str) -> bool:
    """Whether a TaskManager knows a task, group or tag."""
    return _entry(manager, name) is not None


def members(manager: Any, group: str) -> list[str]:
    """The tasks of a tag, or those that a group names; sorted. Empty where a group gives them inline."""
    entry = _entry(manager, group)
    named = [part if isinstance(part, str) else str(part.get("task")) for part in (entry.cfg or {}).get("task") or []] if entry else []
    index = manager._task_index if hasattr(type(manager), "_task_index") else manager.task_index
    return sorted({*named, *(entry.tags if entry and entry.yaml_path is None else ()), *(n for n, e in index.items() if group in e.tags)})


def yaml_path(manager: Any, name: str) -> Path | None:
    """Where a task's YAML lies; None for a task that has none."""
    entry = _entry(manager, name)
    return None if entry is None or entry.yaml_path is None else Path(entry.yaml_path)


def raw_config(manager: Any, name: str) -> dict[str, Any]:
    """A task's YAML with what it includes, and its functions left as text: nothing of the task's code is imported.

    Raises:
        T2Error: the file cannot be read.
    """
    entry = _entry(manager, name)
    if entry is None:
        return {}
    if entry.yaml_path is None:
        return dict(entry.cfg or {})
    return read_config(entry.yaml_path)


def read_config(path: str | Path) -> dict[str, Any]:
    """The YAML of one task or group, as `raw_config`.

    Raises:
        T2Error: the file cannot be read.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(Path(path), resolve_func=False, recursive=True))
    except OSError as error:
        raise T2Error(f"The task file {path} cannot be read: {error.strerror or error}.") from error


def load(manager: Any, name: str) -> Any:
    """lm-eval's task object of a name."""
    return next(iter(manager.load([name])["tasks"].values()))


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Inside, lm-eval compiles each prompt template once, not once a document: most of the time that prompts take."""
    from lm_eval import utils

    owner = getattr(utils, "env", None)
    if owner is None:  # 0.5
        from lm_eval.config import templates

        owner = templates._jinja_env()
    compiled = owner.from_string
    owner.from_string = lru_cache(maxsize=256)(compiled)
    try:
        yield
    finally:
        owner.from_string = compiled


# ---------------------------------------------------------------------- what a task scores by
def _scorers(task: Any) -> Any:
    """0.5's scorers; None in 0.4."""
    return getattr(task, "_scorers", None)


def metric_names(task: Any) -> list[str]:
    """The task's metrics in the order of its list (in 0.5: of its first scorer's). Empty where lm-eval was told to score nothing."""
    if (scorers := _scorers(task)) is not None:
        return [metric.name for metric in scorers[0].metrics or []]
    return list(task._metric_fn_list)


def registered(kind: Literal["metric", "aggregation", "model"]) -> list[str]:
    """lm-eval's metrics, aggregations or models, by name (the models with those of plug-ins)."""
    from lm_eval.api import registry

    importlib.import_module("lm_eval.models" if kind == "model" else "lm_eval.api.metrics")  # it fills the registry
    return sorted(getattr(registry, f"{kind}_registry").keys())


def unknown_scoring(task: Any) -> tuple[Literal["metric", "aggregation"], str] | None:
    """The first metric or aggregation of a task that is none; None where all are. lm-eval fails with them at the first score."""
    if (scorers := _scorers(task)) is not None:
        functions = {metric.name: getattr(metric.fn, "__name__", "") for metric in scorers[0].metrics or []}
        scored = task.config.process_results is not None or getattr(type(task).process_results, "__module__", "").split(".")[0] != "lm_eval"
        return next((("metric", name) for name, own in functions.items() if own == "_unregistered_metric_placeholder" and not scored), None)
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask):
        return None  # a class of the task's own scores as it likes
    own = task.config.process_results is not None or type(task).process_results is not ConfigurableTask.process_results
    for name, function in task._metric_fn_list.items():
        if function is None and not own:
            return "metric", str(name)
    told = {str(entry.get("metric")): str(entry.get("aggregation")) for entry in task.config.metric_list or []}
    for name, function in task._aggregation_list.items():
        if function is None and type(task).aggregation is ConfigurableTask.aggregation:
            return "aggregation", told.get(str(name), str(name))
    return None


def filter_name(task: Any) -> str:
    """The task's first filter pipeline."""
    scorers = _scorers(task)
    return str(scorers[0].name if scorers is not None else task._filters[0].name)


def set_only_filter(task: Any, apply: Callable[..., Any]) -> None:
    """Let one function of (answers of each document, documents) stand in for the task's filters; it gives each document's answers."""
    from lm_eval.filters import build_filter_ensemble

    ensemble = build_filter_ensemble("none", [("custom", {"filter_fn": apply})])
    if (scorers := _scorers(task)) is None:
        task._filters = [ensemble]
        return
    for scorer in scorers:
        scorer.filter = ensemble
        scorer.name = "none"


def as_filtered(answers: Sequence[str]) -> Any:
    """What a filter gives for one document: 0.4 takes one answer as it is, 0.5 always a list."""
    return answers[0] if len(answers) == 1 and check_version() < Version("0.5.dev0") else list(answers)


def answers_of(results: Sequence[Any]) -> list[str]:
    """The answers that `process_results` is handed for one document, in either form."""
    return [text for part in results for text in ([part] if isinstance(part, str) else part)]


def multiple_input(task: Any) -> bool:
    """Whether a choice task's choices are contexts."""
    return bool(getattr(task, "multiple_input", getattr(task, "_multiple_inputs", False)))


def gold_choice(task: Any, doc: Mapping[str, Any]) -> Any:
    """What says which choice is right: its index, its text, or a list of them."""
    contexts = multiple_input(task) and _scorers(task) is None  # 0.4: where the choices are contexts, the text is the right one's index
    return task.doc_to_text(doc) if contexts else task.doc_to_target(doc)


def fewshot_split(task: Any) -> str | None:
    """Where a task's worked examples come from, if one split is named."""
    split = getattr(task, "fewshot_cfg" if hasattr(task, "fewshot_cfg") else "_fewshot_cfg").split
    return None if split is None else str(split)


def answer_prefix(task: Any, doc: Mapping[str, Any]) -> str | None:
    """What every answer of a task begins with (`gen_prefix`)."""
    known = hasattr(task, "doc_to_prefix")
    found = task.doc_to_prefix(doc) if known else task._resolve_field(doc, task.config.gen_prefix)
    return None if found is None else str(found)


def generation_settings(given: Mapping[str, Any], new_tokens: int = 256) -> dict[str, Any]:
    """`generation_kwargs` as lm-eval's models read them: one name for the limit of new tokens (`max_gen_toks`), `until`, `do_sample`."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return dict(normalize_gen_kwargs(dict(given), new_tokens))


def read_argument(text: str) -> Any:
    """What lm-eval makes of one value of `--model_args`: a number or truth value, where it looks like one."""
    from lm_eval.utils import handle_arg_string

    return handle_arg_string(text)


# ---------------------------------------------------------------------- requests and their scores
def make_request(task: Any, kind: str, doc: Any, arguments: tuple[Any, ...], doc_id: int) -> Any:
    """A request of a task as lm-eval makes it."""
    from lm_eval.api.instance import Instance

    name = str(task.config.task)
    if _scorers(task) is None:
        return Instance(kind, doc=doc, arguments=arguments, idx=0, metadata=(name, doc_id, 1))
    metadata = {"metric_kwargs": {"multiple_targets": True}} if task._multiple_targets else {}
    return Instance(kind, doc=doc, arguments=arguments, task_name=name, doc_id=doc_id, target=task.doc_to_target(doc), metadata=metadata)


def choice_requests(task: Any, doc: Any, context: str | list[str], index: int, *, chat: bool) -> list[Any]:
    """The requests of one choice question, in order; for mutual information the unconditional ones follow."""
    about: dict[str, Any] = {"metadata": (str(task.config.task), index, 1)} if _scorers(task) is None else {"doc_id": index}
    return list(task.construct_requests(doc, context, apply_chat_template=chat, chat_template=None, **about))


def renumbers_samples() -> bool:
    """Whether the documents that `--samples` chooses are numbered anew in their requests."""
    return check_version() < Version("0.5.dev0")


def request_text(request: Any) -> str:
    """The text that a request is about: its context, or for a rolling likelihood the whole text."""
    texts = [part for part in request.args[:2] if isinstance(part, str)]
    return str(next((text for text in texts if text), "")) if request.request_type == "loglikelihood_rolling" else str(request.args[0])


def request_images(request: Any) -> list[Any] | None:
    """The PIL images of a request, or None where it has none."""
    extra = request.args[2] if len(request.args) > 2 else getattr(request, "additional_args", None)
    return list(extra["visual"]) if extra else None


def score_answers(task: Any, answers: Sequence[tuple[Any, str, str]], *, parallel: bool) -> list[dict[str, Any]]:
    """What a task makes of generated answers: its first filter over all of them, then its metrics, document by document.

    Args:
        task: lm-eval's task object.
        answers: (document, prompt, answer); a document may come several times. Where the task asks several times (`repeats`), every
            repeat gave this answer.
        parallel: score several at a time: for metrics that run programs.

    Returns:
        Metric → value, one mapping an answer.
    """
    repeats = max(1, int(task.config.repeats or 1))
    requests = [make_request(task, "generate_until", doc, (prompt, {}), row) for row, (doc, prompt, _) in enumerate(answers)]
    for request, (_, _, text) in zip(requests, answers, strict=True):
        request.resps = [text] * repeats
    scorers = _scorers(task)
    if scorers is None:
        task._filters[0].apply(requests)
        name = task._filters[0].name

        def one(request: Any) -> dict[str, Any]:
            return dict(task.process_results(request.doc, [request.filtered_resps[name]]))
    else:
        scorers[0].apply_filter(requests)

        def one(request: Any) -> dict[str, Any]:
            return _scored(task, [request])

    if parallel and len(requests) > 1:
        with ThreadPoolExecutor(max_workers=min(len(requests), os.cpu_count() or 1)) as pool:
            return list(pool.map(one, requests))
    return [one(request) for request in requests]


def score_choices(task: Any, doc: Any, context: str | list[str], results: Sequence[tuple[float, bool]], *, chat: bool) -> dict[str, Any]:
    """What a task makes of the (log-likelihood, greedy) of each of a choice question's requests: metric → value."""
    scorers = _scorers(task)
    if scorers is None:
        return dict(task.process_results(doc, list(results)))
    requests = choice_requests(task, doc, context, 0, chat=chat)
    for request, result in zip(requests, results, strict=True):
        request.resps = [result]
    scorers[0].apply_filter(requests)
    return _scored(task, requests)


def _scored(task: Any, requests: list[Any]) -> dict[str, Any]:
    """0.5: one document's requests, filtered, through the task's own `process_results` or its first scorer."""
    scorer, document = task._scorers[0], requests[0].doc_id
    by_document = {document: requests}
    scored = task._try_process_results(by_document, scorer.name)
    return dict(scorer.reduce(scored if scored is not None else scorer.score_instances(by_document))[document])


# ---------------------------------------------------------------------- evaluations
class _Loaded:
    """Stands in for a TaskManager where lm-eval takes no task objects any more (0.5)."""

    def __init__(self, task: Any) -> None:
        self._tasks = {str(task.config.task): task}

    def load(self, _specs: Any) -> dict[str, Any]:
        return {"tasks": self._tasks, "groups": {}, "group_map": {}}


def evaluate_task(model: Any, task: Any, manager: Any, **settings: Any) -> dict[str, Any]:
    """lm-eval's `simple_evaluate` of one task object that is loaded already."""
    from lm_eval import simple_evaluate

    taken = manager if _scorers(task) is None else _Loaded(task)
    found: Any = simple_evaluate(model=model, tasks=[task], task_manager=taken, **settings)
    return dict(found)


def running_evaluation() -> Mapping[str, Any] | None:
    """The arguments of the `simple_evaluate` that is making a model right now, None where none is: it makes the model before it loads
    the tasks, and does not tell the model which they are."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "simple_evaluate" and frame.f_globals.get("__name__") == "lm_eval.evaluator":
            return dict(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def asked_output_types(tasks: Sequence[Any], manager: Any) -> dict[str, str]:
    """Task → output type, for what `simple_evaluate` was asked: names, groups, tags, paths, mappings or task objects. What cannot be told
    without loading a task is left out."""
    found: dict[str, str] = {}
    for spec in tasks:
        if not isinstance(spec, (str, Mapping)):
            if hasattr(spec, "OUTPUT_TYPE"):
                found[str(spec.config.task)] = str(spec.OUTPUT_TYPE)
            continue
        name = spec if isinstance(spec, str) else str(spec.get("task") or spec.get("group"))
        own = {} if isinstance(spec, str) else dict(spec)
        if isinstance(own.get("task"), list):
            found |= asked_output_types(own["task"], manager)
        elif is_known(manager, name):
            config = {**raw_config(manager, name), **own}
            inner = config["task"] if isinstance(config.get("task"), list) else members(manager, name)
            if "group" in config or not config:
                found |= asked_output_types([part for part in inner if part != name], manager)
            elif "class" not in config:
                found[name] = str(config.get("output_type", "generate_until"))
        elif Path(name).is_file():
            config = read_config(name)
            if isinstance(config.get("task"), list):
                found |= asked_output_types(config["task"], manager)
            else:
                found[str(config.get("task", name))] = str(config.get("output_type", "generate_until"))
        elif own:
            found[name] = str(own.get("output_type", "generate_until"))
    return found
