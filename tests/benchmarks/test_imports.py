"""Every benchmark imports names that there are: no other check reads these scripts."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


def is_there(module: str, name: str) -> bool:
    """Whether a module has a name, or a module of that name in it."""
    found = importlib.import_module(module)
    return hasattr(found, name) or (hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_imports_what_there_is(script: Path) -> None:
    taken = [node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    absent = [
        f"{node.module}.{name.name}"
        for node in taken
        if node.module and node.module.split(".")[0] == "t2eval"
        for name in node.names
        if not is_there(node.module, name.name)
    ]
    assert not absent


def test_the_check_sees_a_name_that_is_gone() -> None:
    assert is_there("t2eval.embedded", "facts") and is_there("t2eval.basemodel.folders", "embedded_library_dir")
    assert not is_there("t2eval.basemodel.load", "embedded_library_dir") and not is_there("t2eval.embedded", "nothing")
