"""The plug-in's state: is the bridge in this interpreter, and does lm-eval know t2eval's models and tasks.

An installed t2eval is found through its entry points (pyproject.toml). A checkout that is not installed has none, nor has an
interpreter that skips `.pth` files the bridge: `activate` covers both, for the command line's own `t2 lm-eval`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from t2eval.errors import T2Error
from t2eval.models.registry import lm_eval_models
from t2eval.paths import tasks_dir

MODELS = lm_eval_models()
"""Name of each lm-eval model → `module:Class`."""
_NAME = "t2eval_bridge"


def active() -> bool:
    """Whether the bridge was put in place when the interpreter started, by its `.pth` file."""
    bridge = sys.modules.get(_NAME)
    return bridge is not None and bool(bridge.installed())


def activate() -> None:
    """Put the bridge in place now, before lm-eval is imported. Does nothing new where it already is.

    Raises:
        T2Error: lm-eval is imported already, or the bridge is not installed.
    """
    if not active() and "lm_eval.models" in sys.modules:
        raise T2Error("lm-eval was imported before t2eval's plug-in bridge: import t2eval.models.plugin and call activate() first.")
    _load().install(models=MODELS, folders=[str(tasks_dir())])


def _load() -> ModuleType:
    """The bridge module: the installed one, else the checkout's."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    spec = importlib.util.find_spec(_NAME)
    if spec is None:
        spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).resolve().parents[1] / "bridge" / f"{_NAME}.py")
    if spec is None or spec.loader is None or not Path(spec.origin or "").is_file():
        raise T2Error("The plug-in bridge t2eval_bridge.py is not installed. Install t2eval again with pip.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


def registered() -> dict[str, bool]:
    """Name of each of t2eval's models -> whether lm-eval knows it. Imports lm-eval."""
    importlib.import_module("lm_eval.models")
    registry = importlib.import_module("lm_eval.api.registry").model_registry
    return {name: name in registry for name in MODELS}
