"""Options: what the t2 strategies take as `model_args` beside HFLM's own, checked before anything is loaded."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from t2eval.environment import harness
from t2eval.errors import UsageError, shown, unknown, wrong_value
from t2eval.strategies.alpha import Form, Granularity
from t2eval.strategies.fewshot import FewshotConfig
from t2eval.strategies.search import Method, start_search


class Options(BaseModel):
    """Common to all strategies.

    Attributes:
        experts: a library (a directory of experts), or expert directories joined by `+`; the embedded base has its own.
        labels: the skill labels of PEFT adapters without a card (`t2 expert label`), one for each folder of `experts`, joined by `+`.
        include_path: a further folder of task YAMLs, where a program that calls `simple_evaluate` with a model's name but without a
            TaskManager has tasks of its own. With `lm_eval --include_path` it is not needed.
        allow_basis_mismatch: use an expert although its basis is not the base's.
        keep_base: where the base weights wait while z' is merged: `device`, or `host` where the device has no room for them twice. None: on
            the device, or, of a model that is adapted already, where they wait now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    strategy: ClassVar[str] = ""
    suffix: ClassVar[str] = ""

    experts: str | Path | Sequence[str | Path] | None = None
    labels: tuple[str, ...] = ()
    include_path: str | None = None
    allow_basis_mismatch: bool = False
    keep_base: Literal["device", "host"] | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(str(value).split("+")) if isinstance(value, (str, int, float)) else value

    @field_validator("include_path")
    @classmethod
    def _folder(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_dir():
            raise ValueError("it is not a folder. Give the folder that holds the tasks' YAML files")
        return value


class ExpertOptions(Options):
    """`t2-expert`: one expert, or fixed α over several.

    Attributes:
        alphas: one α an expert, joined by `+`, in the order of the experts' names.
        form: `paper` z' = Σ α z, or `offset` z' = 1 + Σ α (z - 1).
    """

    strategy: ClassVar[str] = "expert"
    alphas: tuple[float, ...] | None = None
    form: Form = "paper"

    @field_validator("alphas", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split("+"))
        return (value,) if isinstance(value, (int, float)) else value


class DocumentOptions(Options):
    """Strategies that choose one expert for each document.

    Attributes:
        others_label: the outcome that means the base weights.
        mix: `hard`, or `soft` where the outcomes' probabilities are the α (a step beyond the paper).
    """

    others_label: str = "others"
    mix: Literal["hard", "soft"] = "hard"


class DispatchOptions(DocumentOptions):
    """`t2-prompt` and `t2-cls`: the base model names the expert.

    Attributes:
        dispatch: `score` the labels, or `generate` the answer (the paper's way).
        dispatch_tokens: the longest generated answer.
        hierarchy: whether labels are paths (`math/sums/apples`), of which one part is chosen after the other.
    """

    dispatch: Literal["score", "generate"] = "score"
    dispatch_tokens: int = Field(default=1024, ge=1)
    hierarchy: bool = False


class NearestOptions(DocumentOptions):
    """`t2-nearest`: the expert whose training prompts lie nearest to the question.

    Attributes:
        neighbours: how many of an expert's prompts count, the nearest ones; 0: the mean of all of them.
        floor: the least score (a mean cosine, -1 to 1) for which an expert is chosen, and not the base weights; None: one always is.
    """

    strategy: ClassVar[str] = "nearest"
    neighbours: int = Field(default=5, ge=0)
    floor: float | None = Field(default=None, ge=-1, le=1)


class NearestVlmOptions(NearestOptions):
    """`t2-nearest-vlm`: by the text of the question."""

    suffix: ClassVar[str] = "-vlm"


class PromptOptions(DispatchOptions):
    strategy: ClassVar[str] = "prompt"


class ClsOptions(DispatchOptions):
    strategy: ClassVar[str] = "cls"


class PromptVlmOptions(PromptOptions):
    """`t2-prompt-vlm`.

    Attributes:
        dispatch_image: whether the first pass sees the images too, and not only the question.
    """

    suffix: ClassVar[str] = "-vlm"
    dispatch_image: bool = False


class ClsVlmOptions(ClsOptions):
    """`t2-cls-vlm`; see `PromptVlmOptions`."""

    suffix: ClassVar[str] = "-vlm"
    dispatch_image: bool = False


class FewshotOptions(Options):
    """`t2-fewshot`: α by search. What is left out comes from the preset, else from `FewshotConfig` and `SearchConfig`, which say what
    the values mean. `hierarchy`: labels are paths, and α is searched over groups first, then within the best ones."""

    strategy: ClassVar[str] = "fewshot"
    shots: int | None = Field(default=None, ge=1)
    granularity: Granularity | None = None
    normalize: bool | None = None
    hierarchy: bool | None = None
    search: Method | None = None
    population: int | None = Field(default=None, ge=2)
    iterations: int | None = Field(default=None, ge=1)
    adapt_seed: int = 0
    ties: Literal["own", "reference"] | None = None
    choose: Literal["auto", "mean", "best"] | None = None
    form: Form | None = None
    preset: Literal["paper"] | None = None

    def config(self, experts: int) -> FewshotConfig:
        """The search over so many experts with its preset; what is given by name wins.

        Raises:
            UsageError: a search that cannot be.
        """
        base = FewshotConfig.paper() if self.preset == "paper" else FewshotConfig()
        named = {"shots", "granularity", "normalize", "hierarchy", "ties", "choose", "form"}
        given = self.model_dump(include=named, exclude_none=True)
        search: dict[str, Any] = self.model_dump(include={"population", "iterations"}, exclude_none=True) | {"seed": self.adapt_seed}
        if self.search is not None:
            search["method"] = self.search
        if self.population is not None:
            search["elites"] = None
        config = base.model_copy(update={**given, "search": base.search.model_copy(update=search)})
        start_search(experts if config.granularity == "task" else 2 * experts, experts, config.search)  # it refuses what it cannot do
        return config


_TEXTS = frozenset({"experts", "include_path", "others_label", "pretrained", "tokenizer", "revision", "subfolder", "gguf_file"})
"""Arguments that are names or paths, of which lm-eval makes numbers and truth values: `experts=123`, `others_label=true`."""


def _as_given(value: Any) -> Any:
    """A name or path as it was typed, before lm-eval made a number or a truth value of it.

    Digits that a number does not keep (`007`, `1e3`) are those of a file of that name here, if there is one.
    """
    if not isinstance(value, (bool, int, float)):
        return value

    def same(name: str) -> bool:
        read = harness.read_argument(name)
        return type(read) is type(value) and read == value

    plain = str(value).lower() if isinstance(value, bool) else str(value)
    return plain if Path(plain).exists() else next((path.name for path in sorted(Path().iterdir()) if same(path.name)), plain)


_ALL = (ExpertOptions, PromptOptions, ClsOptions, NearestOptions, FewshotOptions, PromptVlmOptions, ClsVlmOptions, NearestVlmOptions)


def split_arguments(kind: type[Options], arguments: Mapping[str, Any], parents: Sequence[type]) -> tuple[Options, dict[str, Any]]:
    """Our options and the rest, which is lm-eval's class's.

    Args:
        kind: the strategy's options.
        arguments: all of `model_args`.
        parents: the lm-eval class and what it derives from; what neither they nor we know goes to `from_pretrained`, unless it looks
            like a slip of ours.

    Raises:
        UsageError: an unknown value, an option of another strategy, or a name close to one of ours.
    """
    arguments = {name: _as_given(value) if name in _TEXTS else value for name, value in arguments.items()}
    own = {name: value for name, value in arguments.items() if name in kind.model_fields}
    rest = {name: value for name, value in arguments.items() if name not in own}
    signatures = [inspect.signature(vars(parent)["__init__"]) for parent in parents if "__init__" in vars(parent) and parent is not object]
    known = {name for signature in signatures for name in signature.parameters} - {"self", "args", "kwargs"}
    for name in rest:
        if name in known:
            continue
        if owners := [f"t2-{other.strategy}{other.suffix}" for other in _ALL if name in other.model_fields]:
            raise UsageError(f"model_args: {name!r} is an option of {' and '.join(owners)}, not of t2-{kind.strategy}{kind.suffix}.")
        if difflib.get_close_matches(name, {*kind.model_fields, *known}, n=1, cutoff=0.75):
            raise unknown("option in model_args", name, {*kind.model_fields, *known})
    try:
        return kind(**own), rest
    except ValidationError as error:
        raise _readable(kind, error) from None


def _readable(kind: type[Options], error: ValidationError) -> UsageError:
    first = error.errors()[0]
    name, value = str(first["loc"][0]), first["input"]
    allowed = [choice for choice in _literals(kind.model_fields[name].annotation) if isinstance(choice, str)]
    if allowed and first["type"] == "literal_error":
        return unknown(f"value of model_args {name}", str(value), allowed)
    return UsageError(f"model_args: {name}={shown(value)}: {wrong_value(first)}.")


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in _literals(part)]
