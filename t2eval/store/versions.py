"""Versions: of the packages that a result depends on, and the commit of the checkout that it was made from."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from t2eval import __version__, paths

DEFAULT = ("lm_eval", "torch", "transformers", "peft", "datasets")
"""What a score depends on, beside t2eval and Python."""


def versions(packages: Sequence[str] = DEFAULT) -> dict[str, str]:
    """Name → version of t2eval, Python, and some packages; `unknown` for one that is not installed."""
    return {"t2eval": __version__, "python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def git_commit(package: Path | None = None) -> str | None:
    """The commit of the checkout that t2eval runs from: 12 digits, with `+changes` where files differ from it; None where there is none.

    Args:
        package: the folder of the package, by default t2eval's own.
    """
    checkout = (package or paths.package_dir()).parent
    # git would find the repository around an environment that t2eval is installed in
    return repository_commit(checkout) if (checkout / ".git").exists() else None


def repository_commit(folder: Path) -> str | None:
    """The commit of the repository around a folder, as `git_commit` writes it; None where there is none."""
    head = _git(folder, "rev-parse", "HEAD")
    changes = None if head is None else _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if head is None or changes is None else head[:12] + ("+changes" if changes else "")


def commits_between(folder: Path, first: str, last: str, most: int = 200) -> list[dict[str, str]] | None:
    """The commits after one and up to another, newest first.

    Args:
        folder: inside a repository.
        first, last: commits as `repository_commit` writes them.
        most: no more than these.

    Returns:
        `commit`, `date` and `subject` of each; None where the repository does not know both.
    """
    names = [name.removesuffix("+changes") for name in (first, last)]
    if not all(re.fullmatch("[0-9a-f]{7,40}", name) for name in names):
        return None
    said = _git(folder, "log", f"--max-count={most}", "--format=%h%x00%cs%x00%s", f"{names[0]}..{names[1]}")
    if said is None:
        return None
    return [dict(zip(("commit", "date", "subject"), line.split("\0", 2), strict=True)) for line in said.split("\n") if line]


def lost_commits(commits: Sequence[str], package: Path | None = None) -> list[str]:
    """Those commits that the history of the checkout that t2eval runs from does not have: work was laid upon other work before it was kept.

    Args:
        commits: as `git_commit` writes them; what is no commit's name is not lost.
        package: the folder of the package, by default t2eval's own.

    Returns:
        In their order; none where there is no checkout to ask.
    """
    checkout = (package or paths.package_dir()).parent
    if git_commit(package) is None:
        return []
    names = {commit: commit.removesuffix("+changes") for commit in commits}
    asked = [commit for commit, name in names.items() if re.fullmatch("[0-9a-f]{7,40}", name)]
    return [commit for commit in asked if _git(checkout, "merge-base", "--is-ancestor", names[commit], "HEAD") is None]


def _git(folder: Path, *command: str) -> str | None:
    """What git says about the repository around a folder; None where it cannot."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
