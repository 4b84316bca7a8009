"""The command train-expert: one expert or baseline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from t2eval.cli.settings import EXISTING_FOLDER, FILE, FOLDER, SEED, parse_settings
from t2eval.cli.train_settings import show_all
from t2eval.errors import T2Error, UsageError
from t2eval.training.methods import METHODS


@click.command("train-expert")
@click.option("--task", help="lm-eval task; its training split teaches, its validation split chooses, its test split is only scored.")
@click.option("--output", type=FOLDER, help="Directory of the expert, or of the PEFT adapter.")
@click.option("--config", "recipe", type=FILE, help="YAML recipe; options given here win over it.")
@click.option("--model", help="Hugging Face name or path.  [default: the embedded base model, or vision-language model]")
@click.option("--method", type=click.Choice(list(METHODS)), help="What is trained.  [default: svf]")
@click.option("--objective", type=click.Choice(["reinforce", "supervised"]), help="How.  [default: reinforce]")
@click.option("--modules", help="all, mlp, attention, or comma-separated endings of module paths.  [default: the method's own]")
@click.option("--layers", help="all, half, a range 0-15, or a list 0,3.  [default: all; for a task with images half]")
@click.option("--preset", type=click.Choice(["paper", "embedded"]), help="Fills what is left unset.  [default: embedded]")
@click.option("--seed", type=SEED, help="Of data order, rollouts and initial adapters.  [default: 0]")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="End after the step in which so many seconds of training have passed.",
)
@click.option("--device", help="auto (a CUDA GPU, else Apple's, else the CPU), cpu, cuda, cuda:1, ….  [default: auto]")
@click.option("--include-path", type=EXISTING_FOLDER, help="A folder with task YAMLs of your own.")
@click.option("--label", help="The skill's label, which dispatch chooses among.  [default: the task's metadata.t2.label]")
@click.option("--description", help="The skill in one line, for dispatch prompts.  [default: the task's metadata.t2.description]")
@click.option("--resume", is_flag=True, default=None, help="Go on from the last checkpoint in --output.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace what --output holds.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting of a recipe, such as lr=4e-3: see --help-all. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, last.")
@click.option(
    "--help-all", is_flag=True, is_eager=True, expose_value=False, callback=show_all, help="Show this message and every setting of --set."
)
def train_expert(recipe: Path | None, settings: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train one expert or baseline on a task.

    Baselines are LoRA, IA3 and DoRA adapters. The reward is the task's own metric.
    The progress bar shows reward, KL, validation score and time left.

    \b
    Examples:
      t2 train-expert --task embedded_code_seen --output runs/code --max-seconds 120
      t2 train-expert --task embedded_math_seen --output runs/lora --method lora --objective supervised
      t2 train-expert --task gsm8k --model Qwen/Qwen2.5-0.5B --preset paper --output runs/gsm8k
      t2 train-expert --config experts/recipes/math.yaml --output runs/math --set lr=2e-3
    """
    from t2eval.training.config import TrainConfig

    given = {key: value for key, value in options.items() if value is not None}
    chosen = parse_settings("--set", settings)
    for key in chosen.keys() & given.keys():
        raise UsageError(f"{key} is set twice, by its option and by --set.")
    given.update(chosen)
    config = TrainConfig.from_yaml(recipe, **given) if recipe else TrainConfig(**given)
    if config.resume and not config.begun:
        raise UsageError(f"There is no training run to resume in {config.output}. Leave --resume out to begin one, or give its directory.")
    from t2eval.environment.quiet import quiet_lm_eval

    quiet_lm_eval()
    from t2eval.checks.preflight import check_training

    for warning in check_training(config):
        click.echo(f"Note: {warning}", err=True)
    # Only now, when the settings are known to be good: this import takes seconds.
    from t2eval.training.train import train_expert as train

    try:
        result = train(config)
    except KeyboardInterrupt:
        where = config.output / "checkpoints"
        raise T2Error(
            f"Interrupted. The last checkpoint, if one was reached, is in {where}: the same command with --resume goes on."
        ) from None
    if int(os.environ.get("RANK", "0")) > 0:
        return  # of several processes the first one speaks
    scores = {when: {split: _plain(score) for split, score in splits.items()} for when, splits in result.scores.items()}
    if as_json:
        summary = {"path": str(result.path), "scores": scores, "comparison": result.comparison, "steps": result.steps}
        click.echo(json.dumps({**summary, "seconds": result.seconds, "trainable_parameters": result.trainable_parameters}))
        return
    for split in scores.get("after", {}):
        before, after = scores.get("before", {}).get(split), scores["after"][split]
        click.echo(f"{split}: {_shown(before)} → {_shown(after)}")
    if result.comparison:
        gained, lost = result.comparison["gained"], result.comparison["lost"]
        click.echo(f"Of the test answers, {gained} became right and {lost} wrong: p = {result.comparison['p_value']:.2g} (McNemar, exact)")
    best = f"step {result.chosen_step} was the best" if result.chosen_step else "no step was better than the base model, which is kept"
    click.echo(f"{result.trainable_parameters} parameters, {result.steps} steps in {result.seconds:.0f} s ({best})")
    click.echo(f"Saved in {result.path}")


def _plain(score: Any) -> Any:
    return score.model_dump() if hasattr(score, "model_dump") else score


def _shown(score: dict[str, Any] | None) -> str:
    if not score:
        return "–"
    error = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    return f"{score['score']:.3f}{error} (n={score['n']})"
