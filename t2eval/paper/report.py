"""Report: an item's files, and REPORT.md, which a reader of the paper goes through table by table.

<output>/<item>/rows.jsonl    what was measured
<output>/<item>/claims.json   what the paper says, with the tests
<output>/<item>/table.md      the table, the sentence in words, the notes
<output>/<item>/figure.png    the picture, where the item has one
<output>/<item>/error.txt     the traceback, where the item met an error that nobody foresaw
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error
from t2eval.leaderboard.report import LATENT_SKILL
from t2eval.paper.claims import sentence
from t2eval.paper.item import Item, Result, Unavailable, of_preset
from t2eval.paper.lab import Lab
from t2eval.paper.markdown import NONE, beside, table
from t2eval.paper.style import picture
from t2eval.paths import EMBEDDED
from t2eval.store.files import DiskError, write_bytes, write_json, write_text
from t2eval.store.versions import lost_commits

REPORT = "REPORT.md"
ROWS, CLAIMS, TABLE, FIGURE, ERROR = "rows.jsonl", "claims.json", "table.md", "figure.png", "error.txt"


@dataclass(frozen=True)
class Done:
    """An item that has been run. `seconds` are of this session.

    There is no result where `error` says why it failed, or `left_out` why the preset cannot run it.
    """

    item: Item
    result: Result
    markdown: str
    seconds: float
    error: str | None = None
    left_out: str | None = None


def render(item: Item, result: Result, lab: Lab) -> str:
    """An item's part of the report."""
    paper = item.reported
    parts = [_head(item), item.measures]
    if paper.text:
        parts.append(f"The paper: {paper.text}")
    parts.append(table(beside(item.ours(result), paper.columns, paper.model)))
    parts += [f"The paper's figures for {model}:\n\n{table(columns)}" for model, columns in paper.others.items()]
    if item.draw is not None:
        parts.append(f"![{item.title}]({FIGURE})")
    parts.append(f"**In words.** {sentence(result.claims)}")
    notes = [*(f"- {note}" for note in result.notes), _preset_note(lab), *(f"- A slip in the paper: {slip}" for slip in paper.slips)]
    parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def _preset_note(lab: Lab) -> str:
    return f"- This is {lab.preset.describe()}."


def _name(item: Item) -> str:
    return item.name.replace("table", "Table ").replace("figure", "Figure ")


def _head(item: Item) -> str:
    return f"## {_name(item)}. {item.title}"


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
        if (reason := lab.preset.left_out.get(item.name)) is not None:
            raise Unavailable(f"{item.name} is not carried by the preset {lab.preset.name!r}: {reason}")
        lab.say(f"{item.name}: {item.title}")
        result = item.run(lab)
        text = render(item, result, lab)
        _write(item, result, text, lab.output / item.name)
    return Done(item, result, text, time.perf_counter() - started)


def _write(item: Item, result: Result, text: str, folder: Path) -> None:
    try:
        write_text(folder / ROWS, "".join(json.dumps(row) + "\n" for row in result.rows))
        claims = [{**claim.model_dump(), "verdict": claim.verdict} for claim in result.claims]
        write_json(folder / CLAIMS, claims)
        if item.draw is not None:
            picture(folder / FIGURE, lambda figure: item.draw(result, figure) if item.draw else None, item.size)
        write_text(folder / TABLE, text)
        (folder / ERROR).unlink(missing_ok=True)  # of an earlier session
    except OSError as error:
        raise T2Error(
            f"Could not write to {folder}: {error.strerror or error}. Free some space, then run the same command again."
        ) from error


def run_all(lab: Lab, chosen: Sequence[Item] | None = None) -> list[Done]:
    """Run items one after the other and write REPORT.md after each, so that an interrupted run leaves a report of what is finished.

    An item that fails, or that the preset cannot run, is named in the report, and the others go on. An error that is no `T2Error` is one
    of ours: it is named with its type, and its traceback is kept in `<item>/error.txt`.

    Raises:
        T2Error, KeyboardInterrupt: Ctrl-C.
    """
    done: list[Done] = []
    todo = list(chosen) if chosen is not None else of_preset(lab.preset.name)
    for number, item in enumerate(todo, start=1):
        started = time.perf_counter()
        try:
            done.append(run_item(item, lab))
        except Unavailable as reason:
            done.append(Done(item, Result(()), f"{_head(item)}\n\nLeft out: {reason}\n", 0.0, left_out=str(reason)))
        except Exception as error:
            if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
                raise
            told = str(error) if isinstance(error, T2Error) else _unforeseen(error, lab.output, item)
            done.append(Done(item, Result(()), f"{_head(item)}\n\nFAILED: {told}\n", time.perf_counter() - started, told))
        lab.say(f"[{number}/{len(todo)}] {item.name} {_outcome(done[-1], lab)}")
        write_text(lab.output / REPORT, report(lab, done, todo))
    return done


