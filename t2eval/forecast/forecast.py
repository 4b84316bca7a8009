"""Forecast: what a benchmark will take, said before anything is loaded: cells, trainings, data, downloads, memory, tokens, hours.

Every figure has a source (`figures.Figure`); one that is computed from several has the weakest of theirs. A forecast reads YAML files,
caches and finished rows. It counts as follows:

- An answer reads its prompt (`assume.prompt_tokens`) and writes `assume.answer_tokens`, or the task's limit where that is less. A choice
  task writes nothing and reads its prompt once for each of four choices.
- The first pass of `prompt` and `cls` reads `assume.dispatch_tokens` more an example; that of `fewshot` answers its adaptation examples
  once for each candidate of its whole budget (a search that converges stops earlier).
- One expert for a cell is one merge into the base, dispatch one an expert (and one of the classification expert), few-shot search one a
  candidate, a training one a step and validation: no more than happen, as hooks serve where they are cheaper.
- A training step reads and writes its answers, then trains on prompt and answer; with a KL penalty the base reads them once more.
  Each run of a sweep is counted as far as its rule takes it (`training.halving`), with its validations; the base's validation and the
  answers of the first step are shared. The test split is answered twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from t2eval.basemodel import probe as hub
from t2eval.bench import rows
from t2eval.bench.config import EXPERT_METHODS, BenchConfig
from t2eval.bench.plan import Cell, Plan, open_tasks
from t2eval.bench.training import Job, jobs, settle
from t2eval.forecast.constants import speeds_of
from t2eval.forecast.facts import TaskFacts, task_facts
from t2eval.forecast.figures import Figure, figure, limited, times, total
from t2eval.forecast.power import Detectable, detectable
from t2eval.forecast.shape import Shape, model_shape
from t2eval.paths import is_embedded
from t2eval.strategies.search import SearchConfig
from t2eval.training.config import TrainConfig
from t2eval.training.halving import total_steps, total_validations

_CHOICES = 4
_EXPERTS = 3
"""Experts of a library whose benchmark file does not say how many: the paper's."""
_ACTIVATIONS = 2  # bytes a number that the backward pass needs, as bfloat16
_LOGITS = 12 * 64 * 2**20  # bytes of logits and what is made of them, a chunk of tokens at a time (`training.likelihood`)


