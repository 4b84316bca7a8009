from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from t2eval.errors import T2Error
from t2eval.store import files
from t2eval.store.files import (
    DiskError,
    append_line,
    cut_unfinished,
    inside,
    is_disk_full,
    read_bytes,
    read_json,
    read_json_lines,
    read_lines,
    read_text,
    write_bytes,
    write_json,
    write_text,
)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_with_its_folder_and_the_users_permissions(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    before = os.umask(0o027)
    try:
        write_text(path, "ä\n")
    finally:
        os.umask(before)
    assert path.read_bytes() == "ä\n".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["c.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(files.os, step, _full)
    with pytest.raises(DiskError, match=r"Could not write .*x.json: No space left on device. Free some space") as caught:
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert is_disk_full(caught.value)
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["x.json"]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    write_bytes(tmp_path / "x", b"old")
    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(DiskError, match=f"Could not write .*/{name}: it is no regular file, and would be replaced by one"):
            write_text(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink()
    (tmp_path / "link").symlink_to("nowhere")
    write_text(tmp_path / "link", "x")  # a link that leads to nothing is a name like another
    assert (tmp_path / "link").read_text() == "x"


def test_a_line_that_is_being_written_does_not_count(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert read_json_lines(path, grows=True) == [{"a": 1}]
    with pytest.raises(T2Error, match="line 2: it is no JSON"):
        read_json_lines(path)
    cut_unfinished(path)
    assert path.read_text() == '{"a": 1}\n'
    cut_unfinished(path)
    cut_unfinished(tmp_path / "missing")
    assert read_json_lines(path) == [{"a": 1}] and not (tmp_path / "missing").exists()


def test_a_name_that_cannot_be_is_a_disk_error(tmp_path):
    for name in ("a\0b", "n" * 300):
        with pytest.raises(DiskError):
            write_text(tmp_path / name, "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_never_holds_what_is_no_json(tmp_path, number):
    with pytest.raises(T2Error, match=rf"x.json cannot be written as JSON: scores.after\[1\] is {number}"):
        write_json(tmp_path / "x.json", {"scores": {"after": [0.5, number]}})
    assert os.listdir(tmp_path) == []


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    append_line(path, "one")
    monkeypatch.setattr(files.os, "fsync", _full)
    with pytest.raises(DiskError):
        append_line(path, "two")
    monkeypatch.undo()
    append_line(path, "three")
    assert path.read_text() == "one\nthree\n"


# ---------------------------------------------------------------------- reading
def _refused(read, path, *messages, **options):
    with pytest.raises(T2Error) as caught:
        read(path, what="recipe", remedy="Write it anew.", **options)
    text = str(caught.value)
    assert text.startswith(f"The recipe {str(path)!r} cannot be read: ") and text.endswith(" Write it anew.")
    for message in messages:
        assert message in text


def test_only_regular_files_are_read_and_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        answers = []

        def read(path=path, answers=answers):
            _refused(read_bytes, path, "no regular file")
            answers.append(path)

        reader = threading.Thread(target=read, daemon=True)  # a reader that hangs fails the test, and not the run
        reader.start()
        reader.join(5)
        assert answers == [path]
    _refused(read_bytes, tmp_path / "missing", "No such file")
    _refused(read_bytes, tmp_path / "a\0b", "embedded null")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    _refused(read_bytes, tmp_path / "loop", "symbolic links")
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_text(tmp_path / "link") == "x"


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1" * 100)
    assert read_bytes(path, limit=100) == b"1" * 100
    _refused(read_bytes, path, "more than 99 bytes", limit=99)


def test_text_is_utf8_and_its_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one\ntwo \xe9\n")
    _refused(read_text, path, "line 2 is not UTF-8 (byte 0xe9)")
    path.write_bytes('\ufeff{"a": "b\u2028c\x85d"}\n\n'.encode())
    assert read_lines(path) == ['{"a": "b\u2028c\x85d"}', ""]
    assert read_json_lines(path) == [{"a": "b\u2028c\x85d"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 column 2"), ("[" * 100_000, "deeper than 64"), ("[" * 65 + "]" * 65, "deeper than 64"),
        ('{"a":' * 500 + "1" + "}" * 500, "deeper than 64"), ("NaN", "NaN is no JSON"), ("[1e999]", "too large"),
        ('["\\ud800"]', "surrogate"), ("1" * 5000, "digits"), ("", "Expecting value"), ("{} {}", "Extra data"),
    ],
)  # fmt: skip
def test_json_that_is_none_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    _refused(read_json, path, message)
    path.write_text('{"fine": 1}\n' + text + "\n{}\n")
    if text:
        _refused(read_json_lines, path, "line 2: ", message)


def test_json_within_the_bounds_is_read(tmp_path):
    value = {"a": [1, 2.5, None, True, "𝄞"], "deep": json.loads("[" * 60 + "]" * 60)}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 256, "longer than a file's name can be"),
        ("a/" + "é" * 128, "longer than"),
        ("../x", "no name of a file"),
        ("a\0b", "no name of a file"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(T2Error, match=message):
        inside(tmp_path, name)
