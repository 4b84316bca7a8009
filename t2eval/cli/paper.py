"""The command paper: the paper's tables and figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from t2eval.cli.settings import FOLDER
from t2eval.errors import UsageError


@click.command(epilog="Exit code: 0 done, 1 a cell or training failed: run again, what is finished is kept.")
@click.argument("name", metavar="[ITEM]", required=False)
@click.option("--list", "listed", is_flag=True, help="The items, and what each measures.")
@click.option("--output", type=FOLDER, help="Folder for all results; items share what they have in common in it.")
@click.option(
    "--preset",
    "chosen",
    default="embedded",
    show_default=True,
    help="embedded; smollm2, a real model on a CPU; or, on a GPU, smollm2-whole, paper, paper-mistral-7b, paper-llama3-70b.",
)
@click.option("--quick", is_flag=True, help="Few examples, one seed, short trainings: minutes. Too small to conclude anything.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one a core, at most 8]")
@click.option("--json", "as_json", is_flag=True, help="Print rows and claims as JSON.")
def paper(name: str | None, listed: bool, output: Path | None, chosen: str, quick: bool, workers: int | None, as_json: bool) -> int:
    """Run a table or figure of the paper, or all of them.

    ITEM is one that --list names (table1, figure4, …), or `all`, which writes REPORT.md. An item leaves rows, a table with the paper's
    figures beside ours, tests of what the paper claims, and a picture where it has one. Run the same command again
    to go on after an interruption.

    \b
    Examples:
      t2 paper --list
      t2 paper figure10 --output runs/paper
      t2 paper all --output runs/quick --quick
      t2 paper table1 --output runs/llama --preset paper
    """
    from t2eval.paper.item import item, items

    if listed:
        entries = [{"name": entry.name, "title": entry.title, "measures": entry.measures} for entry in items().values()]
        click.echo(json.dumps(entries, indent=2) if as_json else "\n".join(f"{entry['name']:<9} {entry['title']}" for entry in entries))
        return 0
    if name is None:
        raise UsageError("Which item? `t2 paper --list` names them; `t2 paper all --output DIR` runs all of them.")
    if output is None:
        raise UsageError(f"Where to? `t2 paper {name} --output runs/paper`.")
    from t2eval.paper.presets import preset

    todo = None if name == "all" else [item(name)]
    settings = preset(chosen, quick=quick)
    from t2eval.environment.quiet import quiet_lm_eval
    from t2eval.paper.lab import Lab
    from t2eval.paper.report import REPORT, run_all, run_item

    quiet_lm_eval()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with Lab(output, settings, workers=workers or min(8, cores), say=lambda line: click.echo(line, err=True)) as lab:
        done = run_all(lab) if todo is None else [run_item(todo[0], lab)]
    if as_json:
        found = {entry.item.name: {"rows": entry.result.rows, "claims": [c.model_dump() for c in entry.result.claims]} for entry in done}
        click.echo(json.dumps(found))
    elif name == "all":
        failed = [entry.item.name for entry in done if entry.error]
        click.echo(f"{len(done)} items, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}. Read {output / REPORT}.")
    else:
        click.echo(done[0].markdown)
    if not as_json:
        own = output if todo is None else output / todo[0].name
        shared = [str(folder) for folder in (output / "cells", output / "training") if folder.is_dir()]
        click.echo(f"Files: {own}" + (f"; what items share: {' and '.join(shared)}" if shared else ""))
    return 1 if any(entry.error for entry in done) else 0
