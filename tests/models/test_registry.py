"""The registry: a strategy is one entry, from which lm-eval's model and the benchmark's method follow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2eval.errors import UsageError
from t2eval.models import registry

_TOY = """
from lm_eval.models.huggingface import HFLM
from t2eval.models.fixed import Fixed


class T2Half(Fixed, HFLM):
    '''The expert of the task's skill, at half of its strength.'''

    def scale(self, key):
        return {path: 1 + (z - 1) / 2 for path, z in super().scale(key).items()}
"""
_RUN = """
import json
from t2eval.models import registry
registry.STRATEGIES["half"] = registry.Entry("half of an expert", "toy:T2Half")
from t2eval.bench.config import METHODS, parse_config
from t2eval.models.plugin import activate
activate()
import lm_eval
from t2eval.environment.loading import make_task_manager
manager = make_task_manager(task="embedded_math_seen")
parse_config({"tasks": ["embedded_math_seen"], "methods": ["half"]})
found = lm_eval.simple_evaluate("t2-half", tasks=["embedded_math_seen"], limit=2, batch_size=2, device="cpu", task_manager=manager)
print(json.dumps({"methods": METHODS, "t2": found["config"]["t2"]["strategy"], "scores": found["results"]["embedded_math_seen"]}))
"""


def test_a_new_strategy_is_one_file_and_one_entry(root: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(_TOY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", _RUN], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "half" in found["methods"]
    assert any(isinstance(score, float) for score in found["scores"].values())


def test_every_entry_has_its_classes() -> None:
    for name, entry in registry.STRATEGIES.items():
        assert registry.strategy_class(name).__module__ == entry.text.partition(":")[0]
        assert registry.strategy_class(name, with_images=True).__module__ == "t2eval.models.images"
    assert registry.lm_eval_models()["t2-cls-vlm"] == "t2eval.models.images:T2ClsVlm"


def test_an_unknown_strategy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Unknown strategy 'promt'. Did you mean 'prompt'"):
        registry.strategy_class("promt")
    monkeypatch.setitem(registry.STRATEGIES, "words", registry.Entry("x", "t2eval.models.text:T2Expert"))
    with pytest.raises(UsageError, match="Unknown strategy for images 'words'"):
        registry.strategy_class("words", with_images=True)
    assert "t2-words-vlm" not in registry.lm_eval_models()
