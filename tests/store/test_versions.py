from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import t2eval
from t2eval.store.versions import commits_between, git_commit, lost_commits, repository_commit, versions


def _git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(folder), *identity, *command], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_the_checkouts_own(tmp_path: Path) -> None:
    package = tmp_path / "t2eval"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message", "one")
    head = _git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(package) == head[:12]
    (package / "new.py").write_text("2\n")
    assert git_commit(package) == head[:12], "files that git does not know are no changes"
    (package / "a.py").write_text("3\n")
    assert git_commit(package) == f"{head[:12]}+changes"


def test_a_repository_around_an_installed_package_is_not_its_checkout(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "t2eval"
    package.mkdir(parents=True)
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    assert git_commit(package) is None


def test_a_checkout_without_a_commit_or_without_git_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "t2eval"
    package.mkdir()
    _git(tmp_path, "init", "--quiet")
    assert git_commit(package) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(package) is None


def test_versions_name_what_is_missing() -> None:
    found = versions(("torch", "no-such-package"))
    assert found["t2eval"] == t2eval.__version__ and found["no-such-package"] == "unknown"
    assert set(found) == {"t2eval", "python", "torch", "no-such-package"}
    assert found["torch"].startswith("2.")


def test_commits_between_two_are_named_newest_first(tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet")
    for subject in ("one", "two", "a\x1f | <b> and \u2028 more"):
        _git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", subject)
    first, last = _git(tmp_path, "rev-parse", "HEAD~2")[:12], _git(tmp_path, "rev-parse", "HEAD")[:12]
    found = commits_between(tmp_path, f"{first}+changes", last)
    assert found is not None and [commit["subject"] for commit in found] == ["a\x1f | <b> and \u2028 more", "two"]
    assert set(found[0]) == {"commit", "date", "subject"} and last.startswith(found[0]["commit"])
    assert commits_between(tmp_path, last, last) == []
    assert commits_between(tmp_path, first, "0" * 12) is None, "a commit that the repository does not know"
    assert commits_between(tmp_path, "--output=x", last) is None, "what is no commit is not asked for"
    (tmp_path / "inside").mkdir()
    assert repository_commit(tmp_path / "inside") == last


def test_commits_that_were_replaced_are_lost(tmp_path: Path) -> None:
    package = tmp_path / "t2eval"
    package.mkdir()
    assert lost_commits(["0" * 12], package) == [], "there is nobody to ask"
    _git(tmp_path, "init", "--quiet")
    for subject in ("one", "two"):
        _git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", subject)
    first, replaced = _git(tmp_path, "rev-parse", "HEAD~1")[:12], _git(tmp_path, "rev-parse", "HEAD")[:12]
    _git(tmp_path, "commit", "--quiet", "--allow-empty", "--amend", "--message", "three")
    named = [replaced, f"{first}+changes", "0" * 12, "unknown", _git(tmp_path, "rev-parse", "HEAD")[:12]]
    assert lost_commits(named, package) == [replaced, "0" * 12]
