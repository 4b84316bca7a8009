"""Versions: of the packages that a result depends on, and the commit of the checkout that it was made from."""

from __future__ import annotations

import platform
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
    if not (checkout / ".git").exists():  # git would find the repository around an environment that t2eval is installed in
        return None

    def answer(*command: str) -> str:
        asked = subprocess.run(["git", "-C", str(checkout), *command], capture_output=True, text=True, timeout=10, check=True)
        return asked.stdout.strip()

    try:
        return answer("rev-parse", "HEAD")[:12] + ("+changes" if answer("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
