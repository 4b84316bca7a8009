"""Plans: a benchmark file and the cells that it asks for.

A cell is one (base model, method, task, seed). Which expert a cell uses follows from its task's label (`metadata.t2.label` of
the task's YAML, or `labels` of the benchmark file):

1. The paper takes, for an unseen task, the LoRA of all training tasks with the best test score. Here lora, ia3 and dora use the
   adapter trained for the task's own label, chosen without looking at the test set; so does the method `expert`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from t2eval.errors import UsageError, unknown
from t2eval.paths import EMBEDDED, EMBEDDED_VLM, configs_dir, experts_dir, experts_in, is_embedded, joined

METHODS = ("base", "expert", "prompt", "cls", "fewshot", "lora", "ia3", "dora")
BASELINES = ("lora", "ia3", "dora")
STRATEGIES = ("prompt", "cls", "fewshot")
EXPERT_METHODS = frozenset({"expert", *STRATEGIES})
DISPATCH = "dispatch"
"""The label of the classification expert, which `cls` asks and no other method uses."""
_PATH_FIELDS = ("experts", "baselines", "include_path")


class TrainSection(BaseModel):
    """How the experts and baselines of a benchmark are made where they are missing.

    `skills` gives, for each skill label, the settings of its runs (fields of `TrainConfig`), with `task`, the seen task, among them; a
    plain list of labels will do where recipes have the rest. `recipe` is a recipe file for each run, with `{run}` (`math`,
    `lora-math`), `{label}`, `{method}` and `{seed}` in its name. `settings` holds for all runs, `methods` for those of one method
    (`svf` makes the experts). What comes later wins: recipe, settings, methods, skills.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    skills: dict[str, dict[str, Any]] = Field(min_length=1)
    recipe: str | None = None
    settings: dict[str, Any] = {}
    methods: dict[Literal["svf", "lora", "ia3", "dora"], dict[str, Any]] = {}

    @field_validator("skills", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {str(label): {} for label in value} if isinstance(value, list | tuple) else value


class Assumptions(BaseModel):
    """What a forecast (`t2 bench --plan`) takes where it cannot look. Changes no score.

    The shape of the base model, in the words of its `config.json`, stands in where the model is not on this machine; `parameters` where
    its architecture is not one that is counted. Tokens are means an example; speeds are tokens a second, of all processes together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int | None = Field(default=None, ge=1)
    hidden_size: int | None = Field(default=None, ge=1)
    intermediate_size: int | None = Field(default=None, ge=1)
    num_hidden_layers: int | None = Field(default=None, ge=1)
    num_attention_heads: int | None = Field(default=None, ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=1)
    vocab_size: int | None = Field(default=None, ge=1)
    tie_word_embeddings: bool = False
    prompt_tokens: int = Field(default=300, ge=0)
    dispatch_tokens: int = Field(default=300, ge=0)
    answer_tokens: int = Field(default=200, ge=0)
    read_speed: float | None = Field(default=None, gt=0)
    answer_speed: float | None = Field(default=None, gt=0)
    train_speed: float | None = Field(default=None, gt=0)


class BenchConfig(BaseModel):
    """What a benchmark file says.

    `experts` is the folder of the expert library, with `{seed}` in it where there are several seeds; `baselines` the folder of
    one adapter, with `{seed}`, `{method}` and `{label}`. Either may be several, joined by `+`: what lies in a later one takes the
    place of what has its name in an earlier one, and what is trained goes into the last. Left out, they are the embedded model's.
    `limit` is the number of test examples a task. `model_args` adds lm-eval model_args by method, `labels` gives task → skill label.
    `train` says how experts and baselines are made where they are missing, `assume` what a forecast takes for granted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "benchmark"
    model: str = EMBEDDED
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    methods: tuple[str, ...] = Field(default=METHODS, min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool = False
    model_args: dict[str, dict[str, Any]] = {}
    experts: str | None = None
    baselines: str | None = None
    labels: dict[str, str] = {}
    include_path: str | None = None
    train: TrainSection | None = None
    assume: Assumptions = Assumptions()

    @field_validator("methods", "tasks", "seeds", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """One name is a list of one; nothing is run twice."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(dict.fromkeys(values))

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in value:
            if method not in METHODS:
                raise unknown("method", method, METHODS)
        return value

    @field_validator("model_args")
    @classmethod
    def _known_keys(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for method in value:
            if method not in METHODS:
                raise unknown("method in model_args", method, METHODS)
        return value

    def libraries(self, seed: int) -> list[Path]:
        """The folders that hold the experts of one seed, in order.

        Raises:
            UsageError: the benchmark file names none, and the model is not an embedded one with experts of its own.
        """
        if self.experts is not None:
            return [Path(part) for part in joined(self.experts.replace("{seed}", str(seed)))]
        if self.model in (EMBEDDED, EMBEDDED_VLM):
            from t2eval.basemodel.load import embedded_libraries

            return embedded_libraries(self.model, seed)
        raise UsageError(f"No experts for {self.model!r}: give `experts: <folder with {{seed}}>` in the benchmark file.")

    def library(self, seed: int) -> Path:
        """The folder that experts of one seed are trained into: the last of `libraries`."""
        return self.libraries(seed)[-1]

    def expert_folders(self, seed: int) -> list[Path]:
        """The folder of each expert of one seed; of those with one name in several libraries, the last library's."""
        return experts_in(self.libraries(seed))

    def experts_argument(self, seed: int) -> str:
        """The experts of one seed as `experts=` of the lm-eval classes: one library as it is, of several the experts that count."""
        libraries = self.libraries(seed)
        return "+".join(map(str, libraries if len(libraries) == 1 else self.expert_folders(seed) or libraries))

    def _places(self, method: str, label: str, seed: int) -> list[Path]:
        """Where one baseline's adapter may lie, in order. Raises as `libraries` does."""
        if self.baselines is not None:
            filled = self.baselines.replace("{seed}", str(seed)).replace("{method}", method)
            return [Path(part) for part in joined(filled.replace("{label}", label))]
        if self.model in (EMBEDDED, EMBEDDED_VLM):
            from t2eval.basemodel.load import embedded_adapters

            return embedded_adapters(self.model, method, label, seed)
        raise UsageError(
            f"No baselines for {self.model!r}: give `baselines: <folder with {{seed}}, {{method}} and {{label}}>` in the benchmark file."
        )

    def adapter(self, method: str, label: str, seed: int) -> Path:
        """The folder of one baseline's adapter: the last place where there is one; where there is none, the last place of all, into
        which it is trained. Raises as `libraries` does."""
        places = self._places(method, label, seed)
        return next((place for place in reversed(places) if place.is_dir()), places[-1])

    def adapters(self, method: str, seed: int) -> list[Path]:
        """The folders of one baseline's adapters that exist, of all labels. Raises as `libraries` does."""
        return sorted(path for place in self._places(method, "*", seed) for path in place.parent.glob(place.name))


@dataclass(frozen=True)
class Cell:
    """One (base model, method, task, seed)."""

    model: str
    method: str
    task: str
    seed: int

    @property
    def key(self) -> str:
        """A name for the cell that is stable between runs and is a file name."""
        return f"{_slug(self.model)}__{self.method}__{_slug(self.task)}__seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A benchmark file's contents and its cells, base first, then method by method and seed by seed."""

    config: BenchConfig
    cells: tuple[Cell, ...]


def _slug(name: str) -> str:
    """A file-name form of a name; a hash keeps apart what it makes alike."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    return slug if slug == name else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def make_plan(config: BenchConfig) -> Plan:
    """All cells of a benchmark. The base does not depend on the seed: it has one cell a task, recorded with seed 0."""
    cells = []
    for method in sorted(config.methods, key=METHODS.index):
        for seed in (0,) if method == "base" else config.seeds:
            cells += [Cell(config.model, method, task, seed) for task in config.tasks]
    return Plan(config, tuple(cells))


def _anchor(value: str, folder: Path) -> str:
    """A path of a benchmark file, or several joined by `+`, relative to that file."""
    paths = [Path(part).expanduser() for part in joined(value)]
    return "+".join(str(path if path.is_absolute() else (folder / path).resolve()) for path in paths)


def _absolute(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with their paths made absolute: those of the path fields, and a model that is a folder there."""
    settings = dict(settings)
    for field in _PATH_FIELDS:
        if isinstance(settings.get(field), str):
            settings[field] = _anchor(settings[field], folder)
    train = settings.get("train")
    if isinstance(train, Mapping) and isinstance(train.get("recipe"), str):
        settings["train"] = {**train, "recipe": _anchor(train["recipe"], folder)}
    model = settings.get("model")
    if isinstance(model, str) and not is_embedded(model) and (folder / model).is_dir():
        settings["model"] = _anchor(model, folder)
    return settings


def parse_config(settings: Mapping[str, Any], source: str = "the benchmark") -> BenchConfig:
    """Check settings.

    Args:
        settings: field → value.
        source: what the messages call it.

    Raises:
        UsageError: an unknown key or name (with near matches), or a value of the wrong kind.
    """
    for key in settings:
        if key not in BenchConfig.model_fields:
            raise unknown(f"key in {source}", str(key), BenchConfig.model_fields)
    try:
        return BenchConfig.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{source}: {where}: {first['msg']} (got {first['input']!r}).") from error


def shipped_files() -> dict[str, Path]:
    """The benchmark files that come with t2eval, by name (`paper-llama3-8b`, `embedded`)."""
    found = [*configs_dir().glob("*.yaml"), *(experts_dir() / "benchmarks").glob("*.yaml")]
    return {file.stem: file for file in sorted(found)}


def find_file(name: str | Path) -> Path:
    """The benchmark file that is meant.

    A file that exists is itself. Otherwise the name of a shipped one will do, also with the folder and the ending that it has in the
    repository: so `configs/paper-llama3-8b.yaml` works from a wheel, wherever one is.

    Raises:
        UsageError: no such file, with the shipped names.
    """
    path = Path(name)
    shipped = shipped_files()
    if path.exists() and not path.is_dir():
        return path
    if path.suffix in ("", ".yaml") and path.parent in (Path(), Path("configs"), Path("experts/benchmarks")) and path.stem in shipped:
        return shipped[path.stem]
    near = difflib.get_close_matches(path.stem, shipped, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"Cannot read the benchmark file {path}: there is none.{hint} Shipped with t2eval: {', '.join(shipped)}.")


def load_plan(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read a benchmark file.

    Args:
        path: YAML, or the name of a shipped one; its relative paths are relative to it.
        overrides: settings that replace the file's (`seeds`, `limit`, …); None values are ignored, relative paths are relative
            to the current folder.

    Returns:
        The checked settings and their cells. Task names are checked when the plan is run (`open_tasks`).

    Raises:
        UsageError: no such file, not YAML, an unknown key or name, a wrong value.
    """
    path = find_file(path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the benchmark file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path} must be a mapping with at least `tasks:`.")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    merged = {**_absolute(settings, path.parent), **_absolute(given, Path.cwd())}
    if "assume" in given:
        merged["assume"] = {**(settings.get("assume") or {}), **given["assume"]}
    return make_plan(parse_config(merged, str(path)))


def open_tasks(names: Sequence[str], include_path: str | None = None) -> Any:
    """A TaskManager that knows the tasks; lm-eval's own 14,000 (15 s to index) are read only where they are asked for.

    Args:
        names: the tasks to be loaded.
        include_path: a further folder with task YAMLs.

    Raises:
        UsageError: a name that nobody knows, with near matches, a group of tasks, or a folder that does not exist.
    """
    from t2eval.environment.environment import make_task_manager

    managers = [make_task_manager(include_path, task=name) for name in names]
    manager = max(managers, key=lambda manager: len(manager.all_tasks))
    for name in names:
        if name not in manager.all_tasks:
            raise unknown("task", name, manager.all_subtasks)
        if name not in manager.all_subtasks:
            raise UsageError(f"{name!r} is a group of tasks; a cell is one task. Name its tasks in the benchmark file.")
    return manager


def task_label(config: BenchConfig, task: str, metadata: Mapping[str, Any] | None) -> str:
    """The skill label of a task: the benchmark file's, else `metadata.t2.label` of its YAML.

    Raises:
        UsageError: neither says.
    """
    label = config.labels.get(task) or ((metadata or {}).get("t2") or {}).get("label")
    if not label:
        raise UsageError(
            f"Task {task!r} has no skill label: add `labels: {{{task}: <label>}}` to the benchmark file, "
            "so that its expert or adapter can be chosen."
        )
    return str(label)
