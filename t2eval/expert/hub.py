"""Hub: experts that lie on the Hugging Face hub, brought into its cache on this machine and checked before anything reads them.

Only files of an expert are asked for, none larger than an expert's may be, and none that leads out of the repository's own folder; nothing
is ever unpickled. In one process a name such as `hf://owner/name` stands for one commit, whatever is pushed meanwhile. A commit that is in
the cache is not asked for again; where the hub is out of order, what is cached of a branch is used, and that is said once.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval import __version__
from t2eval.basemodel.hub_errors import Answer, answer_of, one_line
from t2eval.basemodel.probe import offline
from t2eval.errors import T2Error, UsageError
from t2eval.expert.folder import CARD, PROMPTS, PROMPTS_LIMIT, README, TENSORS, no_directory
from t2eval.expert.location import Location, is_hub, parse_location
from t2eval.paths import joined
from t2eval.store.files import read_bytes
from t2eval.store.folders import staged_folder

FORMAT = "dispatch.json"
"""How a library is dispatched among (`t2eval.strategies.dispatch`)."""
LIMITS = {TENSORS: 2**30, CARD: 64 * 2**20, README: 2**20, FORMAT: 2**20, PROMPTS: PROMPTS_LIMIT}
"""The files that are pulled, and the most bytes of each."""
_TOTAL, _EXPERTS = 16 * 2**30, 10_000
_PATH = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/){0,3}(?:" + "|".join(re.escape(name) for name in LIMITS) + ")", re.ASCII)
_PATTERNS = [pattern for name in LIMITS for pattern in (name, f"*/{name}")]
_TIMEOUT = 10
_SEED = "__seed__"
"""What stands for `{seed}` where a place is parsed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, by its path in it, and its bytes."""

    path: str
    size: int


# ---------------------------------------------------------------------- what others call
def located(place: str | Path) -> Path:
    """The folder that a text names: a place on the hub is downloaded first, anything else is a path of this machine.

    Raises:
        UsageError: it begins as a place on the hub does, and is none.
        T2Error: the hub does not give it, or what it gives is no expert.
    """
    return _snapshot(parse_location(place)) if is_hub(place) else Path(place)


def located_all(value: str) -> list[Path]:
    """The folders that a setting joins by `+`, as `located`."""
    return [located(part) for part in joined(value)]


def pinned(value: str) -> str:
    """A setting in which each place on the hub has its commit, so that every process reads the same files.

    `{seed}` may stand in a place's folder, for one library a seed.

    Raises:
        UsageError: no place on the hub, or `{seed}` in its revision.
        T2Error: the hub does not say.
    """
    return "+".join(_filled(place.at(_commit(place))) if place is not None else part for part, place in _places(value))


def pull(place: str, output: Path | None = None) -> tuple[Path, Location]:
    """Download experts and check that each can be loaded.

    Args:
        place: `hf://owner/name[@revision][/folder]`.
        output: a new or empty folder for a copy; None: they stay in the hub's cache.

    Returns:
        Their folder, and the place with its commit.

    Raises:
        UsageError: `output` holds something already.
        T2Error: the hub does not give them, or an expert is damaged.
    """
    from t2eval.expert.expert import Expert

    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty folder. Choose another --output.")
    location = parse_location(place)
    folder = _snapshot(location)
    found = expert_folders(folder)
    for expert in found:
        Expert.load(expert)
    source = location.at(_commit(location))
    if output is None:
        return folder, source
    with staged_folder(output) as staging:
        for file in _files_of(folder):
            target = staging / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_bytes(folder / file, what="pulled file", limit=LIMITS[Path(file).name]))
    return output, source


def listing(place: str) -> tuple[list[RemoteFile], Location]:
    """The files that `pull` would download, and the place with its commit. Raises as `located`."""
    location = parse_location(place)
    commit = _commit(location)
    return _remote_files(location.at(commit)), location.at(commit)


def expert_folders(folder: Path) -> list[Path]:
    """The experts of a folder: itself, its folders, and theirs, to a depth of three."""
    cards = [card for depth in ("", "*/", "*/*/", "*/*/*/") for card in folder.glob(f"{depth}{CARD}")]
    return sorted(card.parent for card in cards)


def forget() -> None:
    """Ask the hub anew which commit a branch stands for."""
    _commits.clear()
    _snapshot.cache_clear()


def _places(value: str) -> list[tuple[str, Location | None]]:
    """The parts of a setting that `+` joins, and what those on the hub name; a folder may have `_SEED` in it."""
    found: list[tuple[str, Location | None]] = []
    for part in joined(value):
        place = parse_location(part.replace("{seed}", _SEED)) if is_hub(part) else None
        if place is not None and _SEED in f"{place.repository}{place.revision}":
            raise UsageError(f"{part}: {{seed}} may be in the folder of a place on the hub, not before it: hf://owner/name/seed-{{seed}}.")
        found.append((part, place))
    return found


def _filled(place: Location) -> str:
    return str(place).replace(_SEED, "{seed}")


# ---------------------------------------------------------------------- the hub
_commits: dict[tuple[str, str | None], str] = {}
"""What a repository's branch stands for in this process."""


