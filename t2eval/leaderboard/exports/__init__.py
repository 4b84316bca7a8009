"""Exports: the finished rows of a benchmark in the formats that others read. A format is a module and a line of `EXPORTS`.

What a format asks for and no row has is left out or null, never made up; names of folders of this machine are cut to their last part.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from t2eval.errors import UsageError, unknown
from t2eval.leaderboard.cells import Where
from t2eval.leaderboard.exports.source import Source, source_of_rows
from t2eval.store.files import write_text

EXPORTS = {
    "lm-eval": "t2eval.leaderboard.exports.lm_eval_results",
    "every-eval-ever": "t2eval.leaderboard.exports.every_eval_ever",
    "peft": "t2eval.leaderboard.exports.peft_comparison",
}
"""Format → the module whose `files` makes it."""

Files = Callable[[Source], tuple[dict[str, str], list[str]]]


def export(where: Where, form: str, output: Path, *, organization: str = "unknown") -> tuple[list[Path], list[str]]:
    """Write a benchmark's finished rows in another format.

    Args:
        where: as in `leaderboard`.
        form: of `EXPORTS`.
        output: a new or empty folder.
        organization: who made the rows, where the format says so.

    Returns:
        The files, and what was left out and why, a sentence each.

    Raises:
        UsageError: an unknown format, `output` holds something, or there is nothing to export.
        T2Error: damaged rows or samples.
    """
    if form not in EXPORTS:
        raise unknown("export", form, EXPORTS)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty folder. Choose another --output.")
    source = source_of_rows(where, organization)
    make: Files = importlib.import_module(EXPORTS[form]).files
    contents, notes = make(source)
    if not contents:
        raise UsageError(f"Nothing to export as {form}. {' '.join(notes)}")
    for name, text in contents.items():
        write_text(output / name, text)
    return [output / name for name in contents], [*source.notes, *notes]
