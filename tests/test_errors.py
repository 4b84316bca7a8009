"""Errors: the message for a name that does not exist."""

from __future__ import annotations

import re

import pytest

from t2eval.errors import UsageError, listed, near_matches, unknown


def test_near_matches_come_first_and_case_does_not_count() -> None:
    assert str(unknown("method", "LORA", ["svf", "lora", "dora"])) == (
        "Unknown method 'LORA'. Did you mean 'lora' or 'dora'? Available: dora, lora, svf."
    )
    assert isinstance(unknown("method", "x", []), UsageError)
    assert str(unknown("method", "x", [])) == "Unknown method 'x'. Available: none."


@pytest.mark.parametrize("available", [["svf"], ["svf", "svg"], ["svf", "SVF"]])
def test_what_was_given_is_never_offered(available: list[str]) -> None:
    told = str(unknown("method", "svf", available)).removeprefix("Unknown method 'svf'.")
    assert not re.search(r"\bsvf\b", told)
    assert "svf" not in near_matches("svf", available)


@pytest.mark.parametrize("length", [3, 30, 200])
def test_a_long_list_takes_ten_lines_at_most(length: int) -> None:
    names = [f"{index:0{length}}" for index in range(1000)]
    message = str(unknown("task", "x", names))
    assert len(message) <= 10 * 80
    shown = message.split("Available: ")[1].split(", and ")[0].split(", ")
    assert message.endswith(f", and {1000 - len(shown)} more.")
    assert shown == names[: len(shown)]


def test_a_single_long_name_is_shown_whole() -> None:
    assert listed(["n" * 1000]) == "n" * 1000
    assert listed([]) == ""
