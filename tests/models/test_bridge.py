"""The plug-in bridge against small stand-ins for lm-eval and for plug-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_REGISTRY = """
class Registry(dict):
    def register(self, name, target):
        if name in self and self[name] != target:
            raise ValueError(name)
        self[name] = target
model_registry = Registry()
"""
_MODELS = """
from lm_eval.api.registry import model_registry
for name in ("hf", "dummy"):
    if name not in model_registry:
        model_registry.register(name, target=f"lm_eval.models.{name}:Model")
"""
_MANAGER = """
class TaskManager:
    "The manager."
    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.include_path = include_path
        given = include_path if isinstance(include_path, (list, tuple)) else [include_path] if include_path else []
        self.scanned = (["own"] if include_defaults else []) + list(given)
        self.metadata = metadata
"""


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def plugin(folder: Path, name: str, entry_points: str) -> None:
    """An installed distribution that declares entry points."""
    write(folder / f"{name}-1.0.dist-info" / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(folder / f"{name}-1.0.dist-info" / "entry_points.txt", entry_points)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A stand-in lm-eval without discovery, and one good plug-in."""
    for package in ("lm_eval", "lm_eval/api", "lm_eval/models", "lm_eval/tasks"):
        write(tmp_path / package / "__init__.py")
    write(tmp_path / "lm_eval/api/registry.py", _REGISTRY)
    write(tmp_path / "lm_eval/models/__init__.py", _MODELS)
    write(tmp_path / "lm_eval/tasks/manager.py", _MANAGER)
    write(tmp_path / "good/__init__.py")
    write(tmp_path / "good/suite/one.yaml", "task: one\n")
    plugin(tmp_path, "good", "[lm_eval.models]\ngood = good.models:Good\n[lm_eval.tasks]\ngood = good.suite\n")
    return tmp_path


def run(world: Path, root: Path, code: str) -> tuple[Any, str]:
    """What the code's last line printed as JSON, and the standard error. `-S`: no installed bridge or plug-in interferes."""
    environment = {**os.environ, "PYTHONPATH": f"{world}{os.pathsep}{root / 't2eval' / 'bridge'}"}
    program = "import json, sys, t2eval_bridge\nt2eval_bridge.install()\n" + code
    done = subprocess.run([sys.executable, "-S", "-c", program], env=environment, cwd=world, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


_SHOW_MODELS = "import lm_eval.models\nfrom lm_eval.api.registry import model_registry\nprint(json.dumps(model_registry))"
_SHOW_SCAN = """
from lm_eval.tasks.manager import TaskManager
calls = [((), {}), ((None, "theirs"), {}), ((), {"include_path": ["a", "b"], "metadata": {"k": 1}}), ((), {"include_defaults": False})]
managers = [TaskManager(*positional, **named) for positional, named in calls]
print(json.dumps([[m.scanned, m.include_path, m.metadata] for m in managers]))
"""


def test_registers_strings_after_the_built_in_models(world: Path, root: Path) -> None:
    models, errors = run(world, root, _SHOW_MODELS)
    assert list(models) == ["hf", "dummy", "good"]
    assert models["good"] == "good.models:Good"
    assert errors == ""


def test_leaves_names_that_are_taken(world: Path, root: Path) -> None:
    plugin(world, "thief", "[lm_eval.models]\nhf = thief:Model\n")
    models, errors = run(world, root, _SHOW_MODELS)
    assert models["hf"] == "lm_eval.models.hf:Model"
    assert errors == ""


def test_scans_between_own_and_include_path(world: Path, root: Path) -> None:
    suite = str(world / "good" / "suite")
    scans, _ = run(world, root, _SHOW_SCAN)
    assert scans == [
        [["own", suite], None, None],
        [["own", suite, "theirs"], "theirs", None],
        [["own", suite, "a", "b"], ["a", "b"], {"k": 1}],
        [[], None, None],
    ]


def test_a_folder_is_scanned_once(world: Path, root: Path) -> None:
    suite = world / "good" / "suite"
    (world / "link").symlink_to(suite)
    code = "from lm_eval.tasks.manager import TaskManager\nprint(json.dumps(TaskManager(include_path=['link']).scanned))"
    scanned, _ = run(world, root, code)
    assert scanned == ["own", "link"]


def test_steps_aside_where_lm_eval_discovers_by_itself(world: Path, root: Path) -> None:
    write(world / "lm_eval/tasks/manager.py", "from importlib.metadata import entry_points\n" + _MANAGER)
    write(
        world / "lm_eval/models/__init__.py",
        _MODELS + "from importlib.metadata import entry_points\n"
        "for entry in entry_points(group='lm_eval.models'):\n    model_registry.register(entry.name, target='upstream:' + entry.name)\n",
    )
    scans, _ = run(world, root, _SHOW_SCAN)
    assert scans[0][0] == ["own"]
    models, errors = run(world, root, _SHOW_MODELS)
    assert models["good"] == "upstream:good"
    assert errors == ""


def test_broken_plugins_do_not_break_lm_eval(world: Path, root: Path) -> None:
    plugin(world, "broken", "[lm_eval.tasks]\nabsent = absent.suite\nmodule = t2eval_bridge\n")
    scans, errors = run(world, root, _SHOW_SCAN)
    assert scans[0][0] == ["own", str(world / "good" / "suite")]
    assert "'absent' is skipped" in errors
    assert "'module' is skipped" in errors


def test_another_lm_eval_goes_on_without_plugins(world: Path, root: Path) -> None:
    write(world / "lm_eval/api/registry.py", "MODELS = {}\n")
    write(world / "lm_eval/models/__init__.py", "answer = 42\n")
    answer, errors = run(world, root, "import lm_eval.models\nprint(json.dumps(lm_eval.models.answer))")
    assert answer == 42
    assert "plug-ins are not active" in errors


def test_installed_once_and_given_more(world: Path, root: Path) -> None:
    code = """
t2eval_bridge.install(models={"late": "late:Model"}, folders=["late"])
import lm_eval.models
from lm_eval.api.registry import model_registry
from lm_eval.tasks.manager import TaskManager
finders = sum(isinstance(finder, t2eval_bridge.Finder) for finder in sys.meta_path)
print(json.dumps([finders, t2eval_bridge.installed(), model_registry["late"], TaskManager().scanned[-1]]))
"""
    found, _ = run(world, root, code)
    assert found == [1, True, "late:Model", "late"]


def test_other_imports_are_untouched(world: Path, root: Path) -> None:
    code = "spec = t2eval_bridge.Finder().find_spec('json')\nprint(json.dumps(spec))"
    found, _ = run(world, root, code)
    assert found is None
