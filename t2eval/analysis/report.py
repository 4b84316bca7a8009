"""Report: an item's files, and REPORT.md, which a reader of the paper goes through table by table.

<output>/<item>/rows.jsonl    what was measured
<output>/<item>/claims.json   what the paper says, with the tests
<output>/<item>/table.md      the table, the sentence in words, the notes
<output>/<item>/figure.png    the picture, where the item has one
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2eval.analysis.claims import Claim, sentence
from t2eval.analysis.item import Item, Result, items
from t2eval.analysis.lab import Lab
from t2eval.analysis.markdown import beside, table
from t2eval.analysis.style import picture
from t2eval.bench.report import LATENT_SKILL
from t2eval.bench.rows import write_atomically
from t2eval.bench.worker import versions
from t2eval.errors import T2Error
from t2eval.resources import EMBEDDED

REPORT = "REPORT.md"
ROWS, CLAIMS, TABLE, FIGURE = "rows.jsonl", "claims.json", "table.md", "figure.png"


@dataclass(frozen=True)
class Done:
    """An item that has been run; `error` says why it could not be finished, and then there is no result. `seconds` are of this session."""

    item: Item
    result: Result
    markdown: str
    seconds: float
    error: str | None = None


def render(item: Item, result: Result, lab: Lab) -> str:
    """An item's part of the report."""
    paper = item.reported
    parts = [f"## {_heading(item.name)}. {item.title}", item.measures]
    if paper.text:
        parts.append(f"The paper: {paper.text}")
    parts.append(table(beside(item.ours(result), paper.columns, paper.model)))
    parts += [f"The paper's figures for {model}:\n\n{table(columns)}" for model, columns in paper.others.items()]
    if item.draw is not None:
        parts.append(f"![{item.title}]({FIGURE})")
    parts.append(f"**In words.** {sentence(result.claims)}")
    notes = [*result.notes, f"This is {lab.preset.describe()}.", *(f"A slip in the paper: {slip}" for slip in paper.slips)]
    parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _heading(name: str) -> str:
    return name.replace("table", "Table ").replace("figure", "Figure ")


def run_item(item: Item, lab: Lab) -> Done:
    """Run an item and write its files.

    Args:
        item: which.
        lab: where, with what preset. What an earlier run of it finished is not repeated.

    Raises:
        T2Error: a cell or training failed, the disk is full, or Ctrl-C; what is finished stays.
    """
    started = time.perf_counter()
    with lab.clock.running(item.name):
        lab.say(f"{item.name}: {item.title}")
        result = item.run(lab)
        text = render(item, result, lab)
        _write(item, result, text, lab.output / item.name)
    return Done(item, result, text, time.perf_counter() - started)


def _write(item: Item, result: Result, text: str, folder: Path) -> None:
    try:
        write_atomically(folder / ROWS, "".join(json.dumps(row) + "\n" for row in result.rows).encode())
        claims = [{**claim.model_dump(), "verdict": claim.verdict} for claim in result.claims]
        write_atomically(folder / CLAIMS, json.dumps(claims, indent=1).encode() + b"\n")
        if item.draw is not None:
            picture(folder / FIGURE, lambda figure: item.draw(result, figure) if item.draw else None, item.size)
        write_atomically(folder / TABLE, text.encode())
    except OSError as error:
        raise T2Error(
            f"Could not write to {folder}: {error.strerror or error}. Free some space, then run the same command again."
        ) from error


def run_all(lab: Lab, chosen: Sequence[Item] | None = None) -> list[Done]:
    """Run items one after the other and write REPORT.md after each, so that an interrupted run leaves a report of what is finished.

    An item that fails is named in the report, and the others go on.

    Raises:
        T2Error: Ctrl-C.
    """
    done: list[Done] = []
    todo = list(chosen) if chosen is not None else list(items().values())
    for number, item in enumerate(todo, start=1):
        started = time.perf_counter()
        try:
            done.append(run_item(item, lab))
        except T2Error as error:
            if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
                raise
            text = f"## {_heading(item.name)}. {item.title}\n\nFAILED: {error}\n"
            done.append(Done(item, Result(()), text, time.perf_counter() - started, str(error)))
        outcome = f"FAILED after {done[-1].seconds:.0f} s: {done[-1].error}" if done[-1].error else f"done in {_timed(done[-1], lab)}"
        lab.say(f"[{number}/{len(todo)}] {item.name} {outcome}")
        write_atomically(lab.output / REPORT, report(lab, done, todo).encode())
    return done


def _timed(entry: Done, lab: Lab) -> str:
    """An item's seconds: of this session, and of all where it was begun in an earlier one."""
    total = lab.clock.seconds(entry.item.name)
    return f"{entry.seconds:.0f} s" + (f" ({total:.0f} s in all sessions)" if total > entry.seconds + 1 else "")


def report(lab: Lab, done: Sequence[Done], todo: Sequence[Item]) -> str:
    """REPORT.md.

    Args:
        lab: whose results.
        done: the items so far.
        todo: all items of the run.
    """
    commit = git_commit()
    made = ", ".join(f"{package} {version}" for package, version in versions().items())
    parts = [
        "# The paper, table by table",
        f"Made by `t2 paper all` ({lab.preset.describe()}), commit {commit or 'unknown'}; {made}.",
        f"Computing took {lab.clock}: wall time of all items, over all sessions of this folder. An item that finds what an earlier one "
        "computed takes little.",
        "The paper's figures are of other models on other tasks: they stand beside ours to be read, not to be compared number by number. "
        "Ours are accuracies from 0 to 1 with the standard error over examples; the paper's are percentages.",
    ]
    if lab.preset.model == EMBEDDED:
        parts.append(LATENT_SKILL)
    missing = [item.name for item in todo[len(done) :]]
    if missing:
        parts.append(f"Not finished yet: {', '.join(missing)}. Run the same command again.")
    parts += [f"FAILED: {entry.item.name}: {entry.error}" for entry in done if entry.error]
    parts.append(_overview(done, lab))
    body = [entry.markdown.replace(f"]({FIGURE})", f"]({entry.item.name}/{FIGURE})").rstrip() for entry in done]
    return "\n\n".join([*parts, *body]) + "\n"


def _overview(done: Sequence[Done], lab: Lab) -> str:
    """One line an item: how many of the paper's claims our data support."""

    def count(verdict: str) -> Callable[[Sequence[Claim]], str]:
        return lambda claims: str(sum(claim.verdict == verdict for claim in claims))

    labels = {entry.item.name: f"{_heading(entry.item.name)}. {entry.item.title}" for entry in done}
    columns: dict[str, dict[str, str]] = {}
    for verdict in ("supported", "not supported", "contradicted"):
        columns[verdict] = {labels[entry.item.name]: count(verdict)(entry.result.claims) for entry in done}
    columns["seconds"] = {labels[entry.item.name]: f"{lab.clock.seconds(entry.item.name):.0f}" for entry in done}
    return table(columns)


def git_commit() -> str | None:
    """The commit of the checkout that t2eval runs from, with `+changes` where files differ from it; None where it is installed."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
        changes = subprocess.run(
            [*here, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip()[:12] + ("+changes" if changes.stdout.strip() else "")
