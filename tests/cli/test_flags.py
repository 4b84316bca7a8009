"""Flags: no message, help text or page advises an option that its command does not have.

A sentence that names a command (`t2 bench … --limit`) is held against that command; another one against all commands together. What a
module passes to an external program is no sentence, and has no blank in it.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from t2eval.cli import main

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_T2 = re.compile(r"\bt2((?: [a-z][a-z-]*)+)")
_LM_EVAL = re.compile(r"(?<!--export )\blm[_-]eval\b")
_PIP = frozenset({"--force-reinstall", "--no-deps", "--target", "--extra-index-url"})
_LAUNCHERS = frozenset(
    {
        "--standalone",
        "--no-python",
        "--no_python",
        "--nproc-per-node",
        "--nproc_per_node",
        "--nnodes",
        "--num_processes",
        "--cpu",
        "--multi_gpu",
        "--config_file",
        "--array",
        "--head",
    }
)
"""Of torchrun, `accelerate launch`, `sbatch` and `ray start`."""
_SERVERS = frozenset(
    {
        "--enable-lora",
        "--lora-modules",
        "--lora-paths",
        "--max-lora-rank",
        "--max-loras",
        "--max-loras-per-batch",
        "--model-path",
    }
)
"""Of `vllm serve` and `sglang.launch_server`."""


def commands(command: click.Command = main, path: str = "t2") -> dict[str, set[str]]:
    """Path of a command → its options."""
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    found = {path: own | ({"--version"} if path == "t2" else set())}
    for name, child in command.commands.items() if isinstance(command, click.Group) else ():
        found |= commands(child, f"{path} {name}")
    return found


@cache
def lm_eval_options() -> frozenset[str]:
    """Of `lm_eval run`, `ls` and `validate`, as lm-eval's own parser has them."""
    from lm_eval._cli import HarnessCLI

    found: set[str] = set()
    parsers = [HarnessCLI()._parser]
    for parser in parsers:
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers.extend(action.choices.values())
    return frozenset(found)


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string of a module that is more than one word; an f-string with … for what is filled in."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        else:
            continue
        if " " in text:
            yield node.lineno, text


def own_options(source: str) -> set[str]:
    """The options that a module declares for its own `python -m`, by argparse or click."""
    return {
        argument.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and (getattr(node.func, "attr", "") in ("add_argument", "option"))
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.startswith("--")
    }


def wrong_flags(text: str, own: set[str], known: dict[str, set[str]]) -> list[str]:
    """The flags in a text that nothing has, or not the command that stands before them in the same line."""
    everything = set().union(*known.values()) | lm_eval_options() | own | _PIP | _LAUNCHERS | _SERVERS
    wrong = []
    joined = re.sub(r"\$\([^)]*\)|^#SBATCH .*$", "…", text.replace("\\\n", " "), flags=re.MULTILINE)
    for line in re.split(r"\n|`|\|", joined):
        for flag in _FLAG.finditer(line):
            before = line[: flag.start()]
            starts = [(match.start(), match) for match in (*_T2.finditer(before), *_LM_EVAL.finditer(before))]
            allowed = everything
            if starts and ". " not in before[max(start for start, _ in starts) :]:
                _, match = max(starts, key=lambda pair: pair[0])
                allowed = options_of(match, known, everything)
            if flag.group() not in allowed:
                wrong.append(f"{before.strip()[-60:]} {flag.group()}")
    return wrong


def options_of(match: re.Match[str], known: dict[str, set[str]], everything: set[str]) -> set[str]:
    """What the command in a text takes; words that merely look like a command stand for every command."""
    if match.re is _LM_EVAL:
        return set(lm_eval_options())
    words = match.group(1).split()
    paths = [" ".join(["t2", *words[:count]]) for count in range(len(words), 0, -1)]
    path = next((path for path in paths if path in known), None)
    return everything if path is None or path == "t2 lm-eval" else known[path]


def modules(root: Path) -> list[Path]:
    return [
        path
        for folder in ("t2eval", "tasks", "benchmarks", "examples")
        for path in sorted((root / folder).rglob("*.py"))
        if not {"tasks", "experts", "configs"} & set(path.relative_to(root).parts[1:])
    ]


def pages(root: Path) -> list[Path]:
    found = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]
    return sorted([*found, *(path for folder in ("tasks", "experts", "configs") for path in (root / folder).rglob("*.md"))])


def test_no_message_advises_a_flag_that_does_not_exist(root: Path) -> None:
    known = commands()
    wrong = []
    read = 0
    for path in modules(root):
        source = path.read_text(encoding="utf-8")
        own = own_options(source)
        for line, text in sentences(source):
            read += "--" in text
            wrong += [f"{path.relative_to(root)}:{line}: {flag}" for flag in wrong_flags(text, own, known)]
    assert read > 50  # the modules are where this test looks for them
    assert not wrong, "\n".join(wrong)


def test_no_page_advises_a_flag_that_does_not_exist(root: Path) -> None:
    known = commands()
    own = {option for path in modules(root) for option in own_options(path.read_text(encoding="utf-8"))}
    wrong = [f"{path.relative_to(root)}: {flag}" for path in pages(root) for flag in wrong_flags(path.read_text("utf-8"), own, known)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("give --allow-nonsense to try it all the same.", ["--allow-nonsense"]),
        ("`t2 bench FILE --steps 3`", ["--steps"]),
        ("`t2 bench FILE --limit 3`", []),
        ("`t2 train-expert --limit 3`", ["--limit"]),
        ("lm_eval --model x --include-path y", ["--include-path"]),
        ("lm_eval --model x --include_path y", []),
        ("t2 tasks path prints it. Then --resume goes on", []),
    ],
)
def test_the_check_sees_a_wrong_flag(text: str, flags: list[str]) -> None:
    assert [found.split()[-1] for found in wrong_flags(text, set(), commands())] == flags