def _commit(location: Location) -> str:
    """The commit of a place; where the hub is out of order, the one that is cached for its branch."""
    if location.is_pinned:
        return str(location.revision)
    key = location.repository, location.revision
    if key not in _commits:
        try:
            _commits[key] = str(api().model_info(location.repository, revision=location.revision, timeout=_TIMEOUT).sha)
        except Exception as error:
            if answer_of(error) != "outage":
                raise problem(location, error) from error
            if (commit := _cached_commit(location)) is None:
                raise problem(location, error) from error
            why = "HF_HUB_OFFLINE is set" if offline() else f"the hub cannot be reached: {one_line(error)}"
            name = Location(*key)
            _log.warning("%s is used as it was cached, at commit %s (%s).", name, commit, why)
            _commits[key] = commit
    return _commits[key]


def _cached_commit(location: Location) -> str | None:
    """What a branch stood for when it was last asked for, if its snapshot is in the cache."""
    try:
        return _download(location, [], local_files_only=True).name
    except (OSError, ValueError):
        return None


@functools.cache
def _snapshot(location: Location) -> Path:
    """The folder of a place in the hub's cache, complete and checked."""
    at = location.at(_commit(location))
    root = _cached(at) if location.is_pinned or _cached_commit(location) == at.revision else None
    if root is None:
        files = _remote_files(at)
        try:  # by its branch, so that the cache knows what that stood for
            root = _download(location, [file.path for file in files])
        except Exception as error:
            raise problem(location, error) from error
        if root.name != at.revision:
            raise T2Error(f"{location} was pushed to while it was read. Run the same command again.")
    folder = root / location.folder
    if not folder.is_dir():
        raise _nothing(location, root)
    _check_files(root, folder)
    if not expert_folders(folder):
        raise _nothing(location, root)
    return folder


def api() -> Any:
    """The hub's client, which says in its requests that t2eval asks."""
    from huggingface_hub import HfApi

    return HfApi(library_name="t2eval", library_version=__version__)


def _download(at: Location, patterns: Sequence[str], **options: Any) -> Path:
    """The root of a repository's snapshot with the files of those names."""
    return Path(api().snapshot_download(at.repository, revision=at.revision, allow_patterns=list(patterns), **options))


def _cached(at: Location) -> Path | None:
    """The root of a snapshot that is whole in the cache, as far as its place is concerned, or None. Asks nobody."""
    patterns = [f"{at.folder}/{pattern}" for pattern in _PATTERNS] if at.folder else _PATTERNS
    try:
        root = _download(at, patterns, local_files_only=True)
    except (OSError, ValueError):  # not cached, or not whole: both are errors of this kind in huggingface_hub
        return None
    return root if expert_folders(root / at.folder) else None


