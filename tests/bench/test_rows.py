import gzip
import json
import os

import pytest

from t2eval.bench.plan import Cell
from t2eval.bench.rows import ROWS, Sample, append, read, read_samples, repair, scores_by_example
from t2eval.errors import T2Error
from t2eval.store.files import DiskError
from tests.bench.fakes import fake_row


def test_rows_come_back_and_a_second_try_replaces_the_first(tmp_path):
    row = fake_row(tmp_path, Cell("m", "base", "t", 0))
    failed = row.model_copy(update={"status": "failed", "error": "x"})
    for item in (failed, fake_row(tmp_path, Cell("m", "cls", "t", 0)), row):
        append(tmp_path, item)
    found = read(tmp_path)
    assert [item.method for item in found] == ["base", "cls"]
    assert found[0] == row


def test_a_truncated_last_line_is_ignored_then_cut(tmp_path):
    row = fake_row(tmp_path, Cell("m", "base", "t", 0))
    append(tmp_path, row)
    whole = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(whole + whole[:31])
    assert read(tmp_path) == [row]
    repair(tmp_path)
    assert (tmp_path / ROWS).read_bytes() == whole


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path):
    append(tmp_path, fake_row(tmp_path, Cell("m", "base", "t", 0)))
    whole = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(b"{broken\n" + whole)
    with pytest.raises(T2Error, match="line 1, is not a row"):
        read(tmp_path)


def test_a_row_of_another_version_is_named_as_such(tmp_path):
    append(tmp_path, fake_row(tmp_path, Cell("m", "base", "t", 0)))
    row = json.loads((tmp_path / ROWS).read_text())
    for changes, said in (
        ({"new_field": 1}, "new_field: no such field in this version. Where another version of t2eval wrote it, use that one"),
        ({"n": "many"}, "n: it must be a whole number"),
    ):
        (tmp_path / ROWS).write_text(json.dumps({**row, **changes}) + "\n")
        append(tmp_path, fake_row(tmp_path, Cell("m", "cls", "t", 0)))
        with pytest.raises(T2Error, match=f"line 1, is not a row: {said}"):
            read(tmp_path)


def test_a_short_write_is_taken_back(tmp_path, monkeypatch):
    first = fake_row(tmp_path, Cell("m", "base", "t", 0))
    append(tmp_path, first)
    whole = (tmp_path / ROWS).read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:20]))
    with pytest.raises(DiskError, match="No space left on device. Every finished row is intact"):
        append(tmp_path, first)
    assert (tmp_path / ROWS).read_bytes() == whole


def test_samples_of_equal_documents_keep_apart():
    same = [Sample(doc_id=i, doc_hash="h", score=float(i), response="") for i in (1, 0)]
    assert scores_by_example(same) == {"h#0": 0.0, "h#1": 1.0}
    assert scores_by_example([*same, Sample(doc_id=2, doc_hash="k", score=None, response="")]) is None
    undefined = Sample(doc_id=2, doc_hash="k", score=None, undefined=True, response="")
    assert scores_by_example([*same, undefined], without={0}) == {"h#1": 1.0}, "the key of an example does not hang on what is left out"


def test_missing_samples_are_named(tmp_path):
    row = fake_row(tmp_path, Cell("m", "base", "t", 0))
    assert len(read_samples(tmp_path, row)) == row.n
    (tmp_path / row.samples).write_bytes(b"rubbish")
    with pytest.raises(T2Error, match="m__base__t__seed0.jsonl.gz' cannot be read: .* Remove its row"):
        read_samples(tmp_path, row)
    whole = gzip.compress(b"{}" * 1000)
    for damaged in (whole[:20], whole[:12] + bytes(20) + whole[32:], gzip.compress(b"{broken")):
        (tmp_path / row.samples).write_bytes(damaged)
        with pytest.raises(T2Error, match="m__base__t__seed0.jsonl.gz' cannot be read: .* Remove its row"):
            read_samples(tmp_path, row)


def test_a_row_is_json_without_nan(tmp_path):
    row = fake_row(tmp_path, Cell("m", "base", "t", 0))
    with pytest.raises(T2Error, match=r"t2.history\[1\] is nan"):
        append(tmp_path, row.model_copy(update={"t2": {"history": [0.5, float("nan")]}}))
    assert read(tmp_path) == []
    (tmp_path / ROWS).write_text(row.model_dump_json().replace('"n":40', '"n":NaN') + "\n{}\n")
    with pytest.raises(T2Error, match="line 1, is not a row"):
        read(tmp_path)
