"""Lmms: what lmms-eval finds by its entry points `lmms_eval.models`: a manifest for each strategy that needs no adaptation examples.

lmms-eval reads the entry point while it makes its own registry, so nothing is imported here before it asks; the classes are in
`lmms_host.py`. t2eval does not need lmms-eval, and does not install it.
"""

from __future__ import annotations

from typing import Any

_HOST = "t2eval.models.lmms_host"
LMMS_MODELS: dict[str, str] = {
    "t2-expert": f"{_HOST}.LmmsExpert",
    "t2-prompt": f"{_HOST}.LmmsPrompt",
    "t2-cls": f"{_HOST}.LmmsCls",
    "t2-nearest": f"{_HOST}.LmmsNearest",
}
"""Name of each model under lmms-eval → path of its class."""


def manifests() -> list[Any]:
    """lmms-eval's own `ModelManifest` of each."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=name, simple_class_path=path) for name, path in LMMS_MODELS.items()]
