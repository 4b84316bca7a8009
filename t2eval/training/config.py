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

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from t2eval.environment.loading import task_has_images
from t2eval.errors import T2Error, UsageError, unknown

Method = Literal["svf", "lora", "ia3", "dora"]
Objective = Literal["reinforce", "supervised"]

_EMBEDDED: dict[str, Any] = {"batch_size": 64, "clip": 1.0, "kl": 0.1, "baseline": "batch_mean", "steps": 100, "validate_every": 10}
_EMBEDDED_RATES = {
    ("svf", "reinforce"): 4e-3,
    ("svf", "supervised"): 1e-2,
    ("lora", "reinforce"): 5e-4,
    ("lora", "supervised"): 2e-3,
    ("dora", "reinforce"): 5e-4,
    ("dora", "supervised"): 2e-3,
    ("ia3", "reinforce"): 4e-3,
    ("ia3", "supervised"): 1e-2,
}
_WITH_IMAGES: dict[str, Any] = {"model": "embedded-vlm", "layers": "half", "wrong_reward": -0.1}
_PAPER: dict[str, Any] = {"batch_size": 256, "baseline": "none", "steps": 200, "validate_every": 10}
_PAPER_SVF: dict[str, Any] = {"lr": 2e-3, "clip": 1e-3, "kl": (0.0, 0.1, 0.2, 0.3)}
_LENGTH = {"steps", "max_seconds"}
_MAY_CHANGE = {*_LENGTH, "save_every", "keep_checkpoints", "test", "test_limit", "eval_batch_size"}
_PAPER_ADAPTER: dict[str, Any] = {"lr": (2e-4, 5e-4, 2e-5, 5e-5, 2e-6, 5e-6), "clip": (1e-3, 1.0), "kl": 0.0}


def _preset(name: str, method: str, objective: str) -> dict[str, Any]:
    if name == "paper":
        return {**_PAPER, **(_PAPER_SVF if method == "svf" else _PAPER_ADAPTER)}
    chosen = {**_EMBEDDED, "lr": _EMBEDDED_RATES[method, objective]}
    if (method, objective) == ("svf", "reinforce"):
        chosen["clip"] = 1e-3
    return chosen


