"""Location: where experts lie on the Hugging Face hub, `hf://owner/name[@revision][/folder]`, and where such a place lies on this machine.

The revision is a branch, a tag or a commit; `refs/pr/N` may be one too. Nothing here asks the hub (`t2eval.expert.hub` does).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from t2eval.errors import UsageError, shown

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9_][\w.-]*"
_LOCATION = re.compile(
    rf"hf:/{{1,2}}(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>refs/[\w.-]+/[\w.-]+|[\w.-]+))?(?:/(?P<folder>{_NAME}(?:/{_NAME}){{0,2}}))?/?",
    re.ASCII,
)
"""One slash will do: a `Path` of such a text has but one."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")


@dataclass(frozen=True)
class Location:
    """A repository of experts, or a folder in it.

    Attributes:
        repository: `owner/name`.
        revision: a branch, tag or commit; None: the main branch.
        folder: one expert, or a library, inside the repository; empty: all of it.
    """

    repository: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repository}{revision}{'/' if self.folder else ''}{self.folder}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which always stands for the same files."""
        return self.revision is not None and is_commit(self.revision)

    def at(self, commit: str) -> Location:
        """The same place at a commit."""
        return replace(self, revision=commit)


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit's full hash."""
    return _COMMIT.fullmatch(revision) is not None


def is_hub(place: str | Path) -> bool:
    """Whether a setting's text means a place on the hub."""
    return str(place).startswith("hf:/")


def parse_location(text: str | Path) -> Location:
    """A location from its text.

    Raises:
        UsageError: it is none.
    """
    found = _LOCATION.fullmatch(str(text))
    if found is None:
        raise UsageError(
            f"{shown(str(text))} is no place on the hub. It is {SCHEME}owner/name, with @revision and /folder where they are needed: "
            f"{SCHEME}owner/name@v1/math."
        )
    return Location(found["repository"], found["revision"], found["folder"] or "")


def parse_repository(text: str) -> str:
    """`owner/name` from that text, or from `hf://owner/name`.

    Raises:
        UsageError: it is neither, or has a revision or a folder.
    """
    location = parse_location(text if is_hub(text) else f"{SCHEME}{text}")
    if location.revision or location.folder:
        raise UsageError(f"{shown(text)} has more than a repository's name: give owner/name, and the branch with --revision.")
    return location.repository


def source_of(folder: str | Path) -> Location | None:
    """Where a folder of the hub's cache comes from, with its commit; None for any other folder.

    The cache lays a repository's files out as `models--owner--name/snapshots/<commit>/…`.
    """
    parts = Path(folder).parts
    for index in range(len(parts) - 1, 1, -1):
        if parts[index - 1] == "snapshots" and is_commit(parts[index]) and (found := _CACHED.fullmatch(parts[index - 2])):
            return Location(f"{found['owner']}/{found['name']}", parts[index], "/".join(parts[index + 1 :]))
    return None
