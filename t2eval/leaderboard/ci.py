"""CI: the workflow that runs a benchmark for every change of a repository, and its shell form, for those who have t2eval from a wheel."""

from __future__ import annotations

from pathlib import Path

from t2eval.errors import UsageError
from t2eval.store.files import read_bytes, write_bytes

_FILES = {"leaderboard.yml": ".github/workflows/leaderboard.yml", "leaderboard.sh": "ci/leaderboard.sh"}
"""File of this package → its place in a repository."""
_SOURCE = Path(__file__).parent / "workflow"


def write_ci(repository: Path) -> list[Path]:
    """Write the files into a repository's folder.

    Args:
        repository: its top folder.

    Returns:
        The files.

    Raises:
        UsageError: the folder does not exist, or one of the files is there and is another; nothing is written then.
        DiskError: the folder cannot be written.
    """
    if not repository.is_dir():
        raise UsageError(f"{repository} is not a folder. Give the top folder of the repository whose changes are to be benchmarked.")
    content = {repository / place: read_bytes(_SOURCE / name) for name, place in _FILES.items()}
    for path, text in content.items():
        if path.exists() and (not path.is_file() or read_bytes(path) != text):
            raise UsageError(f"{path} is there already, and is another file. Move it away, or copy what you need from {_SOURCE}.")
    for path, text in content.items():
        write_bytes(path, text)
        if path.suffix == ".sh":
            path.chmod(0o755)
    return list(content)