@dataclass(frozen=True)
class Work:
    """Tokens that are read, written and trained on, merges of an expert into the base, and the hours that all this takes.

    Of a training that is a sweep: `method`, by which `rule` its runs go on, and the hours of the `other` rule.
    """

    name: str
    read: Figure
    written: Figure
    trained: Figure
    hours: Figure
    merges: Figure
    done: bool = False
    method: str = ""
    rule: str = ""
    other: Figure | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub: who reads it, its size in the cache, and whether it is there."""

    name: str
    tasks: tuple[str, ...]
    cached: bool
    bytes: Figure


@dataclass(frozen=True)
class Forecast:
    """All of it.

    Attributes:
        cells: how many, and done: how many of them are finished in the output folder.
        tasks: those that are evaluated. data: what they and the training tasks read from the hub.
        trainings, evaluations: the work, one entry a training run, and one a method and task (over its seeds).
        disk: bytes: `download` (weights that are not on this machine) and `bases`.
        speeds: what the hours are counted with: measured where and when, or given.
        power: the smallest differences that the examples could show.
        memory: bytes on the device, by what takes them: `weights`, `bases`, `cache` and, for training, `activations`.
    """

    name: str
    model: str
    dtype: str
    output: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: int
    done: int
    tasks: tuple[TaskFacts, ...]
    data: tuple[DataSet, ...]
    trainings: tuple[Work, ...]
    evaluations: tuple[Work, ...]
    parameters: Figure
    trainable: Figure
    disk: Mapping[str, Figure]
    memory: Mapping[str, Figure]
    assumed: Mapping[str, Any] = field(default_factory=dict)
    speeds: str = ""
    power: tuple[Detectable, ...] = ()

    def needed(self, training: bool) -> Figure:
        """Bytes that evaluation or training takes in all."""
        parts = [part for name, part in self.memory.items() if name != ("cache" if training else "activations")]
        return total(*parts)

    def hours(self) -> Figure:
        """Of all work that is left."""
        return total(*(work.hours for work in (*self.trainings, *self.evaluations) if not work.done))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = asdict(self)
        plain["memory"] |= {"evaluation": asdict(self.needed(False)), "training": asdict(self.needed(True)) if self.trainings else None}
        return {**plain, "hours": asdict(self.hours())}


# ---------------------------------------------------------------------- work
@dataclass(frozen=True)
class _Meter:
    """Tokens and hours under a benchmark's assumptions, on a machine whose speeds have been measured (`constants`)."""

    config: BenchConfig
    parameters: int | None

    def work(
        self,
        name: str,
        read: Figure,
        written: Figure,
        trained: Figure,
        merges: float = 0.0,
        done: bool = False,
        hours: Figure | None = None,
        generated: Figure | None = None,
    ) -> Work:
        """`generated` is what lm-eval's own class writes, beside what rollouts and searches write."""
        beside = generated or Figure(0.0, "measured")
        hours = hours or self._hours((read, written, trained, beside), merges)
        return Work(name, read, total(written, beside) if generated else written, trained, hours, Figure(merges, "read"), done)

    def _hours(self, tokens: Sequence[Figure], merges: float) -> Figure:
        speeds = speeds_of(self.config, self.parameters)
        hours = merges * speeds.merge / 3600
        for part, speed in zip(tokens, (speeds.read, speeds.answer, speeds.train, speeds.generate), strict=True):
            if part.value is None or (part.value and speed is None):
                return Figure(None, "unknown", "a size or a speed is not known")
            hours += part.value / speed / 3600 if part.value and speed else 0.0
        return figure(hours, "assumed", *(part.source for part in tokens))

    def answers(self, task: TaskFacts, count: Figure, longest: int | None = None) -> tuple[Figure, Figure]:
        """Tokens read and written for so many answers."""
        assume = self.config.assume
        if count.value is None:
            return count, count
        if task.longest is None:
            return figure(count.value * _CHOICES * assume.prompt_tokens, count.source, "assumed"), Figure(0.0, count.source)
        length = min(assume.answer_tokens, longest or task.longest)
        return (
            figure(count.value * assume.prompt_tokens, count.source, "assumed"),
            figure(count.value * length, count.source, "assumed"),
        )

    def cells(self, method: str, task: TaskFacts, cells: Sequence[Cell], done: Mapping[str, rows.Row]) -> Work:
        """The cells of one method on one task that are not done; their seconds are known where another seed's cell is done."""
        name, kind = f"{method} on {task.name}", self.config.kind(method)
        left = [cell for cell in cells if cell.key not in done]
        zero = Figure(0.0, "measured")
        if not left:
            return self.work(name, zero, zero, zero, done=True)
        merges = 0.0 if kind == "base" or kind not in EXPERT_METHODS else 1.0
        tested = limited(_tested(task), self.config.limit)
        read, generated = self.answers(task, times(tested, task.samples))
        written = zero
        if kind in ("prompt", "cls", "nearest"):
            prompt = self.config.assume.prompt_tokens if kind == "nearest" else self.config.assume.dispatch_tokens
            read = total(read, times(tested, prompt))
            merges = float(len(self.config.train.skills) if self.config.train else _EXPERTS) + (kind == "cls")
        elif kind == "fewshot":
            arguments = self.config.model_args.get(method, {})
            searched = self.answers(task, Figure(float(search_answers(arguments)), "read"))
            merges += search_candidates(arguments)
            read, written = total(read, searched[0]), searched[1]
        seconds = [done[cell.key].seconds for cell in cells if cell.key in done]
        measured = Figure(len(left) * sum(seconds) / len(seconds) / 3600, "measured", "as the finished seeds") if seconds else None
        more = times(generated, len(left))
        return self.work(name, times(read, len(left)), times(written, len(left)), zero, merges * len(left), hours=measured, generated=more)

    def training(self, job: Job, task: TaskFacts) -> Work:
        """One training, with its sweep, its validations and its test."""
        zero = Figure(0.0, "measured")
        if job.finished:
            return self.work(job.name, zero, zero, zero, done=True)
        config = job.config
        found = self._trained(job.name, config, task)
        if len(config.points) == 1:
            return replace(found, method=config.method)
        other = config.model_copy(update={"sweep": "full" if config.sweep == "halving" else "halving"})
        hours = None if config.max_seconds is not None else self._trained(job.name, other, task).hours
        return replace(found, method=config.method, rule=config.sweep, other=hours)

    def _trained(self, name: str, config: TrainConfig, task: TaskFacts) -> Work:
        zero = Figure(0.0, "measured")
        steps, checks = total_steps(config), total_validations(config)
        answers = Figure(float(steps * config.batch_size), "read", f"{steps} steps of {config.batch_size}")
        read, written = self.answers(task, answers, config.max_new_tokens)
        trained = total(read, written)
        penalised = config.objective == "reinforce" and any(config.sweep_values("kl"))
        validation = limited(_validation(task), config.validation_limit)
        checked = self.answers(task, times(validation, checks))
        tested = self.answers(task, times(limited(_tested(task), config.test_limit), 2)) if config.test else (zero, zero)
        rollouts = config.objective == "reinforce" and task.longest is not None
        sampled = steps - (len(config.points) - 1)  # the runs of a sweep share the first step's
        drawn = self.answers(task, times(answers, sampled / steps), config.max_new_tokens)
        parts = [checked[0], tested[0], *([drawn[0]] if rollouts else []), *([trained] if penalised else [])]
        outputs = [checked[1], tested[1], *([drawn[1]] if rollouts else [])]
        merges = float((sampled if rollouts else 0) + checks + 2 * config.test) if config.method == "svf" else 0.0
        return self.work(name, total(*parts), total(*outputs), trained, merges)


