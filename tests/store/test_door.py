"""One door: files are opened and parsed in t2eval.store alone, and nothing anywhere is unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ELSEWHERE = {
    "t2eval/basemodel/devices.py": {"read_text"},  # /proc and /sys, which the kernel writes
    "t2eval/bench/memory.py": {"read_text"},
    "t2eval/checks/preflight.py": {"read_text"},
    "t2eval/grading/checker.py": {"open", "json.loads"},  # a process of its own: /proc, and lines of a pipe
    "t2eval/grading/mathematics.py": {"json.loads"},  # the other end of it
    "t2eval/sandbox/jail.py": {"json.loads"},  # a pipe
    "t2eval/sandbox/channel.py": {"json.loads"},  # runs alone, without t2eval
    "t2eval/sandbox/isolation.py": {"read_text"},  # the source of that
    "t2eval/cli/__init__.py": {"open"},  # a stream that was closed, as /dev/null
    "t2eval/expert/machine_paths.py": {"json.loads"},  # of a text that was read
    "t2eval/paper/key.py": {"json.loads"},  # of what was dumped a moment before
    "t2eval/basemodel/packaged.py": {"open"},  # a lock file, written only
    "t2eval/leaderboard/page/document.py": {"open"},  # the first bytes of a regular file, whether it is a page
    "t2eval/workers/processes.py": {"open"},  # a log, written only
    "t2eval/workers/ray_pool.py": {"open"},  # the same log
}
"""File → what it may use beside the door."""
READS = {"open", "read_text", "read_bytes", "json.load", "json.loads", "yaml.load", "yaml.safe_load", "gzip.open", "gzip.GzipFile"} | {
    "gzip.decompress", "zlib.decompress", "load_file", "safe_open", "csv.reader", "csv.DictReader", "numpy.load", "np.load",
    "safetensors.torch.load",
}  # fmt: skip
UNPICKLES = {"torch.load", "numpy.load", "np.load", "joblib.load", "pandas.read_pickle", "pd.read_pickle", "marshal.loads", "marshal.load"}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}


def _sources(root: Path) -> Iterator[tuple[str, ast.Module]]:
    files = [root / "cli.py", *(root / "t2eval").rglob("*.py"), *(root / "tasks").rglob("*.py")]
    for file in files:
        name = file.relative_to(root).as_posix()
        if not name.startswith(("t2eval/tasks/", "t2eval/experts/", "t2eval/configs/")):  # links to folders of the top level
            yield name, ast.parse(file.read_text(encoding="utf-8"))


def _calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Calls by `module.name` where the module is named, else by the last name, imports' other names undone."""
    renamed = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            renamed |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            renamed |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            yield renamed.get(node.func.id, node.func.id), node
        elif isinstance(node.func, ast.Attribute):
            value = node.func.value
            yield f"{renamed.get(value.id, value.id)}.{node.func.attr}" if isinstance(value, ast.Name) else node.func.attr, node


def _reads(name: str) -> str | None:
    """Which of `READS` a call is; those of the door itself are none."""
    if (
        name.startswith(("t2eval.store.", "files."))
        or name.split(".")[-1] == "open"
        and name.startswith(("os.", "Image.", "PIL.", "worker."))
    ):
        return None
    return name if name in READS else next((read for read in READS if "." not in read and name.split(".")[-1] == read), None)


def test_files_are_read_through_the_store(root: Path) -> None:
    used: dict[str, set[str]] = {}
    for name, tree in _sources(root):
        if name.startswith("t2eval/store/"):
            continue
        found = {read for call, _ in _calls(tree) if (read := _reads(call)) is not None}
        if found:
            used[name] = found
    assert used == ELSEWHERE


def test_nothing_is_unpickled(root: Path) -> None:
    loads = []
    for name, tree in _sources(root):
        for node in ast.walk(tree):
            modules = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )  # fmt: skip
            assert not [module for module in modules if module.split(".")[0] in PICKLES], name
        for call, node in _calls(tree):
            if call in UNPICKLES or call.split(".")[0] in PICKLES:
                loads.append((name, call))
                given = {word.arg: ast.literal_eval(word.value) for word in node.keywords if isinstance(word.value, ast.Constant)}
                assert given.get("weights_only") is True, (name, call)
            assert not any(word.arg == "allow_pickle" for word in node.keywords), name
    assert loads == [("t2eval/store/tensors.py", "torch.load")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from safetensors.torch import load_file as x\nx('a')", "load_file"),
        ("import json as j\nj.load(f)", "json.load"),
        ("path.open('rb')", "open"),
        ("(a / b).read_text()", "read_text"),
        ("import yaml\nyaml.safe_load(t)", "yaml.safe_load"),
        ("from t2eval.store.files import read_text\nread_text(p)", None),
    ],
)
def test_the_search_sees(source: str, expected: str | None) -> None:
    assert [_reads(name) for name, _ in _calls(ast.parse(source))] == [expected]
