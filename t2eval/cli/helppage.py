"""The help pages: what docs/ says of commands and settings is the product's own text, so it cannot be wrong.

`python -m t2eval.cli.helppage docs` writes docs/cli.md, the commands' `--help`, and in docs/training.md the table of settings between its
two marks. With `--check` it only says whether they are up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from t2eval.cli import main
from t2eval.cli.train import train_expert
from t2eval.cli.train_settings import table
from t2eval.store.files import read_text

_WIDTH = 100
_HEAD = """# The commands

Made by `make docs` from the commands' own `--help`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a gate said no, 130 interrupted.
`T2EVAL_DEBUG=1` shows where an unexpected error came from.
"""
_BEGIN, _END = "<!-- the settings: made by `make docs` from TrainConfig -->\n", "<!-- the end of the settings -->\n"


def commands_page() -> str:
    """docs/cli.md."""
    parts = [_HEAD]
    for context in _contexts(main, "t2", None):
        parts.append(f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n")
    return "\n".join(parts)


def _contexts(command: click.Command, name: str, parent: click.Context | None) -> Iterator[click.Context]:
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=_WIDTH, max_content_width=_WIDTH)
    yield context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _contexts(found, child, context)


def training_page(page: str) -> str:
    """docs/training.md with the table of settings as it is now.

    Args:
        page: the page as it stands.

    Raises:
        ValueError: the marks around the table are not in it.
    """
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"The page has lost the marks around the settings: {_BEGIN.strip()} … {_END.strip()}")
    return f"{head}{begin}\n{table(train_expert)}\n\n{end}{tail}"


def run(arguments: list[str]) -> int:
    """Write or check the pages; 1 where one is out of date."""
    parser = argparse.ArgumentParser(prog="python -m t2eval.cli.helppage", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="docs")
    parser.add_argument("--check", action="store_true", help="Say whether the pages are up to date, and write nothing.")
    given = parser.parse_args(arguments)
    training = given.folder / "training.md"
    pages = {given.folder / "cli.md": commands_page(), training: training_page(read_text(training))}
    stale = [path for path, page in pages.items() if not path.is_file() or read_text(path) != page]
    for path in stale:
        if given.check:
            click.echo(f"{path} is out of date: run `make docs`.", err=True)
        else:
            path.write_text(pages[path], encoding="utf-8")
    return 1 if stale and given.check else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