def search_answers(arguments: Mapping[str, Any]) -> int:
    """Answers that few-shot search takes for one task at most: candidates × adaptation examples."""
    return search_candidates(arguments) * int(arguments.get("shots") or 10)


def search_candidates(arguments: Mapping[str, Any]) -> int:
    """Candidates of α that few-shot search tries for one task at most. Each is merged, where it is not answered through the hooks."""
    base = SearchConfig.paper() if arguments.get("preset") == "paper" else SearchConfig()
    population, iterations = arguments.get("population") or base.population, arguments.get("iterations") or base.iterations
    return int(population) * int(iterations)


def _validation(task: TaskFacts) -> Figure:
    """The validation split, or the half of the training split that stands for it."""
    return task.examples.get("validation") or times(task.examples.get("train", Figure(None, "unknown")), 0.5)


def _tested(task: TaskFacts) -> Figure:
    return task.examples.get("test", Figure(None, "unknown"))


# ---------------------------------------------------------------------- memory
def _memory(config: BenchConfig, shape: Shape, adapted: tuple[str, str], todo: Sequence[Job], longest: int) -> dict[str, Figure]:
    """Bytes on the device, by what takes them."""
    assume = config.assume
    found = {"weights": figure(shape.weight_bytes, shape.source)}
    if EXPERT_METHODS & config.kinds:
        bases = shape.bases(*adapted)
        found["bases"] = figure(bases and bases * (shape.width or 4), shape.source, note="singular bases, in the model's dtype")
        if any(config.model_args.get(method, {}).get("keep_base") != "host" for method in EXPERT_METHODS & set(config.methods)):
            waiting = shape.adapted(*adapted)
            note = "base weights beside merged ones; with keep_base=host they wait in the host's memory"
            found["kept"] = figure(waiting and waiting * (shape.width or 4), shape.source, note=note)
    if shape.cache_values is not None and shape.width is not None:
        tokens = config.batch_size * (assume.prompt_tokens + longest)
        cached = tokens * shape.cache_values * shape.width + config.batch_size * (shape.vocabulary or 0) * 4
        found["cache"] = figure(cached, shape.source, "assumed", note=f"keys, values and logits of {config.batch_size} answers")
    else:
        found["cache"] = Figure(None, "unknown")
    if todo:
        found["activations"] = _activations(config, shape, [job.config for job in todo], longest)
    return found


def _disk(config: BenchConfig, shape: Shape, adapted: tuple[str, str]) -> dict[str, Figure]:
    """Bytes on the disk: the weights that are downloaded, and the cache of singular bases."""
    found = {"download": _download(config, shape)}
    if EXPERT_METHODS & config.kinds:
        bases = shape.bases(*adapted)
        found["bases"] = figure(
            bases and bases * 4, shape.source, note="singular bases, float32, in t2eval's cache, and as much of the host's memory"
        )
    return found


