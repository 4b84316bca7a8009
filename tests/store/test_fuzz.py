"""Whatever a file holds, a reader gives its value or one error, in bounded time: mutated files, and files of any bytes."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2eval.errors import T2Error
from t2eval.store.files import read_json, read_json_lines, read_lines, read_text, read_yaml, write_json

CASES = int(os.environ.get("T2EVAL_FUZZ_CASES", "150"))
READERS: list[Callable[..., Any]] = [read_text, read_lines, read_json, read_json_lines, read_yaml]
SEEDS = [
    json.dumps({"format_version": 1, "name": "math", "modules": {"a.b": {"shape": [4, 8], "rank": 4}}, "scores": [0.5, None, True, "é"]}),
    "\n".join(json.dumps({"cell": f"c{number}", "score": number / 3, "text": "a\u2028b\n"}) for number in range(5)),
    yaml.safe_dump({"name": "x", "tasks": ["a", "b"], "seeds": [0, 1], "model_args": {"fewshot": {"shots": 3}}, "when": "2024-01-01"}),
    "base: &b {lr: 1e-3, clip: [1, 2]}\nruns: [{<<: *b, x: 0x1f}, *b, !!float 1, ~, 12:30:45, 2001-12-14t21:59:43.10-05:00]\n",
]
PIECES = [
    b"{", b"[", b"]", b"}", b"&a ", b"*a ", b"<<: ", b"!!int ", b"!!python/name:os.system ", b"\x00", b"\xff\xfe", b"1e999", b"NaN",
    b"\\ud800", b": ", b"- ", b"? ", b"|\n", b"'", b'"', b"\xe2\x80\xa8", b"%YAML 9.9\n", b"---\n", b"...\n", b"9" * 5000,
    b"!!set {", b"!!omap [", b"!!binary ",
]  # fmt: skip


def _calmly(reader: Callable[..., Any], path: Path) -> None:
    begin = time.process_time()
    try:
        reader(path, what="file", remedy="Mend it.")
    except T2Error as error:
        assert str(path) in str(error) and str(error).endswith("Mend it.") and len(str(error)) < 5000
    assert time.process_time() - begin < 5


def _mutated(content: bytes, generator: random.Random) -> bytes:
    for _ in range(generator.randint(1, 6)):
        place = generator.randint(0, len(content))
        kind = generator.randrange(5)
        if kind == 0:
            content = content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
        elif kind == 1:
            content = content[:place]
        elif kind == 2:
            content = content[:place] + generator.choice(PIECES) * generator.choice((1, 1, 2, 300)) + content[place:]
        elif kind == 3:
            other = generator.randint(0, len(content))
            content = content[: max(place, other)] + content[min(place, other) :]
        else:
            content = content.replace(generator.choice((b"a", b"1", b":", b",")), generator.choice(PIECES), 3)
    return content


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_a_mutated_file_is_read_or_refused(tmp_path: Path, reader: Callable[..., Any], seed: int) -> None:
    generator = random.Random(f"{reader.__name__} {seed}")
    path = tmp_path / "file"
    for _ in range(CASES):
        path.write_bytes(_mutated(SEEDS[seed].encode(), generator))
        _calmly(reader, path)


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    for reader in READERS:
        _calmly(reader, tmp_path / "file")


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_NUMBER = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBER | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(_JSON)
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == value
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
