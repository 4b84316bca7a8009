"""Training configuration: every setting of one expert or baseline, shared by YAML recipes and the command line.

A preset fills what is left unset, by method and objective: `paper` has Table 6's figures, `embedded` what suits a model of a million
parameters on a CPU.

Deviations from the paper: (1) rollouts are sampled at temperature 1 unless `greedy` is set (the paper does not say; its implementation
is greedy). (2) The preset `embedded` subtracts the batch's mean reward, which the paper does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from t2eval.environment.loading import task_has_images
from t2eval.errors import UsageError, shown, unknown, wrong_value
from t2eval.store import guard
from t2eval.store.files import read_yaml
from t2eval.training.methods import METHODS, find_method

Objective = Literal["reinforce", "supervised"]
Preset = Literal["paper", "embedded"]
SETTINGS, RECORD = "settings.json", "training.json"
"""What a run leaves in its folder: its settings when it begins, its record when it has ended."""
MOST_AT_ONCE = 64
"""The most answers in one pass where `micro_batch` is `auto`: a GPU is busy with fewer."""

_PRESETS: dict[str, dict[str, Any]] = {
    "embedded": {"batch_size": 64, "clip": 1.0, "kl": 0.1, "baseline": "batch_mean", "steps": 100, "validate_every": 10},
    "paper": {"batch_size": 256, "baseline": "none", "steps": 200, "validate_every": 10},
}
_WITH_IMAGES: dict[str, Any] = {"model": "embedded-vlm", "layers": "half", "wrong_reward": -0.1}
_LENGTH = {"steps", "max_seconds"}
_MEMORY = {"micro_batch", "checkpoint_activations", "eval_batch_size", "keep_base"}
"""What may be another after a run that was out of memory: it changes the order of sums only."""
_MAY_CHANGE = {*_LENGTH, *_MEMORY, "save_every", "keep_checkpoints", "test", "test_limit"}
SEEDS = 2**32
"""Seeds are below this: numpy's generators take no larger ones."""


def _preset(name: str, method: str, objective: str) -> dict[str, Any]:
    own = METHODS[method]
    return {**_PRESETS[name], **(own.paper if name == "paper" else own.embedded[objective])}


