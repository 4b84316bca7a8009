"""Commands about experts: list, show, mix, vectors, import, export, push, pull."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from t2eval.cli.settings import FILE, FOLDER
from t2eval.errors import UsageError


def _quiet() -> None:
    """Keep other libraries' bars and warnings out of what the command says; they are imported by then."""
    from t2eval.environment.quiet import quiet_libraries

    quiet_libraries()


@click.group()
def expert() -> None:
    """List, show, mix, convert and share experts.

    \b
    Examples:
      t2 expert list
      t2 expert show runs/math
      t2 expert mix runs/math runs/code --alphas 0.5,0.5 --output runs/mixed
    """


@expert.command("list")
@click.argument("library", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the experts as JSON.")
def list_(library: str | None, as_json: bool) -> None:
    """List the experts of a LIBRARY (a directory, a place on the hub, or experts joined by +).  [default: the embedded base's]

    \b
    Examples:
      t2 expert list
      t2 expert list runs/library --json
      t2 expert list runs/math+runs/code
      t2 expert list hf://someone/experts
    """
    from t2eval.basemodel.folders import embedded_library_dir

    _quiet()
    from t2eval.expert.library import load_library

    experts = load_library(library or embedded_library_dir(0))
    if as_json:
        click.echo(json.dumps([_summary(item) for item in experts], indent=2))
        return
    width = max((len(item.name) for item in experts), default=4)
    for item in experts:
        summary = _summary(item)
        size = f"{summary['parameters']} parameters"
        click.echo(f"{item.name:<{width}}  {item.label:<10} {size:>17}  {summary['base_model']:<24} {_gain(summary['scores'])}")


def _summary(item: Any) -> dict[str, Any]:
    training = item.card.training
    return {
        "name": item.name,
        "label": item.label,
        "description": item.description,
        "base_model": item.card.base_model.id,
        "parameters": sum(z.numel() for z in item.z.values()),
        "matrices": len(item.z),
        "sha256": item.sha256,
        "task": training.task if training else None,
        "scores": training.model_dump(mode="json")["scores"] if training else {},
    }


def _gain(scores: dict[str, Any]) -> str:
    """`test 0.612 → 0.874 (n=500)`, or the validation split's, or nothing."""
    for split in ("test", "validation"):
        before, after = (scores.get(when, {}).get(split) for when in ("before", "after"))
        if after:
            start = f"{before['score']:.3f} → " if before else ""
            return f"{split} {start}{after['score']:.3f} (n={after['n']})"
    return "no scores recorded"


@expert.command()
@click.argument("path", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the whole card as JSON.")
def show(path: Path, as_json: bool) -> None:
    """Show one expert: what it is for, its base model, how it was trained, its scores.

    \b
    Examples:
      t2 expert show runs/math
      t2 expert show runs/math --json
    """
    from t2eval.expert.expert import Expert

    item = Expert.load(path)
    card = item.card.model_dump(mode="json")
    if as_json:
        click.echo(json.dumps({**card, "sha256": item.sha256}, indent=2))
        return
    summary = _summary(item)
    lines = {
        "name": item.name,
        "label": item.label,
        "description": item.description,
        "base model": f"{card['base_model']['id']} (revision {card['base_model']['revision'] or 'unknown'})",
        "matrices": f"{summary['matrices']}, {summary['parameters']} parameters, {card['parameterisation']}",
        "sha256": item.sha256,
        "task": summary["task"] or "–",
        "scores": _gain(summary["scores"]),
    }
    for key, value in lines.items():
        click.echo(f"{key + ':':<12} {value}")


@expert.command()
@click.argument("experts", nargs=-1, required=True, type=FOLDER)
@click.option("--alphas", required=True, help="Comma-separated, one for each expert.")
@click.option("--output", required=True, type=FOLDER, help="Directory of the new expert.")
@click.option("--form", type=click.Choice(["paper", "offset"]), default="paper", show_default=True, help="Σ α z, or 1 + Σ α (z - 1).")
@click.option("--name", help="Of the new expert.  [default: the directory's name]")
@click.option("--label", default="mix", show_default=True, help="Skill label.")
@click.option("--description", default="", help="One line for dispatch prompts.  [default: what was mixed]")
@click.option("--model", help="The base model.  [default: the one on the experts' cards]")
def mix(experts: tuple[Path, ...], alphas: str, output: Path, **options: Any) -> None:
    """Mix EXPERTS of one base model into a new expert.

    \b
    Examples:
      t2 expert mix runs/math runs/code --alphas 0.7,0.3 --output runs/mixed
      t2 expert mix runs/math --alphas 0.5 --form offset --output runs/half
    """
    _quiet()
    from t2eval.expert.card import read_card
    from t2eval.expert.library import save_mix

    try:
        numbers = [float(alpha) for alpha in alphas.split(",")]
    except ValueError as error:
        raise UsageError(f"--alphas takes numbers such as 0.7,0.3, not {alphas!r}.") from error
    mixed = save_mix(experts, numbers, output, **options)
    base = mixed.card.base_model.id
    click.echo(f"Saved in {output}: an expert of {base}")
    others = sorted({read_card(path).base_model.id for path in experts} - {base})
    if others and not options["model"]:
        click.echo(
            f"Of the experts some are of {' and '.join(others)}, which has the same language model: the mix has the base of the first one. "
            "--model names another."
        )


@expert.command()
@click.argument("path", type=FOLDER)
@click.option("--label", required=True, help="Skill label, which dispatch chooses.")
@click.option("--description", default="", help="One line for dispatch prompts.")
def label(path: Path, label: str, description: str) -> None:
    """Say how dispatch is to call a PEFT adapter that is used as an expert (`experts=` takes its folder): its card, `t2_adapter.json`.

    \b
    Examples:
      t2 expert label runs/lora-math --label math --description "Word problems with numbers."
    """
    from t2eval.expert.adapter import write_adapter_card

    write_adapter_card(path, label, description)
    click.echo(f"{path} is called {label!r} by dispatch.")


@expert.command()
@click.argument("library")
@click.option("--task", help="The task that it was trained on.  [default: as its card says; an adapter's card does not]")
@click.option("--prompts", "limit", type=click.IntRange(min=1), default=128, show_default=True, help="At most so many of each expert.")
@click.option("--model", help="The base model.  [default: the one on the experts' cards]")
@click.option("--include-path", type=FOLDER, help="A folder of task YAMLs.")
def vectors(library: str, **options: Any) -> None:
    """Write beside each expert of a LIBRARY the vectors of its training prompts, by which t2-nearest finds it (`prompts.safetensors`).

    \b
    Examples:
      t2 expert vectors runs/library
      t2 expert vectors runs/lora-math --task embedded_math_seen --prompts 64
    """
    _quiet()
    from t2eval.strategies.training_prompts import write_prompt_vectors

    for written in write_prompt_vectors(library, **options):
        click.echo(f"{written.path}: {written.prompts} prompts of {written.task}")


@expert.command("import")
@click.argument("file", type=FILE)
@click.option("--output", required=True, type=FOLDER, help="Directory of the expert.")
@click.option("--model", help="The base model that it was trained on.  [default: the embedded base]")
@click.option("--name", help="Of the expert.  [default: the directory's name]")
@click.option("--label", default="imported", show_default=True, help="Skill label.")
@click.option("--description", default="", help="One line for dispatch prompts.")
def import_(file: Path, output: Path, **options: Any) -> None:
    """Convert a `.pt` FILE of the paper's reference implementation. Nothing in it is executed.

    \b
    Examples:
      t2 expert import learned_params.pt --model meta-llama/Meta-Llama-3-8B-Instruct --label math --output runs/math
    """
    _quiet()
    from t2eval.expert.import_sakana import import_sakana

    import_sakana(file, output, **options)
    click.echo(f"Saved in {output}")


@expert.command()
@click.argument("path")
@click.option("--merged", is_flag=True, help="Merge it into the weights: exact, a whole model.")
@click.option("--lora", "rank", type=int, metavar="RANK", help="A LoRA adapter of this rank: the best approximation there is.")
@click.option("--energy", type=float, metavar="SHARE", help="The same, of the smallest rank that keeps this share.")
@click.option("--output", required=True, type=FOLDER, help="A new folder.")
@click.option("--model", help="The base model.  [default: the one on the expert's card]")
@click.option("--check", "task", metavar="TASK", help="Score the base, the whole expert and the adapter on this lm-eval task.")
@click.option("--limit", type=click.IntRange(min=1), help="Documents of the task.  [default: all]")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1), help="For --check.")
@click.option("--include-path", type=FOLDER, help="For --check: a folder of task YAMLs.")
@click.option("--apply-chat-template", is_flag=True, help="For --check.")
@click.option("--json", "as_json", is_flag=True, help="Print what an adapter keeps and scores as JSON.")
def export(path: str, merged: bool, output: Path, model: str | None, as_json: bool, **options: Any) -> None:
    """Write the expert in PATH for other programs: merged into its base model, or as a PEFT LoRA adapter.

    A merged model is exact, and a plain Hugging Face model for vLLM, SGLang or transformers. A LoRA adapter is an approximation, for
    servers that take one adapter a request; PATH may then be a library, of which each expert becomes a folder of OUTPUT. What an
    adapter keeps, and the servers' command lines, are printed.

    \b
    Examples:
      t2 expert export runs/math --merged --output runs/math-model
      t2 expert export runs/math --lora 16 --output runs/math-lora --check t2_gsm8k --limit 200
      t2 expert export runs/library --energy 0.9 --output runs/adapters
    """
    _quiet()
    rank, energy, task = options.pop("rank"), options.pop("energy"), options.pop("task")
    if sum((merged, rank is not None, energy is not None)) != 1:
        raise UsageError("Give one of --merged, --lora RANK and --energy SHARE.")
    if task is None and any(options[name] for name in ("limit", "include_path", "apply_chat_template")):
        raise UsageError("--limit, --include-path and --apply-chat-template are about --check TASK, which is not given.")
    if not merged:
        _export_lora(path, output, {"rank": rank, "energy": energy, "model": model}, task, options, as_json)
        return
    if task is not None or as_json:
        raise UsageError("--check and --json are about LoRA adapters: a merged model is exact.")
    from t2eval.expert.export import export_merged

    click.echo(f"Saved in {export_merged(path, output, model=model)}")


