"""Commands about tasks: the list, and the folder for --include_path."""

from __future__ import annotations

import json
from pathlib import Path

import click

from t2eval.cli.settings import EXISTING_FOLDER
from t2eval.paths import tasks_dir


@click.group(invoke_without_command=True)
@click.option("--include-path", type=EXISTING_FOLDER, help="A folder with task YAMLs of your own: they are listed too, first.")
@click.option("--json", "as_json", is_flag=True, help="Print the tasks as JSON.")
@click.pass_context
def tasks(context: click.Context, include_path: Path | None, as_json: bool) -> None:
    """List t2eval's tasks, their sizes and needs.

    lm-eval's own tasks work too: `lm_eval ls tasks` lists them.

    \b
    Examples:
      t2 tasks
      t2 tasks --json
      t2 tasks --include-path my_tasks
      lm_eval --include_path "$(t2 tasks path)" --tasks embedded_code_seen --model hf …
    """
    if context.invoked_subcommand is not None:
        return
    from t2eval.environment.quiet import quiet_lm_eval

    quiet_lm_eval()
    from t2eval.checks.catalogue import list_tasks

    found = list_tasks(include_path)
    if as_json:
        click.echo(json.dumps([task.as_dict() for task in found], indent=2))
        return
    rows = [("task", "label", "metric", "splits", "needs")]
    for task in found:
        splits = ", ".join(f"{role} {'?' if size is None else size}" for role, size in task.splits.items())
        rows.append((task.name, task.label or "–", task.metric, splits, ", ".join(task.needs) or "nothing"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@tasks.command()
def path() -> None:
    """Print the folder of the task YAMLs.

    \b
    Examples:
      ls "$(t2 tasks path)"
    """
    click.echo(str(tasks_dir()))
