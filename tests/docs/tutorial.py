"""Runs a tutorial: a page of the docs whose commands and files a reader follows word for word.

    python tests/docs/tutorial.py [--installed] docs/first-expert.md …

From top to bottom, in an empty folder: a fenced block with a title is written to that file, a `console` block is run by bash (which stops
at the first command that fails; a `cd` holds for the blocks after it), and the lines of a `text` block right behind it must be in its
output, in their order; `…` in such a line stands for anything. Other blocks are not run. Without `--installed` the commands are this
checkout's.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
_ROOT = Path(__file__).resolve().parents[2]
_PROGRAMS = {"t2": [str(_ROOT / "cli.py")], "lm_eval": ["-m", "lm_eval"], "python": []}


class Failed(Exception):
    """A page does not do what it says."""


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, title (or nothing) and text of each fenced block."""
    yield from _FENCE.findall(page.read_text(encoding="utf-8"))


def of_this_checkout(folder: Path) -> dict[str, str]:
    """An environment whose `t2`, `lm_eval` and `python` are this checkout's; their files are put in `folder`."""
    folder.mkdir(parents=True)
    for name, words in _PROGRAMS.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *words])} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    paths = [str(_ROOT), str(_ROOT / "t2eval" / "bridge")]
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths)}


def missing(expected: str, output: str) -> str | None:
    """The first line of a `text` block that is not in the output behind those before it, or None."""
    at = 0
    for line in expected.splitlines():
        pattern = ".*".join(re.escape(part.strip()) for part in line.split("…"))
        found = re.compile(pattern).search(output, at)
        if not found:
            return line
        at = found.end()
    return None


def run(page: Path, folder: Path, environment: dict[str, str], say: bool = False) -> list[str]:
    """Follow a page in an empty folder.

    Returns:
        The output of each `console` block.

    Raises:
        Failed: if a command fails, or does not print what the page says.
    """
    outputs: list[str] = []
    where, before = folder.resolve(), ""
    for language, title, text in blocks(page):
        if title:
            file = where / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif language == "console":
            began = time.monotonic()
            place = folder / ".place"
            script = f"set -euo pipefail\n{text}\npwd > {shlex.quote(str(place.resolve()))}\n"
            done = subprocess.run(
                ["bash", "-c", script], cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode:
                raise Failed(f"{page.name}: exit code {done.returncode} of\n{text}\n{done.stdout}")
            where = Path(place.read_text(encoding="utf-8").strip())
            place.unlink()
            outputs.append(done.stdout)
            if say:
                print(f"{time.monotonic() - began:6.0f} s  {page.name}: {text.splitlines()[0]}", flush=True)
        elif language == "text" and before == "console" and (line := missing(text, outputs[-1])):
            raise Failed(f"{page.name} says that a command prints\n{line}\nand it printed\n{outputs[-1]}")
        before = language
    if not outputs:
        raise Failed(f"{page} has no console block")
    return outputs


def main() -> int:
    """The command above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--installed", action="store_true", help="the t2 and lm_eval on the PATH, and not this checkout's")
    arguments = parser.parse_args()
    for page in arguments.pages:
        with tempfile.TemporaryDirectory(prefix="t2eval-tutorial-") as scratch:
            environment = dict(os.environ) if arguments.installed else of_this_checkout(Path(scratch, "bin"))
            folder = Path(scratch, "work")
            folder.mkdir()
            try:
                run(page, folder, environment, say=True)
            except Failed as failure:
                print(failure, file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