def _export_lora(path: str, output: Path, wanted: dict[str, Any], task: str | None, options: dict[str, Any], as_json: bool) -> None:
    from t2eval.cli.exported import lora_lines, lora_summary
    from t2eval.expert.lora import export_lora

    if task is not None:
        from t2eval.bench.adapter_check import check_adapter
        from t2eval.environment.loading import checked_config, make_task_manager

        checked_config(make_task_manager(options["include_path"], task=task), task)  # before anything is written
    made = export_lora(path, output, **wanted)
    checks: list[Any] = []
    if task is not None:
        checks = [check_adapter(each.expert, each.folder, task, model=wanted["model"], **options) for each in made]
    if as_json:
        click.echo(json.dumps(lora_summary(made, checks, wanted["model"]), indent=2))
        return
    for line in lora_lines(made, checks, wanted["model"]):
        click.echo(line)


@expert.command()
@click.argument("path", type=FOLDER)
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make the repository private, if it is made now.")
@click.option("--revision", help="A branch, made if it does not exist.  [default: the main one]")
@click.option("--base-model", help="The base model's name on the Hub, for the card.  [default: as the expert has it, without folders]")
@click.option("--include-path", help="A further folder of task YAMLs, in which to look for the data sets of the experts' tasks.")
@click.option("--dry-run", is_flag=True, help="Only print the files and their sizes.")
@click.option("--json", "as_json", is_flag=True, help="Print the files, and where they went, as JSON.")
def push(
    path: Path,
    repository: str,
    private: bool,
    revision: str | None,
    base_model: str | None,
    include_path: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload an expert, or a library, to a REPOSITORY (owner/name) on the Hugging Face hub.

    The cards lose every path of this machine. A library is one repository, with a folder an expert. Nothing is ever
    deleted on the hub.

    \b
    Examples:
      t2 expert push runs/math someone/math-expert --private
      t2 expert push runs/library someone/experts --dry-run
      t2 expert push runs/library someone/experts --revision v2 --base-model someone/base
    """
    _quiet()
    from t2eval.environment.hub_tasks import hub_data_of
    from t2eval.expert.upload import pack, tasks_of
    from t2eval.expert.upload import push as upload

    parcel = pack(path, repository, base_model=base_model, data=hub_data_of(tasks_of(path), include_path))
    files = {name: len(content) for name, content in sorted(parcel.files.items())}
    for remark in parcel.remarks:
        click.echo(f"Note: {remark}", err=True)
    if not as_json:
        _tell_files(files, "Would upload" if dry_run else "Uploading")
    if dry_run:
        click.echo(json.dumps({"files": files}, indent=2), nl=True) if as_json else None
        return
    done = upload(parcel, repository, private=private, revision=revision)
    if done.others:
        click.echo(f"Note: {repository} holds other experts too, which stay: {', '.join(done.others)}.", err=True)
    if as_json:
        click.echo(json.dumps({"files": files, "place": str(done.location), "others": done.others}, indent=2))
    else:
        click.echo(f"Uploaded: experts={done.location}")


@expert.command()
@click.argument("place")
@click.option("--output", type=FOLDER, help="A new folder for a copy.  [default: they stay in the hub's cache]")
@click.option("--dry-run", is_flag=True, help="Only print the files and their sizes.")
@click.option("--json", "as_json", is_flag=True, help="Print the files, or the folder and the place with its commit, as JSON.")
def pull(place: str, output: Path | None, dry_run: bool, as_json: bool) -> None:
    """Download an expert, or a library, from a PLACE on the hub (hf://owner/name[@revision][/folder]).

    Only files of experts are downloaded, and each expert is checked. `experts=` takes a place as well: it need not be
    pulled first.

    \b
    Examples:
      t2 expert pull hf://someone/experts
      t2 expert pull hf://someone/experts@v2/math --output runs/math
      t2 expert pull hf://someone/experts --dry-run
    """
    _quiet()
    from t2eval.expert import hub

    if dry_run:
        remote, source = hub.listing(place)
        files = {file.path: file.size for file in remote}
        if as_json:
            click.echo(json.dumps({"place": str(source), "files": files}, indent=2))
        else:
            _tell_files(files, f"{source}: would download")
        return
    folder, source = hub.pull(place, output)
    if as_json:
        click.echo(json.dumps({"place": str(source), "folder": str(folder)}, indent=2))
    else:
        click.echo(f"{source}\nis in {folder}")


def _tell_files(files: dict[str, int], verb: str) -> None:
    width = max(map(len, files))
    click.echo(f"{verb} {len(files)} files of {sum(files.values()):,} bytes:")
    for name, size in files.items():
        click.echo(f"  {name:<{width}}  {size:>12,}")
