"""Runs: what lm-eval is evaluating, each task object with the arguments that its requests were built with.

lm-eval hands a model its requests and nothing else. A strategy needs more: the task's adaptation examples, the question behind a prompt,
and the flags that prompts are built under. `record` therefore notes, each time that lm-eval builds a task's requests, the task object and
the arguments, and leaves the note on the requests; `run_of` reads it there. Nothing is looked up by name, so that it does not matter where
a task came from: a name, a path, a group that changes it, `--config`, or Python.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2eval.environment import harness
from t2eval.environment.documents import question_of
from t2eval.environment.quiet import quiet_git
from t2eval.paths import tasks_dir


@dataclass(frozen=True)
class Prompting:
    """How documents become prompts: what `lm_eval` has flags for.

    Attributes:
        num_fewshot: worked examples in each prompt.
        chat: renders a chat, (messages, add_generation_prompt=…) → text; None where prompts are plain text.
        system_instruction: stands before the task's description.
        multiturn: worked examples are turns of a chat, and not all in one.
    """

    num_fewshot: int = 0
    chat: Callable[..., str] | None = None
    system_instruction: str | None = None
    multiturn: bool = True


@dataclass(eq=False)
class Run:
    """One task of one evaluation.

    Attributes:
        task: lm-eval's own task object.
        arguments: those of `build_all_requests`, without the chat template.
        number: runs are numbered as their requests are built.
        sampling: the state of the sampler of worked examples before the first request was built; None where it draws none.
        chat_template: renders a chat as the model evaluated does; None where prompts are plain.
    """

    task: Any
    arguments: Mapping[str, Any]
    number: int
    sampling: Any = None
    _chat: Callable[[], Any] = field(default=lambda: None, repr=False)
    _questions: dict[int, str] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> Any:
        return (_forgotten, ())  # requests are pickled into lm-eval's cache of requests, and this note is of one process

    @property
    def name(self) -> str:
        return str(self.task.config.task)

    @property
    def chat_template(self) -> Any:
        return self._chat() if self.arguments.get("apply_chat_template") else None

    @property
    def t2(self) -> dict[str, Any]:
        """The task's `metadata: {t2: …}`."""
        return own_metadata(self.task)

    @property
    def num_fewshot(self) -> int:
        return int(self.task.config.num_fewshot or 0)

    def prompting(self) -> Prompting:
        """How lm-eval makes prompts of this run's documents."""
        told = self.arguments
        return Prompting(
            self.num_fewshot, self.chat_template, told.get("system_instruction"), multiturn=bool(told.get("fewshot_as_multiturn"))
        )

    @property
    def requests(self) -> list[Any]:
        """The requests of this process's documents."""
        return [request for request in self.task.instances or [] if run_of(request) is self]

    @property
    def kind(self) -> str:
        """The task's output type."""
        return str(self.task.OUTPUT_TYPE)

    def question(self, request: Any) -> str:
        """What a request's document asks (`question_of`): rendered once, however many choices and passes ask for it."""
        if request.doc_id not in self._questions:
            self._questions[request.doc_id] = question_of(self.task, request.doc)
        return self._questions[request.doc_id]

    def order(self) -> list[int]:
        """The scored split's documents, as lm-eval goes through them: all, or those that it was told (`--samples`)."""
        chosen = self.arguments.get("samples")
        return sorted(set(chosen)) if chosen else list(range(len(self.task.eval_docs)))

    def sent(self) -> dict[int, list[tuple[Any, ...]]]:
        """The arguments of every request that this process was handed, by the document's place in the scored split."""
        # 0.4 numbers the documents of `--samples` anew
        places = self.order() if self.arguments.get("samples") and harness.renumbers_samples() else None
        found: dict[int, list[Any]] = {}
        for request in self.requests:
            found.setdefault(places[request.doc_id] if places else int(request.doc_id), []).append(request)
        return {place: [tuple(r.args[:2]) for r in sorted(each, key=lambda r: r.idx)] for place, each in found.items()}

    def generation_kwargs(self) -> Mapping[str, Any] | None:
        """What lm-eval asks of a generated answer here, the task's own settings with `--gen_kwargs`; None for a task without any."""
        asked = next((request.args[1] for request in self.requests if request.request_type == "generate_until"), None)
        return asked if isinstance(asked, Mapping) else None


_RUNS: weakref.WeakValueDictionary[int, Run] = weakref.WeakValueDictionary()
_COUNT = itertools.count(1)
_last = 0


def _forgotten() -> None:
    return None


def own_metadata(task: Any) -> dict[str, Any]:
    """What a task's YAML says to t2eval, under `metadata: {t2: …}`."""
    metadata = task.config.metadata
    return dict((metadata.get("t2") or {}) if isinstance(metadata, Mapping) else {})


def runs_programs_unprotected(task: Any) -> bool:
    """Whether a task's metric runs model-written programs outside of t2eval's sandbox: not one of ours, and it does not say so."""
    if not (task.config.unsafe_code or getattr(task, "UNSAFE_CODE", False)) or own_metadata(task).get("sandbox"):
        return False
    ours = tasks_dir().resolve()
    for source in (type(task), task.config.process_results):
        try:
            if Path(inspect.getfile(source)).resolve().is_relative_to(ours):
                return False
        except (TypeError, OSError):
            continue
    return True