class TrainConfig(BaseModel):
    """One training run. A field that is a list (`lr`, `clip`, `kl`) is swept, and validation chooses.

    Attributes:
        task: lm-eval task name; its training split teaches, its validation split chooses, its test split is only scored.
        output: the directory of the expert (svf) or PEFT adapter (lora, ia3, dora).
        model: Hugging Face name or path; None: the embedded base model, or the embedded vision-language one for a task with images.
        method: what is trained.
        objective: `reinforce` (the paper's eq. 1) or `supervised` (next token on the gold answer).
        modules: `all`, `mlp`, `attention`, or module path endings; None: the method's own (svf: all; the others: PEFT's for the model).
        layers: `all`, `half`, a range `0-15`, or a list `0,3`; for a task with images `half` unless given (as Figure 5 of the paper).
        parameterisation: svf's z: `direct` or `sigmoid-renorm`.
        preset: fills lr, batch size, clip, KL, baseline, steps where they are unset.
        seed: of data order, rollouts, dropout and initial adapters.
        steps: optimiser steps, the length of the learning-rate schedule.
        max_seconds: training ends after the step in which so many seconds (of training, with its validation) have passed. The
            schedule follows whichever of steps and seconds is nearer to its end.
        batch_size: answers (or worked answers) a step.
        rollouts: answers sampled to each prompt; a step has batch_size / rollouts prompts.
        micro_batch: most answers in one forward and backward pass.
        lr, schedule, weight_decay, clip: AdamW with `cosine` or `constant` rate; the gradient norm is clipped to `clip`. Adam does not
            feel a clip that every step reaches: it only evens the steps out.
        kl: coefficient λ of the KL penalty to the base model.
        kl_direction: `new_to_base`: D(new ‖ base), the paper's; `base_to_new`: D(base ‖ new).
        baseline: what is subtracted from the reward: `none`, `batch_mean`, `leave_one_out` (the other rollouts' mean), or
            `group_normalized` (the prompt's mean, and the difference divided by its deviation).
        drop_uniform: prompts whose answers all have the same reward are left out of the step. mask_truncated: so are answers that the limit
            of tokens cut off.
        token_loss: the loss is the mean over the step's tokens; otherwise over its answers, each with the sum over its tokens (the paper).
        importance: weigh tokens by min(ρ, importance_cap), ρ the ratio of the policies that learn and that sampled: `auto`, `always`,
            `never`; auto: where they differ.
        temperature: of the rollouts. greedy: no sampling instead.
        wrong_reward: of a wrong answer; a right one gets 1. For a task with images -0.1 unless given (as Figure 5 of the paper).
        max_new_tokens: shorter rollouts than the task's own limit.
        mask_prompt: supervised: no loss on the prompt's tokens.
        lora_rank, lora_alpha, lora_dropout: of lora and dora (Table 6).
        num_fewshot, apply_chat_template, include_path: as in lm-eval.
        train_limit, validation_limit, test_limit: at most so many examples.
        validate_every, save_every: steps between validations and between checkpoints.
        keep_checkpoints: how many of the latest to keep.
        eval_batch_size: of validation and of the test score; lm-eval reproduces the score with the same `--batch_size`.
        test: score the test split before and after.
        report_to: transformers' loggers: `tensorboard`, `wandb`.
        name, label, description: of the expert; by default the directory's name and the task's `metadata.t2`.
        resume: continue from the last checkpoint in `output`. overwrite: replace what `output` holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    output: Path
    model: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False

    method: Method = "svf"
    objective: Objective = "reinforce"
    modules: str | None = None
    layers: str = "all"
    parameterisation: Literal["direct", "sigmoid-renorm"] = "direct"
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.05, ge=0, lt=1)

    preset: Literal["paper", "embedded"] = "embedded"
    seed: int = Field(0, ge=0)
    steps: int = Field(100, ge=1)
    max_seconds: float | None = Field(None, gt=0)
    batch_size: int = Field(64, ge=1)
    rollouts: int = Field(1, ge=1)
    micro_batch: int = Field(64, ge=1)
    lr: float | tuple[float, ...] = 4e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    clip: float | tuple[float, ...] = 1e-3
    kl: float | tuple[float, ...] = 0.1
    kl_direction: Literal["new_to_base", "base_to_new"] = "new_to_base"
    baseline: Literal["none", "batch_mean", "leave_one_out", "group_normalized"] = "batch_mean"
    drop_uniform: bool = False
    mask_truncated: bool = False
    token_loss: bool = False
    importance: Literal["auto", "always", "never"] = "auto"
    importance_cap: float = Field(2.0, ge=1)
    temperature: float = Field(1.0, gt=0)
    greedy: bool = False
    wrong_reward: float = Field(-1.0, lt=1)
    max_new_tokens: int | None = Field(None, ge=1)
    mask_prompt: bool = True

    num_fewshot: int | None = Field(None, ge=0)
    apply_chat_template: bool = False
    include_path: Path | None = None
    train_limit: int | None = Field(None, ge=1)
    validation_limit: int | None = Field(256, ge=1)
    test_limit: int | None = Field(None, ge=1)
    validate_every: int = Field(10, ge=1)
    save_every: int = Field(10, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    eval_batch_size: int = Field(64, ge=1)
    test: bool = True
    report_to: tuple[str, ...] = ()

    name: str | None = None
    label: str | None = None
    description: str | None = None
    resume: bool = False
    overwrite: bool = False

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
        if preset not in ("paper", "embedded") or (method, objective) not in _EMBEDDED_RATES:
            return given
        defaults = _preset(preset, method, objective)
        if "max_seconds" in given and "steps" not in given:
            defaults["steps"] = 1_000_000
        return {**defaults, **given}

    @field_validator("lr", "clip", "kl", mode="before")
    @classmethod
    def _single_or_sweep(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(float(item) for item in value) if len(value) != 1 else float(value[0])
        return float(value) if isinstance(value, str) else value  # YAML reads 2e-3 as a string

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        for field, least in (("lr", 1e-12), ("clip", 0.0), ("kl", 0.0)):
            if any(value < least for value in self.sweep_values(field)):
                raise ValueError(f"{field}: values must {'be above 0' if field == 'lr' else 'not be negative'}")
        if self.batch_size % self.rollouts:
            raise ValueError(f"batch_size: {self.batch_size} answers cannot be shared by {self.rollouts} rollouts a prompt")
        if self.baseline in ("leave_one_out", "group_normalized") and self.rollouts < 2:
            raise ValueError(f"baseline: {self.baseline} compares the rollouts of one prompt, so rollouts must be 2 or more")
        if self.drop_uniform and self.rollouts < 2:
            raise ValueError("drop_uniform: one answer always agrees with itself, so rollouts must be 2 or more")
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
        """The most answers in one forward and backward pass."""
        return self.micro_batch

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
        try:
            recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise T2Error(f"The recipe {str(path)!r} cannot be read: {error}") from error
        if not isinstance(recipe, dict):
            raise UsageError(f"The recipe {str(path)!r} is not a mapping of settings, such as `task: embedded_math_seen`.")
        return cls(**{**recipe, **{key: value for key, value in overrides.items() if value is not None}})


def changed_setting(before: Mapping[str, Any], now: Mapping[str, Any], *, finished: bool = False) -> str | None:
    """The first setting that would make a resumed run another one, of two sets of `hyperparameters`; None where there is none.

    Args:
        before, now: the run's, and those that are given now.
        finished: the run will not go on, so its length counts too.
    """
    may_change = _MAY_CHANGE - _LENGTH if finished else _MAY_CHANGE
    changed = (name for name in sorted(now.keys() | before.keys()) if now.get(name) != before.get(name))
    return next((name for name in changed if name not in may_change), None)


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
    return UsageError(f"{name + ': ' if name else ''}{problem['msg'].removeprefix('Value error, ')}{given}.")