def _unforeseen(error: Exception, output: Path, item: Item) -> str:
    """Keep an error's traceback; returns the error in a line that says where."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    try:
        write_bytes(output / item.name / ERROR, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
    except DiskError as full:
        return f"{line} (its traceback could not be written: {full})"
    return f"{line} (traceback: {item.name}/{ERROR})"


def _outcome(entry: Done, lab: Lab) -> str:
    """What became of an item, with its seconds: of this session, and of all where it was begun in an earlier one."""
    if entry.left_out:
        return f"left out: {entry.left_out}"
    if entry.error:
        return f"FAILED after {entry.seconds:.0f} s: {entry.error}"
    total = lab.clock.seconds(entry.item.name)
    return f"done in {entry.seconds:.0f} s" + (f" ({total:.0f} s in all sessions)" if total > entry.seconds + 1 else "")


def report(lab: Lab, done: Sequence[Done], todo: Sequence[Item]) -> str:
    """REPORT.md.

    Args:
        lab: whose results.
        done: the items so far.
        todo: all items of the run.
    """
    run = lab.preset.describe()
    parts = [
        "# The paper, table by table",
        "The tables and figures of Transformer-squared (arXiv 2501.06252), run by `t2 paper all`.",
        f"- {run[0].upper()}{run[1:]}.\n- {_commits(lab.sessions)}.\n- Versions: {_versions(lab.sessions)}.\n"
        f"- Computing took {lab.clock}: wall time over all sessions of this folder. What items share counts where it was first needed.",
        *(["\n".join(f"- {remark}" for remark in lab.preset.remarks)] if lab.preset.remarks else []),
        _READING,
    ]
    if lab.preset.model == EMBEDDED:
        parts.append(LATENT_SKILL)
    missing = [item.name for item in todo[len(done) :]]
    if missing:
        parts.append(f"Not finished yet: {', '.join(missing)}. Run the same command again.")
    parts += [f"FAILED: {entry.item.name}: {entry.error}" for entry in done if entry.error]
    parts += [f"Left out: {entry.item.name}: {entry.left_out}" for entry in done if entry.left_out]
    return "\n\n".join([*parts, "## Contents", _contents(done, lab), *(_section(entry, lab) for entry in done)]) + "\n"


def _commits(sessions: Sequence[Mapping[str, Any]]) -> str:
    """The commits that the folder's sessions ran at, each where it came last, so that the report's own one ends the list.

    Those that the checkout's history has not are counted, not named: nobody could look at them.
    """
    every = list(dict.fromkeys(str(session["commit"] or "unknown") for session in reversed(sessions)))[::-1]
    lost = lost_commits(every)
    found = [commit for commit in every if commit not in lost or commit == every[-1]]
    named = f"Commit {found[0]}" if len(found) == 1 else f"Commits: {', '.join(found)} (the last one wrote this report)"
    if gone := len(every) - len(found):
        named += (
            f"; {gone} further one{'s' if gone > 1 else ''}, of earlier sessions, {'are' if gone > 1 else 'is'} not in the history any more"
        )
    return named


def _versions(sessions: Sequence[Mapping[str, Any]]) -> str:
    """The last session's versions; a package that had others before has them in brackets."""
    parts = []
    for package, version in sessions[-1]["versions"].items():
        earlier = dict.fromkeys(each["versions"][package] for each in sessions if package in each["versions"])
        earlier.pop(version)
        parts.append(f"{package} {version}" + (f" (earlier: {', '.join(earlier)})" if earlier else ""))
    return ", ".join(parts)


_READING = (
    "Columns that begin with `ours` are accuracies from 0 to 1 with the standard error over examples (or what their head says); those that "
    "begin with `paper` are the paper's, as percentages. They are of other models on other tasks, and stand beside ours to be read, not to "
    "be compared number by number: what can be compared is which method is ahead.\n\n"
    "What the paper says is put into claims, each with its effect in the claim's direction, 95% interval, n and corrected p. Where the "
    "paper has figures for both sides, they stand behind the claim, and their order is what is claimed, task by task, also where it is "
    "not what the paper's text says of all tasks. **Supported**: significant, and as the paper has it. **Contradicted**: significant, the "
    "other way round. **Not supported**: the data do not tell. A claim that is counted, not sampled, has what was counted in brackets, "
    "and no p.\n\n"
    "Tests are about new examples of a task, for these training seeds; what seeds differ by is in the rows (`seed_std`), and not in the "
    "tests. Table 8, which has ten draws of adaptation examples, is tested over draws, too."
)


def _section(entry: Done, lab: Lab) -> str:
    """An item's part, with an anchor and the way back; what is said of the preset on top is not said again."""
    text = entry.markdown.replace(f"]({FIGURE})", f"]({entry.item.name}/{FIGURE})").replace(f"{_preset_note(lab)}\n", "")
    return f'<a id="{entry.item.name}"></a>\n\n{text.rstrip()}\n\n[Contents](#contents)'


def _contents(done: Sequence[Done], lab: Lab) -> str:
    """One line an item: a link to it, how many claims our data support, and its seconds."""
    labels = [f"[{_name(entry.item)}](#{entry.item.name}). {entry.item.title}" for entry in done]
    columns: dict[str, dict[str, str]] = {}
    for verdict in ("supported", "not supported", "contradicted"):
        counts = [sum(claim.verdict == verdict for claim in entry.result.claims) for entry in done]
        shown = [NONE if entry.error or entry.left_out else str(count) for entry, count in zip(done, counts, strict=True)]
        columns[verdict] = {**dict(zip(labels, shown, strict=True)), "**all**": f"**{sum(counts)}**"}
    seconds = [lab.clock.seconds(entry.item.name) for entry in done]
    states = ["failed" if e.error else "left out" if e.left_out else f"{spent:.0f}" for e, spent in zip(done, seconds, strict=True)]
    columns["seconds"] = {**dict(zip(labels, states, strict=True)), "**all**": f"**{sum(seconds):.0f}**"}
    return table(columns)
