from __future__ import annotations

import time

import pytest

from t2eval.errors import T2Error, shown
from t2eval.store.files import read_yaml
from t2eval.store.yamls import parse_yaml


def _bomb(levels: int) -> str:
    """Nine aliases a level: 9^levels nodes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_bomb(9), "more than 100,000 values"),
        ("a: &a {k: v}\n" + "\n".join(f"b{i}: &b{i} {{<<: [{'*a' if i == 0 else f'*b{i - 1}'}, {'*a' if i == 0 else f'*b{i - 1}'}]}}"
                                     for i in range(30)), "more than 100,000 values"),
        ("[" * 50_000, "deeper than 64"),
        ("a: &a [*a]", "stands inside what it names"),
        ("a: *b", "undefined alias"),
        ("seeds: [0]\nname: x\nseeds: [1]", "line 3, column 1: 'seeds' stands there twice"),
        ("{[1]: 2}", "unhashable"),
        ("a: b: c", "line 1, column 5"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("!!int x", "not what its form or tag says"), ("!!bool maybe", "not what its form"), ("!!timestamp x", "not what its form"),
        ("2020-13-45", "not what its form"), ("1" * 5000, "not what its form"), ("\x00", "special characters"),
        ('experts: "a\\0b"', "a text has a NUL in it"), ("seeds: !!set {0, 1}", "could not determine a constructor"),
        ("a: !!omap [b: 1]", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_yaml_beyond_the_bounds_is_refused_at_once(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    started = time.perf_counter()
    with pytest.raises(T2Error) as caught:
        read_yaml(path, what="benchmark file", remedy="Mend it.")
    assert time.perf_counter() - started < 5
    assert str(caught.value).startswith(f"The benchmark file {str(path)!r} cannot be read: ") and message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_yaml_that_people_write_is_read():
    text = "base: &base {lr: 0.1, clip: 1}\nruns:\n  - {<<: *base, lr: 0.2}\n  - *base\nname: ü\nnone: ~\n"
    assert parse_yaml(text)["runs"] == [{"lr": 0.2, "clip": 1}, {"lr": 0.1, "clip": 1}]
    assert parse_yaml("") is None


def test_a_value_is_shown_short_whatever_it_is():
    value = ["x"]
    for _ in range(60):
        value = [value] * 9
    assert len(shown(value)) < 250 and len(shown("x" * 10**6)) < 200
    assert shown({"a": [1, "b"]}) == "{'a': [1, 'b']}"