class TrainConfig(BaseModel):
    """One training run: every setting with what it means. A field that is a list (`lr`, `clip`, `kl`) is swept; validation chooses."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str = Field(description="lm-eval task: its training split teaches, its validation split chooses, its test split is only scored.")
    output: Path = Field(description="The directory of the expert, or of the PEFT adapter.")
    model: str | None = Field(
        None,
        description="Hugging Face name or path. Default: the embedded base model, or the vision-language one for a task with images.",
    )
    revision: str | None = Field(None, description="The model's Hub revision.")
    dtype: str = Field("auto", description="auto (as stored on a GPU, float32 on a CPU), float32, bfloat16 or float16.")
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, ….")
    trust_remote_code: bool = Field(False, description="Run code that the model's repository brings.")
    gguf_file: str | None = Field(None, description="The name of a GGUF file in the model's folder or repository, which holds the model.")

    method: str = Field("svf", description=f"What is trained: {', '.join(METHODS)}.")
    objective: Objective = Field(
        "reinforce", description="reinforce (right and wrong answers alone, eq. 1) or supervised (next token on the gold answer)."
    )
    modules: str | None = Field(
        None,
        description="all, mlp, attention, or comma-separated endings of module paths. Default: all for svf, PEFT's own for the others.",
    )
    layers: str = Field("all", description="all, half, a range 0-15, or a list 0,3. For a task with images half unless given (Figure 5).")
    parameterisation: Literal["direct", "sigmoid-renorm"] = Field("direct", description="How svf's z is stored: direct or sigmoid-renorm.")
    keep_base: Literal["device", "host"] = Field(
        "device",
        description="svf: where base weights wait while z is merged: device, or host where the device has no room for them twice.",
    )
    lora_rank: int = Field(
        16, ge=1, description="The rank of lora and dora (Table 6); vera, tinylora and loraxs have their own in the preset."
    )
    lora_alpha: float = Field(32, gt=0, description="The scale α of lora and dora (Table 6).")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="The dropout of lora and dora (Table 6).")

    preset: Preset = Field("embedded", description="Fills lr, batch_size, clip, kl, baseline, steps where unset: paper or embedded.")
    seed: int = Field(
        0, ge=0, lt=SEEDS, description="Of the data order, the answers that are sampled, dropout and the adapter's first values."
    )
    steps: int = Field(100, ge=1, description="Optimiser steps, and the length of the learning-rate schedule.")
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="End after the step in which so many seconds of training have passed, validations but the base model's among them. "
        "The schedule follows whichever of steps and seconds is nearer to its end.",
    )
    batch_size: int = Field(64, ge=1, description="Answers (or worked answers) a step, over all processes.")
    rollouts: int = Field(1, ge=1, description="Answers sampled to each prompt; a step has batch_size / rollouts prompts.")
    micro_batch: int | Literal["auto"] = Field(
        "auto",
        description=f"The most answers in one forward and backward pass; auto: as many as memory has room for, {MOST_AT_ONCE} at most.",
    )
    checkpoint_activations: bool = Field(
        False, description="Keep only each layer's input for the backward pass, and compute the rest again: less memory, a third more time."
    )
    sweep: Literal["full", "halving"] = Field(
        "full",
        description="Of lists in lr, clip and kl: full trains every combination to its end; halving stops at an eighth, a quarter and a "
        "half of the steps, and the better half by validation goes on.",
    )
    lr: float | tuple[float, ...] = Field(4e-3, description="AdamW's learning rate.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Of the learning rate: cosine or constant.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    clip: float | tuple[float, ...] = Field(
        1e-3,
        description="The gradient norm is clipped to this; 0: not at all. Adam does not feel a clip that every step reaches.",
    )
    kl: float | tuple[float, ...] = Field(0.1, description="The coefficient λ of the KL penalty to the base model.")
    kl_direction: Literal["new_to_base", "base_to_new"] = Field(
        "new_to_base", description="new_to_base: D(new ‖ base), the paper's; base_to_new: D(base ‖ new)."
    )
    baseline: Literal["none", "batch_mean", "leave_one_out", "group_normalized"] = Field(
        "batch_mean",
        description="What is subtracted from the reward: none (the paper), batch_mean (the step's mean), leave_one_out (the mean of the "
        "prompt's other answers), group_normalized (the mean of the prompt's answers, then divided by their deviation).",
    )
    drop_uniform: bool = Field(False, description="Prompts whose answers all have the same reward are left out of the step.")
    mask_truncated: bool = Field(False, description="Answers that the limit of tokens cut off are left out of the step.")
    token_loss: bool = Field(
        False,
        description="The loss is a mean over the step's tokens; otherwise over its answers, each the sum over its tokens (the paper).",
    )
    importance: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Weigh an answer by how much likelier the policy that learns finds it than the one that spoke (merged weights round): "
        "always, never, or auto: where the two differ enough to matter.",
    )
    importance_cap: float = Field(2.0, ge=1, description="The largest such weight.")
    temperature: float = Field(1.0, gt=0, description="Of the answers that are sampled.")
    greedy: bool = Field(False, description="No sampling: the likeliest answers.")
    wrong_reward: float = Field(
        -1.0, lt=1, description="Of a wrong answer; a right one gets 1. For a task with images -0.1 unless given (Figure 5)."
    )
    max_new_tokens: int | None = Field(None, ge=1, description="Shorter answers than the task's own limit, while training.")
    mask_prompt: bool = Field(True, description="supervised: no loss on the prompt's tokens.")

    num_fewshot: int | None = Field(
        None, ge=0, description="Worked examples in each prompt, as in lm-eval. Default: the task's own number."
    )
    apply_chat_template: bool = Field(False, description="Prompts in the tokenizer's chat template, as in lm-eval.")
    include_path: Path | None = Field(None, description="A further folder of task YAMLs, as in lm-eval.")
    train_limit: int | None = Field(None, ge=1, description="At most so many training examples, a seeded sample.")
    validation_limit: int | None = Field(256, ge=1, description="At most so many validation examples, the same for every seed.")
    test_limit: int | None = Field(None, ge=1, description="At most so many test examples, the first, as `lm_eval --limit`.")
    validate_every: int = Field(10, ge=1, description="Steps between validations.")
    save_every: int = Field(10, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the latest checkpoints to keep.")
    eval_batch_size: int = Field(
        64,
        ge=1,
        description="The most sequences at once in rollouts, validation and test; lm-eval's `--batch_size` for the same test score.",
    )
    test: bool = Field(True, description="Score the test split before and after.")
    report_to: tuple[str, ...] = Field((), description="accelerate's trackers that get each step: tensorboard, wandb, ….")

    name: str | None = Field(None, description="Of the expert. Default: the directory's name.")
    label: str | None = Field(None, description="The skill's label, which dispatch chooses among. Default: the task's metadata.t2.label.")
    description: str | None = Field(None, description="The skill in a line, for dispatch. Default: the task's metadata.t2.description.")
    resume: bool = Field(False, description="Go on from the last checkpoint in output; a run that has not begun begins.")
    overwrite: bool = Field(False, description="Replace what output holds.")

    def __init__(self, **values: Any) -> None:
        """Build and check a configuration.

        Raises:
            UsageError: an unknown or wrong setting, in one message.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(error) from error

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        method, objective, preset = given.get("method", "svf"), given.get("objective", "reinforce"), given.get("preset", "embedded")
        if preset not in _PRESETS or method not in METHODS or objective not in METHODS[method].embedded:
            return given  # the fields' own checks say what is wrong
        defaults = _preset(preset, method, objective)
        if "max_seconds" in given and "steps" not in given:
            defaults["steps"] = 1_000_000
        return {**defaults, **given}

    @field_validator("lr", "clip", "kl", mode="before")
    @classmethod
    def _single_or_sweep(cls, value: Any) -> Any:
        try:
            if isinstance(value, (list, tuple)):
                return tuple(float(item) for item in value) if len(value) != 1 else float(value[0])
            return float(value) if isinstance(value, str) else value  # YAML reads 2e-3 as a string
        except (TypeError, ValueError) as error:
            raise ValueError("takes a number, or a list of numbers to be swept") from error

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        find_method(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        for field, least in (("lr", 1e-12), ("clip", 0.0), ("kl", 0.0)):
            if not self.sweep_values(field):
                raise ValueError(f"{field}: an empty list leaves nothing to train with")
            if any(value < least for value in self.sweep_values(field)):
                raise ValueError(f"{field}: values must {'be above 0' if field == 'lr' else 'not be negative'}")
        if self.batch_size % self.rollouts:
            raise ValueError(f"batch_size: {self.batch_size} answers cannot be shared by {self.rollouts} rollouts a prompt")
        if self.baseline in ("leave_one_out", "group_normalized") and self.rollouts < 2:
            raise ValueError(f"baseline: {self.baseline} compares the rollouts of one prompt, so rollouts must be 2 or more")
        if self.drop_uniform and self.rollouts < 2:
            raise ValueError("drop_uniform: one answer always agrees with itself, so rollouts must be 2 or more")
        if self.sweep == "halving" and self.max_seconds is not None:
            raise ValueError("sweep: halving goes by steps, so give steps in place of max_seconds")
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError(f"micro_batch: {self.micro_batch} is not 1 or more, nor auto")
        if self.resume and self.overwrite:
            raise ValueError("resume: either resume or overwrite")
        return self

    def sweep_values(self, field: str) -> tuple[float, ...]:
        """The values of `lr`, `clip` or `kl`: one, or the list to be swept."""
        value = getattr(self, field)
        return value if isinstance(value, tuple) else (float(value),)

    @property
    def points(self) -> list[TrainConfig]:
        """The single runs of the sweep: every combination of the listed `lr`, `clip` and `kl`."""
        return [
            self.model_copy(update={"lr": lr, "clip": clip, "kl": kl})
            for lr in self.sweep_values("lr")
            for clip in self.sweep_values("clip")
            for kl in self.sweep_values("kl")
        ]

    @property
    def largest_pass(self) -> int:
        """The most answers in one forward and backward pass: `micro_batch`, or what `auto` begins with."""
        return min(self.batch_size, MOST_AT_ONCE) if self.micro_batch == "auto" else int(self.micro_batch)

    @property
    def begun(self) -> bool:
        """Whether `output` holds a run that can be gone on with."""
        return any((self.output / name).exists() for name in (SETTINGS, RECORD))

    def for_task(self) -> TrainConfig:
        """This configuration with what its task changes where nothing was given: a task with images has defaults of its own.

        Raises:
            UsageError, T2Error: no such task, or one that cannot be trained on.
        """
        if not task_has_images(self.task, self.include_path):
            return self
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        return self.model_copy(update={name: value for name, value in _WITH_IMAGES.items() if name not in given})

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the training record keeps: every setting that shapes the result, as JSON values."""
        where = {"output", "device", "include_path", "resume", "overwrite", "report_to", "name", "label", "description"}
        return self.model_dump(mode="json", exclude=where)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> TrainConfig:
        """A recipe file, with settings given on the command line over it.

        Args:
            path: a YAML mapping of this class's fields.
            overrides: further settings; those that are None are ignored.

        Raises:
            T2Error: the file cannot be read.
            UsageError: an unknown or wrong setting.
        """
        recipe = read_yaml(Path(path), what="recipe", remedy="Give a YAML file of settings, such as those in experts/recipes.")
        if not isinstance(recipe, dict):
            raise UsageError(f"The recipe {str(path)!r} is not a mapping of settings, such as `task: embedded_math_seen`.")
        if odd := [key for key in recipe if not isinstance(key, str)]:
            raise UsageError(
                f"The recipe {str(path)!r} has a setting {shown(odd[0])}, whose name is no text. Put the name in quotes, or remove it."
            )
        return cls(**{**recipe, **{key: value for key, value in overrides.items() if value is not None}})


def changed_setting(before: Mapping[str, Any], now: Mapping[str, Any], *, finished: bool = False) -> str | None:
    """The first setting that would make a resumed run another one, of two sets of `hyperparameters`; None where there is none.

    Args:
        before, now: the run's, and those that are given now. What an older version did not have, it did as the defaults do.
        finished: the run will not go on, so its length counts too.
    """
    new = {name: value for name, value in _defaults().items() if name in now}
    return guard.changed_setting({**new, **before}, now, may_change=frozenset(_MAY_CHANGE - _LENGTH if finished else _MAY_CHANGE))


def _defaults() -> dict[str, Any]:
    plain = {name: field.get_default() for name, field in TrainConfig.model_fields.items() if not field.is_required()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def _explained(error: ValidationError) -> UsageError:
    """One message for the first wrong setting, in a user's words."""
    problem = error.errors()[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        return unknown("setting", name, TrainConfig.model_fields)
    if problem["type"] == "missing":
        return UsageError(f"The setting {name!r} is missing.")
    if problem["type"] == "literal_error":
        choices = str(problem.get("ctx", {}).get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")
        return unknown(name, str(problem["input"]), choices)
    given = f" (given: {problem['input']!r})" if name else ""
    return UsageError(f"{name + ': ' if name else ''}{wrong_value(problem)}{given}.")
