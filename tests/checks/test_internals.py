"""What t2eval leans on in other packages: all of it is there, and a release that lacks something is told by name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from lm_eval.api.task import ConfigurableTask, Task
from transformers import GenerationMixin

from t2eval.checks import doctor, internals


def test_all_is_there_and_the_doctor_says_so() -> None:
    assert internals.absent() == []
    check = doctor._internals()
    assert check.status == "ok" and str(internals.count()) in check.detail


def test_a_lost_name_a_lost_argument_and_a_lost_attribute_are_named_with_the_module_that_leans_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(GenerationMixin, "_get_logits_processor")
    monkeypatch.setattr(Task, "build_all_requests", lambda self, limit, samples: None)
    source = internals.inspect.getsource

    def renamed(found: object) -> str:
        text = source(found)
        return text.replace("_aggregation_list", "_aggregations") if found is ConfigurableTask else text

    monkeypatch.setattr(internals.inspect, "getsource", renamed)
    lost = internals.absent()
    assert len(lost) == 3
    one, two, three = sorted(lost, key=lambda line: ("GenerationMixin" in line, "build_all" in line))
    assert re.match(
        r"lm_eval [\d.]+ has no lm_eval\.api\.task\.ConfigurableTask~_aggregation_list or .*t2eval/environment/harness\.py", one
    )
    assert "Task.build_all_requests(" in two and two.endswith("on which t2eval/environment/runs.py leans")
    assert re.match(r"transformers [\d.]+ has no .*_get_logits_processor.*, on which t2eval/generation/choosing\.py leans", three)
    check = doctor._internals()
    assert check.status == "missing" and one in check.detail and "constraints.txt" in check.remedy


OURS = {"_asdict", "_replace", "_folder", "_number", "_exit", "_getframe", "_answer"}


def test_each_private_name_that_is_used_stands_in_the_table(root: Path) -> None:
    """By the syntax trees of the rooms that reach into others: a new private name must be entered."""
    table = " ".join(need for users in internals.INTERNALS.values() for needs in users.values() for need in needs)
    known = set(re.findall(r"\w+", table)) | OURS
    missing = set()
    for folder in ("environment", "generation", "models", "strategies", "training", "bench", "basemodel", "grading", "vision"):
        for file in (root / "t2eval" / folder).rglob("*.py"):
            tree = ast.parse(file.read_text())
            made = {name.attr for name in ast.walk(tree) if isinstance(name, ast.Attribute) and _is_own(name.value)}
            made |= {name.name for name in ast.walk(tree) if isinstance(name, ast.FunctionDef)}
            for name in ast.walk(tree):
                if isinstance(name, ast.Attribute) and re.match(r"_[a-zA-Z]", name.attr) and not _is_own(name.value):
                    missing |= {f"{file.relative_to(root)}: {name.attr}"} if name.attr not in known | made else set()
    assert missing == set()


def _is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def test_the_table_names_modules_that_exist_and_speak_of_what_they_need(root: Path) -> None:
    for users in internals.INTERNALS.values():
        for user, needs in users.items():
            text = (root / "t2eval" / user).read_text()
            for need in needs:
                last = {re.split(r"[.~]", form.partition("(")[0])[-1] for form in need.split(" | ")}
                assert any(word in text for word in last) or user in ("environment/harness.py", "training/adapters.py"), (user, need)
