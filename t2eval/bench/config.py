"""Configuration: what a benchmark file says, checked. Paths in it are as the file has them; `plan.load_plan` makes them absolute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from t2eval.basemodel.devices import AUTO, check_dtype
from t2eval.errors import UsageError, shown, unknown, wrong_value
from t2eval.expert.hub import located_all
from t2eval.expert.location import is_hub
from t2eval.models import registry
from t2eval.paths import EMBEDDED, EMBEDDED_VLM, experts_in, joined
from t2eval.training import methods as training_methods
from t2eval.training.config import SEEDS

BASELINES = tuple(name for name in training_methods.METHODS if name != "svf")
PAPER_BASELINES = tuple(name for name in BASELINES if training_methods.METHODS[name].in_paper)
EXPERT_METHODS = frozenset(registry.STRATEGIES)
PAPER_STRATEGIES = tuple(name for name, entry in registry.STRATEGIES.items() if entry.chooses and entry.in_paper)
STRATEGIES = tuple(name for name, entry in registry.STRATEGIES.items() if entry.chooses)
METHODS = ("base", *registry.STRATEGIES, *BASELINES)
DEFAULT_METHODS = ("base", *(name for name, entry in registry.STRATEGIES.items() if entry.in_paper), *PAPER_BASELINES)
"""What a benchmark file without `methods` evaluates: the paper's."""
DISPATCH = "dispatch"
"""The label of the classification expert, which `cls` asks and no other method uses."""


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
    methods: dict[str, dict[str, Any]] = {}

    @field_validator("skills", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {str(label): {} for label in value} if isinstance(value, list | tuple) else value

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            training_methods.find_method(name)
        return value


class Assumptions(BaseModel):
    """What a forecast (`t2 bench --plan`) takes where it cannot look. Changes no score.

    The shape of the base model, in the words of its `config.json`, stands in where the model is not on this machine; `parameters` where
    its architecture is not one that is counted. Tokens are means an example; speeds are tokens a second, of all processes together, and
    `merge_seconds` is what it takes to merge an expert into the base and out of it again. Speeds that are not given are measured ones
    (`t2eval.forecast.constants`), for the model's size. `score` and `agreement` are for the smallest difference that the examples could
    show: what both sides of a comparison are expected to score, and how their scores correlate over the examples.
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
    merge_seconds: float | None = Field(default=None, ge=0)
    score: float = Field(default=0.5, gt=0, lt=1)
    agreement: float = Field(default=0.5, ge=-1, lt=1)


class BenchConfig(BaseModel):
    """What a benchmark file says.

    `experts` is the folder of the expert library, with `{seed}` in it where there are several seeds, or its place on the hub
    (`hf://owner/name[@revision][/folder]`); `baselines` the folder of one adapter, with `{seed}`, `{method}` and `{label}`. Either may be
    several, joined by `+`: what lies in a later one takes the place of what has its name in an earlier one, and what is trained goes into
    the last. Left out, they are the embedded model's. `limit` is the number of test examples a task. `model_args` adds lm-eval model_args
    by method, `labels` gives task → skill label.
    A method may also be a mapping, `{name: lora-fewshot, strategy: fewshot, experts: …}`: a strategy under a name of its own, with
    model_args of its own (paths are the file's, `{seed}` stands for the seed), so that one strategy stands several times in a file. Here
    it is its name in `methods`, its strategy in `strategies` and its arguments in `model_args`.
    `train` says how experts and baselines are made where they are missing, `assume` what a forecast takes for granted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "benchmark"
    model: str = EMBEDDED
    revision: str | None = None
    dtype: str = AUTO
    device: str = AUTO
    methods: tuple[str, ...] = Field(default=DEFAULT_METHODS, min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEEDS, strict=True)], ...] = Field(default=(0,), min_length=1)
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool = False
    strategies: dict[str, str] = {}
    model_args: dict[str, dict[str, Any]] = {}
    experts: str | None = None
    baselines: str | None = None
    labels: dict[str, str] = {}
    include_path: str | None = None
    train: TrainSection | None = None
    assume: Assumptions = Assumptions()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Methods that are mappings, taken apart."""
        given = values.get("methods") if isinstance(values, Mapping) else None
        listed = list(given) if isinstance(given, list | tuple) else [given] if isinstance(given, Mapping) else []
        if not any(isinstance(each, Mapping) for each in listed):
            return values
        strategies, arguments = dict(values.get("strategies") or {}), dict(values.get("model_args") or {})
        for each in listed:
            if isinstance(each, Mapping):
                name, strategy, own = _named_method(each)
                if name in strategies or name in arguments:
                    raise UsageError(f"methods: {name!r} is defined twice. Give each method a name of its own.")
                strategies[name], arguments[name] = strategy, own
        names = [each["name"] if isinstance(each, Mapping) else each for each in listed]
        return {**values, "methods": names, "strategies": strategies, "model_args": arguments}

    @field_validator("methods", "tasks", "seeds", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """One name is a list of one; nothing is run twice."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(dict.fromkeys(values))

    @field_validator("device", mode="before")
    @classmethod
    def _chosen_here(cls, value: Any) -> Any:
        return AUTO if value is None else value

    @field_validator("baselines", "include_path")
    @classmethod
    def _folders_here(cls, value: str | None) -> str | None:
        if value is not None and any(map(is_hub, joined(value))):
            raise ValueError("only experts are read from the hub. Download it, and give the folder")
        return value

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        return check_dtype(value)

    @model_validator(mode="after")
    def _known_names(self) -> BenchConfig:
        for name, strategy in self.strategies.items():
            _named_method({"name": name, "strategy": strategy})
        for method in self.methods:
            if method not in METHODS and method not in self.strategies:
                raise unknown("method", method, (*METHODS, *self.strategies))
        for method in self.model_args:
            if method not in METHODS and method not in self.strategies:
                raise unknown("method in model_args", method, (*METHODS, *self.strategies))
        return self

    def kind(self, method: str) -> str:
        """What a method is: the strategy of one with a name of its own, else its own name."""
        return self.strategies.get(method, method)

    @property
    def kinds(self) -> frozenset[str]:
        """What the methods are."""
        return frozenset(map(self.kind, self.methods))

    def shares_library(self, method: str) -> bool:
        """Whether a method uses the file's `experts`: one that has some of its own does not."""
        return self.kind(method) in EXPERT_METHODS and "experts" not in self.model_args.get(method, {})

    @property
    def uses_library(self) -> bool:
        """Whether any method uses the file's `experts`."""
        return any(map(self.shares_library, self.methods))

    def is_trained(self, method: str) -> bool:
        """Whether a method needs what a `train:` section makes: the base does not, nor does one with experts of its own."""
        kind = self.kind(method)
        return kind != "base" and (kind not in EXPERT_METHODS or self.shares_library(method))

    def own_experts(self, method: str, seed: int) -> str | None:
        """The experts that a method has of its own; None where it uses the file's."""
        given = self.model_args.get(method, {}).get("experts")
        return None if given is None else str(given).replace("{seed}", str(seed))

    def libraries(self, seed: int) -> list[Path]:
        """The folders that hold the experts of one seed, in order.

        Raises:
            UsageError: the benchmark file names none, and the model is not an embedded one with experts of its own.
        """
        if self.experts is not None:
            return located_all(self.experts.replace("{seed}", str(seed)))
        if self.model in (EMBEDDED, EMBEDDED_VLM):
            from t2eval.basemodel.folders import embedded_libraries

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
            from t2eval.basemodel.folders import embedded_adapters

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


def _named_method(given: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The name, the strategy and the model_args of a method that is a mapping.

    Raises:
        UsageError: no name, one that is taken or no plain one, or no such strategy.
    """
    name, strategy = given.get("name"), given.get("strategy")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(
            f"methods: a name is letters, digits, '.', '_' and '-', not {shown(name)}; such as {{name: lora-fewshot, strategy: fewshot}}."
        )
    if name in METHODS:
        raise UsageError(f"methods: {name!r} is a method of t2eval's: give yours another name.")
    if strategy not in registry.STRATEGIES:
        raise unknown(f"strategy of the method {name!r}", str(strategy), registry.STRATEGIES)
    return name, strategy, {key: value for key, value in given.items() if key not in ("name", "strategy")}


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
        *above, last = (str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden" and above in (["assume"], ["train"]):
            section = Assumptions if above == ["assume"] else TrainSection
            raise unknown(f"key in {above[0]} of {source}", last, section.model_fields) from error
        got = "" if first["type"] == "missing" else f" (got {shown(first['input'])})"
        raise UsageError(f"{source}: {'.'.join([*above, last])}: {wrong_value(first)}{got}.") from error
