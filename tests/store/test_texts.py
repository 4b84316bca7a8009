"""Texts: half of a surrogate pair in what a model wrote is kept as its escape, by whoever writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2eval.bench.documents import Document
from t2eval.bench.plan import Cell
from t2eval.bench.rows import SAMPLES, Sample, append, read, read_samples, write_samples
from t2eval.store import files
from t2eval.store.texts import utf8_text, whole_json
from tests.bench.fakes import fake_row

HALVES = ["\ud800", "a\udcffb", "\udc00\ud800", "\ud83d \ude00", "\U0001f600\udfff", "\ud83d\ud83d\ude00"]
WHOLE = ["", "plain", "\U0001f600", "\\ud800", "\\\\udfff", "é\u2028"]


@pytest.mark.parametrize("text", HALVES + WHOLE)
def test_json_is_what_our_reader_takes(text: str, tmp_path: Path) -> None:
    for value in (text, [text, {text: (text, 1)}], {"a": {"b": text}}):
        written = files.json_text(value, what="it", indent=None)
        assert files.parse_json(written) == _kept(value)
    files.write_json(tmp_path / "a.json", {"answer": text})
    assert files.read_json(tmp_path / "a.json") == {"answer": utf8_text(text)}
    assert (utf8_text(text) == text) == (text in WHOLE)


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {_kept(key): _kept(item) for key, item in value.items()}
    return utf8_text(value) if isinstance(value, str) else [_kept(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_a_text_without_halves_is_written_once() -> None:
    assert whole_json('"\\ud83d\\ude00"', object(), None) == '"\\ud83d\\ude00"'


@pytest.mark.parametrize("text", HALVES)
def test_samples_rows_and_documents_keep_an_answer_with_half_a_pair(text: str, tmp_path: Path) -> None:
    sample = Sample(doc_id=0, doc_hash="0", score=0.0, response=text, raw=f"raw {text}", why=f"error: {text}", dispatch=text)
    (tmp_path / SAMPLES).mkdir(exist_ok=True)
    row = fake_row(tmp_path, Cell("m", "base", "t", 0))
    row = row.model_copy(update={"samples": write_samples(tmp_path, "cell", [sample]), "t2": {"text": text}})
    assert read_samples(tmp_path, row) == [sample] and sample.response == utf8_text(text)
    append(tmp_path, row)
    assert read(tmp_path)[0].t2 == {"text": utf8_text(text)}
    assert Document(doc_id=0, prompt=text, choices=(text,), target=text).prompt == utf8_text(text)