# ---------------------------------------------------------------------- recording
def record() -> None:
    """From now on, note each task whose requests lm-eval builds, and tell a strategy when its evaluation has ended. Once a process."""
    harness.check_version()
    from lm_eval.api.task import Task

    plain = Task.build_all_requests
    if getattr(plain, "noted_by_t2eval", False):
        return
    _tell_the_end()
    quiet_git()
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def build_all_requests(self: Any, *args: Any, **named: Any) -> Any:
        bound = signature.bind(self, *args, **named)
        bound.apply_defaults()
        run = _note(self, {name: value for name, value in bound.arguments.items() if name != "self"})
        made = plain(self, *args, **named)
        for request in self.instances or []:
            request.t2_run = run
        return made

    build_all_requests.noted_by_t2eval = True  # type: ignore[attr-defined]
    Task.build_all_requests = build_all_requests


def _tell_the_end() -> None:
    import lm_eval.evaluator

    plain = lm_eval.evaluator.evaluate
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def evaluate(*args: Any, **named: Any) -> Any:
        results = plain(*args, **named)
        bound = signature.bind(*args, **named).arguments
        finish = getattr(bound["lm"], "finish_evaluation", None)
        if callable(finish):
            finish(results, bound.get("samples"))
        return results

    lm_eval.evaluator.evaluate = evaluate


def _note(task: Any, arguments: dict[str, Any]) -> Run:
    global _last
    template = arguments.pop("chat_template", None)
    # a model's own method, held weakly: whoever keeps the task must not keep the model alive by it
    chat: Callable[[], Any] = weakref.WeakMethod(template) if inspect.ismethod(template) else lambda: template
    _last = next(_COUNT)
    run = _RUNS[_last] = Run(task, arguments, _last, sampler_state(task), chat)
    return run


def run_of(request: Any) -> Run | None:
    """The run that a request belongs to; None where it was not made by lm-eval's evaluator."""
    found = getattr(request, "t2_run", None)
    return found if isinstance(found, Run) else None


def recorded() -> int:
    """How many runs were noted so far in this process: those of an evaluation are noted before its first request is answered."""
    return _last


def since(number: int) -> list[Run]:
    """The runs that were noted after the one with this number, and are still there, in their order."""
    return [run for each, run in sorted(_RUNS.items()) if each > number]


def stale(run: Run) -> str | None:
    """How the requests that lm-eval took from its cache (`--cache_requests`) differ from those that it would build; None where they do not.

    Looks at the first document of this process and at the generation settings.
    """
    rank, processes = int(run.arguments.get("rank") or 0), int(run.arguments.get("world_size") or 1)
    place = dealt(run.order(), processes)[rank][0]
    sent = run.sent().get(place)
    if sent is None:
        return "it has no request for the first document"
    asked = run.generation_kwargs()
    if asked is not None and asked != (run.task.config.generation_kwargs or {}):
        return f"generation settings {asked}, not {run.task.config.generation_kwargs}"
    if run.kind == "loglikelihood_rolling":
        return None
    doc, now = run.task.eval_docs[place], sampler_state(run.task)
    set_sampler_state(run.task, run.sampling)
    built = prompt_of(run.task, doc, run.prompting())
    set_sampler_state(run.task, now)
    first = built[0] if isinstance(built, list) else built
    return None if first == sent[0][0] else f"{_around(sent[0][0], first)} in the first prompt"


def _around(one: str, other: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, place - 10)
    return f"{one[start : place + 30]!r}, not {other[start : place + 30]!r},"


# ---------------------------------------------------------------------- prompts and their worked examples
def prompt_of(task: Any, doc: Any, how: Prompting) -> str | list[str]:
    """A document's prompt as lm-eval builds it; where a choice task's choices are contexts, all of them."""
    found: str | list[str] = task.fewshot_context(
        doc,
        num_fewshot=how.num_fewshot,
        system_instruction=how.system_instruction,
        apply_chat_template=how.chat is not None,
        fewshot_as_multiturn=how.multiturn,
        chat_template=how.chat,
        gen_prefix=harness.answer_prefix(task, doc),
    )
    return found


def _generator(task: Any) -> Any:
    sampler = getattr(task, "sampler", None) if int(task.config.num_fewshot or 0) > 0 else None
    found = getattr(sampler, "rnd", None)
    return found if isinstance(found, random.Random) else None


def sampler_state(task: Any) -> Any:
    """The state of what draws a task's worked examples; None where nothing is drawn."""
    generator = _generator(task)
    return None if generator is None else generator.getstate()


def set_sampler_state(task: Any, state: Any) -> None:
    """Put the sampler of worked examples back to a state that `sampler_state` gave."""
    generator = _generator(task)
    if generator is not None and state is not None:
        generator.setstate(state)


@contextmanager
def never_itself(task: Any, doc: Any) -> Iterator[None]:
    """Inside, a document is not among its own worked examples, whatever split they come from; lm-eval sees to it on the test split only."""
    sampler = task.sampler
    plain = sampler.sample
    sampler.sample = lambda n, eval_doc=None, **named: plain(n, eval_doc=doc, **named)
    try:
        yield
    finally:
        del sampler.sample


def skip_draw(task: Any, doc: Any, num_fewshot: int) -> None:
    """Let the sampler draw a document's worked examples, as lm-eval does, and do nothing with them."""
    if num_fewshot > 0 and getattr(task, "sampler", None) is not None:
        own = harness.fewshot_split(task) == task.config.test_split
        task.sampler.sample(n=num_fewshot, eval_doc=doc if own else None)


def dealt(order: Sequence[int], processes: int) -> list[list[int]]:
    """The documents of each process of a data-parallel evaluation, in the order in which it draws their worked examples."""
    return [list(order[rank::processes]) for rank in range(processes)]
