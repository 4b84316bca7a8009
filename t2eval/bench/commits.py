"""Commits: when rows were added to a benchmark's folder, and from which commits, in `commits.jsonl`: a line each time `t2 bench` did it."""

from __future__ import annotations

import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from t2eval.bench.rows import REMEDY
from t2eval.errors import T2Error
from t2eval.store import files
from t2eval.store.versions import git_commit, repository_commit

COMMITS = "commits.jsonl"
_REMEDY = "Remove it: rows and scores stay."


class Commits(BaseModel):
    """One run of `t2 bench` that added rows.

    Attributes:
        time: of its first row, UTC, as ISO 8601.
        t2eval: the commit of t2eval's checkout; None for an installed package.
        repository: the commit of the repository that the command ran in; None where there is none. `+changes`: files differ from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str
    t2eval: str | None = None
    repository: str | None = None


def note(folder: Path) -> None:
    """Note that rows are being added now. Call it only with the folder's lock.

    Raises:
        DiskError: there is no room.
    """
    files.cut_unfinished(folder / COMMITS, what="file of commits", remedy=_REMEDY)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found = Commits(time=now, t2eval=git_commit(), repository=repository_commit(Path.cwd()))
    files.append_line(folder / COMMITS, found.model_dump_json(), remedy=REMEDY)


def read(folder: Path) -> list[Commits]:
    """What was noted, oldest first; nothing for folders of older releases. A line that is being written does not count.

    Raises:
        T2Error: a line is damaged.
    """
    path = folder / COMMITS
    if not path.exists():
        return []
    try:
        return [Commits.model_validate(line) for line in files.read_json_lines(path, what="file of commits", remedy=_REMEDY, grows=True)]
    except ValidationError as error:
        raise T2Error(f"{path} is not what a benchmark writes. {_REMEDY}") from error
