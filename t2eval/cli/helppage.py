"""The help page: docs/cli.md is the commands' own `--help`, so it cannot be wrong.

`python -m t2eval.cli.helppage docs/cli.md` writes it, with `--check` it only says whether it is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from t2eval.cli import main

_WIDTH = 100
_HEAD = """# The commands

Made by `make docs` from the commands' own `--help`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a gate said no, 130 interrupted.
`T2EVAL_DEBUG=1` shows where an unexpected error came from.
"""


def render() -> str:
    """The page."""
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


def run(arguments: list[str]) -> int:
    """Write or check the page; 1 where it is out of date."""
    check = "--check" in arguments
    (path,) = (Path(argument) for argument in arguments if argument != "--check")
    page = render()
    if not check:
        path.write_text(page, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == page:
        return 0
    click.echo(f"{path} is out of date: run `make docs`.", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