def _adapted(settings: TrainConfig | None) -> tuple[str, str]:
    return (settings.modules or "all", settings.layers) if settings is not None else ("all", "all")


def _activations(config: BenchConfig, shape: Shape, runs: Sequence[TrainConfig], longest: int) -> Figure:
    """What the backward pass keeps of one micro-batch, by a rule of thumb: eight times hidden and four times the MLP a layer and token."""
    if None in (shape.layers, shape.hidden, shape.inner, shape.vocabulary):
        return Figure(None, "unknown")
    assert shape.layers and shape.hidden and shape.inner and shape.vocabulary
    tokens = max(run.largest_pass for run in runs) * (config.assume.prompt_tokens + longest)
    kept = shape.layers * (8 * shape.hidden + 4 * shape.inner) * _ACTIVATIONS
    return figure(
        tokens * kept + _LOGITS, shape.source, "assumed", note=f"of {max(run.largest_pass for run in runs)} answers of full length"
    )


# ---------------------------------------------------------------------- all of it
def forecast(plan: Plan, output: str | Path) -> Forecast:
    """What a benchmark will take.

    Args:
        plan: from `load_plan`.
        output: its folder; finished cells and trainings in it are counted as done.

    Raises:
        UsageError: an unknown task, or a wrong training setting.
        T2Error: a task whose programs would run unprotected.
    """
    output = Path(output)
    here = settle(plan, output)
    config = here.config
    todo = jobs(here)
    taught = list(dict.fromkeys(job.config.task for job in todo))
    manager = open_tasks([*config.tasks, *taught], config.include_path)
    facts = {name: task_facts(manager, name) for name in dict.fromkeys([*config.tasks, *taught])}
    done = {row.cell: row for row in rows.read(output) if row.status == "ok"} if output.is_dir() else {}
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in here.cells:
        groups.setdefault((cell.method, cell.task), []).append(cell)
    shape = model_shape(config)
    meter = _Meter(config, shape.parameters)
    longest = max((task.longest or 0 for task in facts.values()), default=0)
    pending = [job for job in todo if not job.finished]
    adapted = _adapted(next((job.config for job in todo if job.config.method == "svf"), None))
    return Forecast(
        name=config.name,
        model=config.model,
        dtype=config.dtype,
        output=str(output),
        methods=config.methods,
        seeds=config.seeds,
        cells=len(here.cells),
        done=sum(cell.key in done for cell in here.cells),
        tasks=tuple(facts.values()),
        data=_data_sets(facts),
        trainings=tuple(meter.training(job, facts[job.config.task]) for job in todo),
        evaluations=tuple(meter.cells(method, facts[task], cells, done) for (method, task), cells in groups.items()),
        parameters=figure(shape.parameters, shape.source),
        trainable=figure(shape.scales(*adapted), shape.source, note="of one expert"),
        memory=_memory(config, shape, adapted, pending, longest),
        disk=_disk(config, shape, adapted),
        assumed=config.assume.model_dump(exclude_none=True),
        speeds=speeds_of(config, shape.parameters).note,
        power=detectable(config, facts),
    )


def _data_sets(facts: Mapping[str, TaskFacts]) -> tuple[DataSet, ...]:
    found = []
    for data in dict.fromkeys(data for task in facts.values() for data in task.data):
        cached = hub.cached_data(data)
        size = Figure(cached.bytes, "read", "in the cache") if cached and cached.bytes else Figure(None, "unknown")
        found.append(DataSet(str(data), tuple(name for name, task in facts.items() if data in task.data), cached is not None, size))
    return tuple(found)


def _download(config: BenchConfig, shape: Shape) -> Figure:
    if is_embedded(config.model) or Path(config.model).is_dir() or hub.has_weights(config.model, config.revision):
        return Figure(0.0, "measured", "on this machine")
    # The hub's files of the paper's models are in a dtype of two bytes, whichever one they are loaded in.
    return figure(None if shape.parameters is None else shape.parameters * 2, shape.source, "assumed", note="two bytes a parameter")
