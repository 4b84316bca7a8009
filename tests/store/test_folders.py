"""A folder is put in its place in one step, by one process at a time; what a killed one left goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2eval.errors import T2Error
from t2eval.store import folders
from t2eval.store.files import DiskError, read_text, write_text
from t2eval.store.folders import staged_folder
from t2eval.store.lock import locked, remove_unfinished


def _content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_takes_its_place_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    if not in_one_step:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    target = tmp_path / "out"
    with staged_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), staged_folder(target) as folder:
        (folder / "a").write_text("2")
        raise RuntimeError
    assert _content(target) == {"a": "1"}
    with staged_folder(target) as folder:
        (folder / "b").write_text("3")
    assert _content(target) == {"b": "3"} and os.listdir(tmp_path) == ["out"]


def test_a_folder_begins_with_what_the_old_one_holds(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_text(target / "deep" / "log", "kept")
    write_text(target / "a", "old")
    inode = (target / "deep" / "log").stat().st_ino
    with staged_folder(target, keep=True) as folder:
        write_text(folder / "a", "new")
        assert _content(target) == {"a": "old", "deep/log": "kept"}
    assert _content(target) == {"a": "new", "deep/log": "kept"} and (target / "deep" / "log").stat().st_ino == inode


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename, calls = tmp_path / "out", os.rename, []
    write_text(target / "a", "1")

    def second_fails(source: str, to: str) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, to)

    monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    monkeypatch.setattr(folders.os, "rename", second_fails)
    with pytest.raises(DiskError), staged_folder(target) as folder:
        (folder / "a").write_text("2")
    assert _content(target) == {"a": "1"} and os.listdir(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write_text(tmp_path / "elsewhere" / "a", "1")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with staged_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("2")
    assert (tmp_path / "out").is_symlink() and _content(tmp_path / "elsewhere") == {"a": "2"}


def test_two_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        with pytest.raises(T2Error, match=f"Another process is writing to {tmp_path / 'out'}. Wait"), staged_folder(tmp_path / "out"):
            pass
        with staged_folder(tmp_path / "other"):
            pass
        (folder / "a").write_text("1")
    assert _content(tmp_path) == {"out/a": "1"}


_KILLED = """
import os, signal, sys
from pathlib import Path
from t2eval.store import files, folders
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
target = Path(sys.argv[1])
if sys.argv[2] == "file":
    files.os.fsync = kill
    files.write_text(target, "new")
with folders.staged_folder(target) as folder:
    (folder / "x").write_text("new")
    if sys.argv[2] == "filling":
        kill()
    folders._remove = kill  # the next that is removed is the old folder
"""


def _killed(target: Path, where: str) -> None:
    assert subprocess.run([sys.executable, "-c", _KILLED, str(target), where], check=False).returncode == -9


@pytest.mark.parametrize(("where", "expected"), [("filling", "old"), ("removing", "new")])
def test_a_killed_process_leaves_the_old_folder_or_the_new_one(tmp_path: Path, where: str, expected: str) -> None:
    target = tmp_path / "out"
    write_text(target / "x", "old")
    _killed(target, where)
    assert _content(target) == {"x": expected} and len(os.listdir(tmp_path)) == 3  # what is left, and the lock
    with staged_folder(target) as folder:
        (folder / "x").write_text("newer")
    assert _content(target) == {"x": "newer"} and os.listdir(tmp_path) == ["out"]


def test_what_a_killed_writer_left_is_removed_but_not_what_another_is_writing(tmp_path: Path) -> None:
    for name in ("deep", "busy"):
        write_text(tmp_path / name / "x", "old")
        _killed(tmp_path / name / "x", "file")
        assert len(os.listdir(tmp_path / name)) == 2
    with locked(tmp_path / "busy", "run"):
        (tmp_path / "busy" / ".y.0.unfinished").write_text("being written")
        (tmp_path / "deep" / ".z.0.unfinished").symlink_to(tmp_path / "busy")
        with locked(tmp_path, "demo"):
            assert os.listdir(tmp_path / "deep") == ["x"] and read_text(tmp_path / "deep" / "x") == "old"
            assert sorted(os.listdir(tmp_path / "busy")) == [".lock", ".y.0.unfinished", "x"]
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path / "busy") == ["x"]


def test_what_a_library_says_of_a_full_disk_is_one_message(tmp_path: Path) -> None:
    """They are written in Rust, and have exceptions of their own."""
    from safetensors import SafetensorError
    from tokenizers import Tokenizer, models

    with pytest.raises(DiskError, match=r"Could not write .*out: No space left on device"), staged_folder(tmp_path / "out") as folder:
        (folder / "tokenizer.json").symlink_to("/dev/full")
        Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(DiskError, match=r"Could not write .*out: Read-only file system"), staged_folder(tmp_path / "out"):
        raise SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)")  # as it says it
    assert os.listdir(tmp_path) == []


def test_an_error_that_is_not_the_systems_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="os error of mine"), staged_folder(tmp_path / "out"):
        raise ValueError("os error of mine")
