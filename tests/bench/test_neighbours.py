"""Rows beside each other: what differs in what they were made with is named, with both cells and both folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2eval.bench.neighbours import Neighbours, differences
from t2eval.bench.rows import Row
from t2eval.errors import UsageError


def row(method: str = "base", **changes: Any) -> Row:
    return Row(**{"cell": f"m__{method}", "model": "m", "method": method, "task": "t", "seed": 0, "status": "ok", **changes})


KINDS = [
    ({"hashes": {"task": "a"}}, {"hashes": {"task": "b"}}, "two versions of the task t"),
    ({"hashes": {"prompts": "a"}}, {"hashes": {"prompts": "b"}}, "other prompts or documents of t"),
    ({"versions": {"torch": "1"}}, {"versions": {"torch": "2"}}, r"two versions of torch \(1 and 2\)"),
    ({"hashes": {"experts": {"math": "a"}}}, {"hashes": {"experts": {"math": "b"}}}, "two experts named math"),
    ({"hashes": {"adapter": {"lora-math": "a"}}}, {"hashes": {"adapter": {"lora-math": "b"}}}, "two adapters named lora-math"),
]


@pytest.mark.parametrize(("first", "second", "what"), KINDS)
def test_two_folders_are_named_with_what_differs(first: dict[str, Any], second: dict[str, Any], what: str) -> None:
    neighbours = Neighbours(Path("one"), [row("lora", **first)])
    with pytest.raises(UsageError, match=rf"one and two do not belong beside each other: lora on t \(seed 0\).*lora on t.*{what}"):
        neighbours.admit(row("lora", **second), Path("two"))
    neighbours.admit(row("lora", **first), Path("two"))
    neighbours.admit(row("lora", **second | {"status": "failed"}), Path("two"))


@pytest.mark.parametrize(("first", "second", "what"), KINDS)
def test_two_rows_of_a_cell_are_compared(first: dict[str, Any], second: dict[str, Any], what: str) -> None:
    (found,) = differences(row(**first), row(**second))
    assert found.words.startswith(what.replace("\\", ""))
    assert found.kind == ("version" if "versions" in first else {"experts": "expert"}.get(*first["hashes"], next(iter(first["hashes"]))))
    assert differences(row(**first), row(**first)) == differences(row(**first), row()) == []


def test_what_belongs_to_another_task_or_seed_is_not_compared() -> None:
    neighbours = Neighbours(Path("one"), [row(hashes={"task": "a"}), row("cls", seed=1, hashes={"experts": {"math": "a"}})])
    neighbours.admit(row(task="u", hashes={"task": "b"}), Path("two"))
    neighbours.admit(row("cls", seed=2, hashes={"experts": {"math": "b"}}), Path("two"))
