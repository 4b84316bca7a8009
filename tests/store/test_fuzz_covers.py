"""Every place of t2eval that reads a file is one that `make fuzz` damages files of; the others are named here, with the reason."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

from tests.store.test_door import _calls, _sources

DOOR = ("files", "tensors", "digests", "yamls")
OTHERS = {
    "a digest of bytes, whatever they are": {
        "bench/inputs.py _located", "bench/inputs.py files_of", "models/mounts.py _unchanged", "training/checkpoints.py save",
        "workers/cargo.py pack", "workers/cargo.py unpack",
    },
    "bytes that are copied or compared": {
        "bench/shipped.py _copy", "leaderboard/ci.py write_ci", "expert/hub.py pull", "paper/derived.py write_library",
        "workers/cargo.py _content",
    },
    "a file of a package's own": {
        "basemodel/packaged.py _licence", "leaderboard/page/document.py document", "cli/helppage.py run",
        "embedded/pretrain_vlm.py _copy_dispatch",
    },
    "written a moment before": {"basemodel/packaged.py _unpack", "embedded/pretrain_vlm.py save"},
}  # fmt: skip
"""Why some are not fuzzed: file and function."""

_SAMPLED = """
import cProfile, json
from tests.store.fuzz_readers import run
profile = cProfile.Profile()
found = run(160, seed=7, profile=profile)
calls = {(caller.code.co_filename, caller.code.co_name, caller.code.co_firstlineno)
         for caller in profile.getstats() if not isinstance(caller.code, str)
         for called in caller.calls or () if not isinstance(called.code, str) and called.code.co_filename in %r}
print(json.dumps({**found, "calls": sorted(calls)}))
"""
"""One process for two questions, since it takes seconds to make the files: what reads them, and what comes of a sample of damaged ones."""


def _readers() -> set[str]:
    """The names of the door's readers."""
    import importlib

    names: set[str] = set()
    for module in DOOR:
        for name, value in vars(importlib.import_module(f"t2eval.store.{module}")).items():
            if inspect.isfunction(value) and name.startswith(("read_", "parse_", "map_")) or name == "file_digest":
                names.add(name)
    return names


def _sites(root: Path) -> set[tuple[str, str]]:
    """(file, function) of each call of a reader, outside the door."""
    readers, found = _readers(), set()
    for name, tree in _sources(root):
        if name.startswith("t2eval/store/"):
            continue
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for call, _ in _calls_within(tree, function):
                    if call.split(".")[-1] in readers and (call.startswith(("t2eval.store.", "files."))):
                        found.add((name, function.name))
    return found


def _calls_within(tree: ast.Module, function: ast.AST) -> list[tuple[str, ast.Call]]:
    inside = {id(node) for node in ast.walk(function)}
    return [(call, node) for call, node in _calls(tree) if id(node) in inside]


def _named(root: Path, file: str, name: str, line: int) -> tuple[str, str]:
    """(file, function) of a call's place; a comprehension or a lambda counts as the function that it stands in."""
    relative = Path(file).relative_to(root)
    if name.startswith("<"):
        tree = ast.parse((root / relative).read_text(encoding="utf-8"))
        around = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                  and node.lineno <= line <= (node.end_lineno or 0)]  # fmt: skip
        name = max(around, key=lambda node: node.lineno).name if around else name
    return relative.as_posix(), name


def test_every_reader_is_fuzzed_and_a_sample_is_read_or_refused(root: Path) -> None:
    door = tuple(str(root / "t2eval" / "store" / f"{name}.py") for name in DOOR)
    done = subprocess.run([sys.executable, "-c", _SAMPLED % (door,)], cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == {}, found["examples"]
    assert found["read"] and found["refused"]
    reached = {_named(root, *call) for call in found["calls"] if Path(call[0]).is_relative_to(root)}
    sites = _sites(root)
    assert len(sites) > 40
    missed = {f"{file.removeprefix('t2eval/')} {function}" for file, function in sites - reached}
    assert missed == set().union(*OTHERS.values()), "add a reader to tests/store/fuzz_seeds.py, or say here why none is needed"
