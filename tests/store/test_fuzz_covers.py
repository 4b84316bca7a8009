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
    "not fuzzed by itself: the reader of the store that it calls is": {
        "bench/inputs.py adapter_facts", "bench/training.py check_settings", "expert/card.py refuse_adapter",
        "expert/upload.py _add_format", "leaderboard/exports/peft_comparison.py _peft_config",
        "leaderboard/exports/peft_comparison.py _record",
    },
    "it cuts the file; the lines are parsed by a function that is fuzzed": {"bench/rows.py repair"},
}  # fmt: skip
"""Why some are not fuzzed: file and function."""

_TRACED = """
import json, sys, tempfile, warnings
from pathlib import Path
from tests.store.fuzz_seeds import seeds
warnings.simplefilter("ignore")
store = tuple(str(Path("t2eval/store", name + ".py").resolve()) for name in %r)
found = set()

def seen(frame, event, argument):
    if event == "call" and frame.f_code.co_filename in store and frame.f_back is not None:
        caller = frame.f_back
        while caller.f_code.co_name.startswith("<"):  # a comprehension or lambda counts as the function that it stands in
            caller = caller.f_back
        found.add((caller.f_code.co_filename, caller.f_code.co_name))

for name, fill in seeds().items():
    folder = Path(tempfile.mkdtemp())
    read = fill(folder)
    sys.setprofile(seen)
    try:
        read()
    finally:
        sys.setprofile(None)
print(json.dumps(sorted(found)))
"""


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


def test_every_reader_is_fuzzed(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _TRACED % (DOOR,)], cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    reached = {(Path(file).relative_to(root).as_posix(), function) for file, function in json.loads(done.stdout.splitlines()[-1])
               if Path(file).is_relative_to(root)}  # fmt: skip
    sites = _sites(root)
    assert len(sites) > 40
    missed = {f"{file.removeprefix('t2eval/')} {function}" for file, function in sites - reached}
    assert missed == set().union(*OTHERS.values()), "add a reader to tests/store/fuzz_seeds.py, or say here why none is needed"
