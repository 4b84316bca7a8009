"""Commands about benchmarks: bench, leaderboard, demo."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from t2eval.errors import UsageError

GATE = 3


@click.command(epilog="Exit code: 0 every cell worked, 1 one failed (its row says why).")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for rows.jsonl, samples/ and manifest.json.")
@click.option("--executor", default="local", show_default=True, help="Where cells run.")
@click.option("--workers", default=1, show_default=True, help="Processes; each loads the base model once.")
@click.option("--limit", type=int, help="Test examples a task, instead of the file's.")
@click.option("--seeds", help="Comma-separated seeds, instead of the file's.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON, last.")
def bench(file: Path, output: Path, executor: str, workers: int, limit: int | None, seeds: str | None, as_json: bool) -> int:
    """Run the cells of a benchmark FILE.

    Its cells are methods × tasks × seeds. A finished cell is one row. Run the same command again to go on
    after an interruption: finished cells are not repeated.

    \b
    Examples:
      t2 bench experts/benchmarks/embedded.yaml --output runs/embedded
      t2 bench experts/benchmarks/embedded.yaml --output runs/quick --limit 50 --seeds 0 --workers 2
    """
    from t2eval.bench.execute import run
    from t2eval.bench.plan import load_plan

    result = run(
        load_plan(file),
        output,
        executor=executor,
        workers=workers,
        limit=limit,
        seeds=_seeds(seeds),
        progress=lambda progress: click.echo(str(progress), err=True),
    )
    if as_json:
        summary = {"output": str(output), "cells": len(result.rows), "skipped": result.skipped, "failed": len(result.failed)}
        click.echo(json.dumps(summary))
    else:
        click.echo(f"{len(result.rows)} cells, {len(result.failed)} failed. Now: t2 leaderboard {output}")
    return result.exit_code


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds takes numbers such as 0,1,2, not {text!r}.") from error


@click.command(epilog="Exit code: 0, or 3 where --fail-on-regression found a significant one.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["markdown", "json"]), default="markdown", show_default=True, help="Of the output.")
@click.option("--compare", "pair", nargs=2, metavar="A B", help="Test method A against method B on every task instead.")
@click.option(
    "--fail-on-regression",
    "other",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Exit with 3 if a cell is significantly worse than in this other benchmark's folder, or worked there and failed here.",
)
def leaderboard(directory: Path, form: str, pair: tuple[str, str] | None, other: Path | None) -> int:
    """Print a benchmark's scores, errors and tests.

    DIRECTORY is the --output of `t2 bench`.

    \b
    Examples:
      t2 leaderboard runs/embedded
      t2 leaderboard runs/embedded --format json
      t2 leaderboard runs/embedded --compare fewshot lora
      t2 leaderboard runs/new --fail-on-regression runs/main
    """
    from t2eval.bench import report

    if pair and other:
        raise UsageError("--compare and --fail-on-regression answer different questions: give one of them.")
    if pair is None and other is None:
        board = report.leaderboard(directory)
        click.echo(board.to_json() if form == "json" else board.to_markdown(), nl=form == "json")
        return 0
    found = report.compare(directory, *pair) if pair else report.fail_on_regression(directory, other or directory)
    if form == "json":
        click.echo(json.dumps([asdict(item) for item in found], indent=2))
    else:
        for item in found:
            click.echo(str(item))
    if pair:
        return 0
    if form != "json":
        click.echo(f"{len(found)} significant regressions against {other}." if found else f"No significant regression against {other}.")
    return GATE if found else 0


@click.command(epilog="Exit code: 0 every cell worked, 1 one failed (its row says why).")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder for all results.")
@click.option("--full", is_flag=True, help="Train all experts and baselines anew, instead of one expert.")
@click.option("--workers", type=int, help="Processes.  [default: one a core, at most 8]")
@click.option("--limit", type=click.IntRange(min=1), help="Test examples a task.")
@click.option("--seeds", help="Comma-separated: 0 is (partly) trained here, others are shipped.  [default: 0 and all shipped]")
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON.")
def demo(output: Path, full: bool, workers: int | None, limit: int | None, seeds: str | None, as_json: bool) -> int:
    """Train an expert live and benchmark all methods.

    Uses the embedded base model and ends with the leaderboard. Needs no GPU and no network. A demo that was
    interrupted goes on where it stopped.

    \b
    Examples:
      t2 demo
      t2 demo --full --output runs/demo-full
    """
    from t2eval.loading import quiet_lm_eval

    quiet_lm_eval()
    from t2eval.bench.demo import EXAMPLES, run_demo

    done = run_demo(
        output,
        full=full,
        workers=workers,
        limit=limit or EXAMPLES,
        seeds=_seeds(seeds),
        progress=lambda line: click.echo(line, err=True),
    )
    click.echo(done.board.to_json() if as_json else done.to_markdown())
    return done.exit_code