def _remote_files(at: Location) -> list[RemoteFile]:
    """The files of a place that belong to experts.

    Raises:
        T2Error: the hub does not say, there is no expert, or one is larger than any expert may be.
    """
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = list(api().list_repo_tree(at.repository, revision=at.revision, recursive=True))
    except Exception as error:
        raise problem(at, error) from error
    inside = f"{at.folder}/" if at.folder else ""
    named = [RemoteFile(entry.path, int(entry.size)) for entry in entries if isinstance(entry, RepoFile)]
    files = [file for file in named if _PATH.fullmatch(file.path) and file.path.startswith(inside)]
    cards = [file for file in files if Path(file.path).name == CARD]
    if not cards:
        there = sorted({str(Path(file.path).parent) for file in named if Path(file.path).name == CARD} - {"."})
        raise T2Error(_no_expert(at, there))
    for file in files:
        if file.size > LIMITS[Path(file.path).name]:
            raise T2Error(
                f"{at}: {file.path} has {file.size:,} bytes, more than any expert's {Path(file.path).name} has. It is not pulled."
            )
    if len(cards) > _EXPERTS or sum(file.size for file in files) > _TOTAL:
        size = sum(file.size for file in files)
        raise T2Error(f"{at} holds {len(cards):,} experts of {size:,} bytes: more than is pulled at once. Name a folder: {at}/NAME.")
    return files


def _check_files(root: Path, folder: Path) -> None:
    """Refuse what leads out of the repository's folder in the cache, where files are links to `blobs/`."""
    home = root.parent.parent.resolve()
    for file in _files_of(folder):
        path = folder / file
        if not path.resolve().is_relative_to(home):
            raise T2Error(f"{path} leads out of {home}. Remove the folder, and pull the expert again.")


def _files_of(folder: Path) -> list[str]:
    """The files of experts below a folder, by their paths in it."""
    found = [path.relative_to(folder).as_posix() for name in LIMITS for path in folder.rglob(name)]
    return sorted(path for path in found if _PATH.fullmatch(path))


# ---------------------------------------------------------------------- messages
def problem(location: Location, error: Exception, doing: str = "read") -> T2Error:
    """What the hub said about a place, in one sentence with its remedy; another error as one that names the place."""
    if isinstance(error, T2Error):
        return error
    name, login = location.repository, "log in with `hf auth login`"
    address = f"https://huggingface.co/{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    sentences: dict[Answer | None, str] = {
        "gated": f"{name} is gated: ask for access at {address}, then {login}.",
        "revision": f"{name} has no revision {location.revision or 'main'!r}. Look at {address}/tree/main for those it has.",
        "absent": f"There is no repository {name!r} on the hub, or it is private. Check the name; for a private one {login}.",
        "outage": (
            f"{location} cannot be {doing}: HF_HUB_OFFLINE is set{', and it is not in the cache' if doing == 'read' else ''}. Unset it, or "
            "work where there is a network (what is pulled there lies in the folder that HF_HOME names)."
            if offline()
            else f"{location} cannot be {doing}: the hub cannot be reached ({one_line(error)}). Try again later."
        ),
        "refused": f"The hub does not let {location} be {doing}: {one_line(error)}",
    }
    answer = "absent" if status == 404 and answer_of(error) == "refused" else answer_of(error)
    if status == 401 and answer == "refused":
        return T2Error(f"The hub asks who you are before {location} can be {doing} (401), and takes no token of this machine: {login}.")
    if status == 403 and answer == "refused":
        return T2Error(f"You may not have {location} {doing} (403): {login} as somebody who may, or with a token that may write.")
    return T2Error(sentences.get(answer) or f"{location} cannot be {doing}: {one_line(error)}")


def _nothing(location: Location, root: Path) -> T2Error:
    there = [folder.relative_to(root).as_posix() for folder in expert_folders(root)]
    return T2Error(_no_expert(location, [name for name in there if name != "."]))


def _no_expert(location: Location, there: Iterable[str]) -> str:
    names = list(there)
    hint = f" It has {', '.join(names[:10])}{' and more' if len(names) > 10 else ''}." if names else ""
    where = f"no expert in {location.folder}" if location.folder else f"no expert (a folder with {CARD} and {TENSORS})"
    return f"{location} holds {where}.{hint}"


def missing(folder: Path) -> str:
    """The message for a folder that is not there, which may be the name of a repository."""
    message = no_directory(folder)
    text = str(folder)
    if not folder.is_absolute() and text.count("/") == 1 and not text.startswith("."):
        message += f" For a repository of the hub write hf://{text}."
    return message
