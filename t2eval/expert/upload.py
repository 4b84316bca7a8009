"""Upload: an expert, or a library, as one repository of the hub.

What is uploaded is made here and nowhere else: cards without this machine's paths, model cards with a `model-index`, scores as the hub
reads them (`t2eval.expert.eval_results`), the z as they are, learning curves. Nothing is ever deleted on the hub.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2eval.basemodel.probe import HubData
from t2eval.errors import T2Error, UsageError
from t2eval.expert.card import CARD, README, TENSORS, ExpertCard, is_plain, read_card, refuse_adapter
from t2eval.expert.eval_results import FOLDER, NoBenchmark, benchmark_task, eval_results, has_test_score, not_shown, test_split
from t2eval.expert.expert import Expert
from t2eval.expert.folder import PROMPTS
from t2eval.expert.hub import FORMAT, LIMITS, api, expert_folders, missing, problem
from t2eval.expert.location import Location, parse_repository
from t2eval.expert.machine_paths import refuse_paths, without_paths
from t2eval.expert.model_card import library_card, model_card
from t2eval.expert.prompts import PromptVectors
from t2eval.paths import is_embedded
from t2eval.store.files import inside, read_bytes

_PNG, _LARGEST_PICTURE = b"\x89PNG\r\n\x1a\n", 16 * 2**20


@dataclass
class Parcel:
    """What is to be uploaded.

    Attributes:
        files: content by path in the repository.
        experts: the folders of the experts in the repository; `.` for the repository itself.
        remarks: what the user should know, a sentence each.
    """

    files: dict[str, bytes]
    experts: tuple[str, ...]
    remarks: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self.files.values()))


@dataclass(frozen=True)
class Pushed:
    """Where an upload went: the place with its commit, and experts that were there before and are no part of it."""

    location: Location
    others: tuple[str, ...]


def tasks_of(folder: Path) -> list[str]:
    """The tasks whose test splits the experts of a folder have scores on. Raises as `pack` where a card is damaged."""
    cards = [read_card(place) for place in expert_folders(folder)]
    return sorted({card.training.task for card in cards if card.training is not None and has_test_score(card)})


def pack(folder: Path, repository: str, *, base_model: str | None = None, data: Mapping[str, HubData] | None = None) -> Parcel:
    """All files of an expert, or of a library, as they will be uploaded. Only the hub's benchmarks are asked for, of the tasks in `data`.

    Args:
        folder: an expert's directory, or one that holds experts (to a depth of two).
        repository: `owner/name`, which the model cards name.
        base_model: the base model's name on the hub, for the cards; default: as the experts have it, without folders of this machine.
        data: the data set of the hub that a task's test split is of, by the task's name.

    Raises:
        T2Error: no expert, a damaged one, experts of several base models, or a path of this machine that cannot be taken out by itself.
    """
    repository = parse_repository(repository)
    if not folder.is_dir():
        raise T2Error(missing(folder))
    refuse_adapter(folder)
    places = {place.relative_to(folder).as_posix(): place for place in expert_folders(folder)}
    if not places:
        raise T2Error(
            f"{folder} holds no expert (a folder with {CARD} and {TENSORS}). Train one with t2 train-expert --output {folder}/NAME."
        )
    for name in places:
        if name != "." and not all(is_plain(part) and part.isascii() for part in name.split("/")):
            raise UsageError(f"The folder {name!r} cannot be a folder of the hub: rename it (letters, digits, '.', '_', '-').")
    parcel, cards = Parcel({}, tuple(places)), {}
    known, reasons = dict(data or {}), dict[str, None]()
    for name, place in places.items():
        cards[name] = _add_expert(parcel, name, place, repository, base_model, known)
        if (reason := _add_results(parcel, name, cards[name], known)) is not None:
            reasons[reason] = None
    if "." not in places:
        parcel.files[README] = library_card(cards, repository, known).encode()
    _one_base(cards)
    for place in {folder, *(place.parent for place in places.values() if place != folder)}:
        _add_format(parcel, place, folder)
    if reasons:
        parcel.remarks.append(not_shown(list(reasons)))
    for path, content in parcel.files.items():
        refuse_paths(path, content)
    return parcel


def push(parcel: Parcel, repository: str, *, private: bool = False, revision: str | None = None) -> Pushed:
    """Upload what was packed, in one commit.

    Args:
        parcel: from `pack`.
        repository: `owner/name`; made if it does not exist.
        private: make it private, if it is made now.
        revision: a branch, made if it does not exist; None: the main one.

    Raises:
        T2Error: no connection, no permission, or offline mode.
    """
    from huggingface_hub import CommitOperationAdd

    location = Location(parse_repository(repository), revision)
    hub = api()
    try:
        hub.create_repo(location.repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(location.repository, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path, content) for path, content in sorted(parcel.files.items())]
        count = len(parcel.experts)
        message = "Upload an expert with t2eval" if count == 1 else f"Upload {count} experts with t2eval"
        done = hub.create_commit(location.repository, operations, commit_message=message, revision=revision)
        there = hub.list_repo_files(location.repository, revision=done.oid)
    except Exception as error:
        raise problem(location, error, "written") from error
    folders = {str(Path(path).parent) for path in there if Path(path).name == CARD}
    return Pushed(location.at(str(done.oid)), tuple(sorted(folders - set(parcel.experts))))


# ---------------------------------------------------------------------- what is in it
def _add_expert(parcel: Parcel, name: str, place: Path, repository: str, base_model: str | None, data: Mapping[str, HubData]) -> ExpertCard:
    """One expert's files; returns its card as it will be read by others."""
    loaded = Expert.load(place)
    prefix = "" if name == "." else f"{name}/"
    card = without_paths(loaded.card)
    if base_model is not None:
        card = card.model_copy(update={"base_model": card.base_model.model_copy(update={"id": base_model})})
    elif card.base_model.id != loaded.card.base_model.id and not is_embedded(card.base_model.id):
        stated = card.base_model.id
        parcel.remarks.append(
            f"The base model is a folder of this machine, which the card names {stated!r}: give its Hub name with --base-model."
        )
    content = read_bytes(inside(place, TENSORS, what="expert's file"), what="expert's file", limit=LIMITS[TENSORS])
    refuse_paths(f"{prefix}{TENSORS}.json", _header(content))
    parcel.files[f"{prefix}{TENSORS}"] = content
    parcel.files[f"{prefix}{CARD}"] = (card.model_dump_json(indent=2) + "\n").encode()
    parcel.files[f"{prefix}{README}"] = model_card(card, str(Location(repository, folder="" if name == "." else name)), data).encode()
    if (place / PROMPTS).exists():
        PromptVectors.load(place, card.name)  # whole, and of the form that it says
        vectors = read_bytes(inside(place, PROMPTS, what="expert's file"), what="expert's file", limit=LIMITS[PROMPTS])
        refuse_paths(f"{prefix}{PROMPTS}.json", _header(vectors))
        parcel.files[f"{prefix}{PROMPTS}"] = vectors
    for picture in sorted(place.glob("*.png")):
        if picture.is_symlink() or not picture.is_file() or not is_plain(picture.name):
            continue
        shown = read_bytes(inside(picture.parent, picture.name, what="picture"), what="picture", limit=_LARGEST_PICTURE)
        if shown.startswith(_PNG):
            parcel.files[f"{prefix}{picture.name}"] = shown
    return card


def _header(content: bytes) -> bytes:
    """The JSON at the beginning of a safetensors file that has been loaded."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length]


def _add_results(parcel: Parcel, name: str, card: ExpertCard, data: Mapping[str, HubData]) -> str | None:
    """The expert's score for the hub's leaderboards; or why there is none."""
    if not has_test_score(card):
        return None
    assert card.training is not None
    task = card.training.task
    if task not in data:
        return f"{task}: its test split is no data set of the hub"
    if (limit := card.training.hyperparameters.get("test_limit")) is not None:
        return f"{task}: it was scored on {limit} of its test examples only"
    try:
        task_id = benchmark_task(data[task], test_split(card))
    except NoBenchmark as error:
        return f"{task}: {error}"
    file = (card.name if name == "." else name).replace("/", "-")
    parcel.files[f"{FOLDER}/{file}.yaml"] = eval_results(card, data[task], task_id, test_split(card)).encode()
    return None


def _add_format(parcel: Parcel, place: Path, folder: Path) -> None:
    """A library's own way to dispatch."""
    file = place / FORMAT
    if file.is_file() and not file.is_symlink() and place.is_relative_to(folder):
        parcel.files[(place / FORMAT).relative_to(folder).as_posix()] = read_bytes(file, what="dispatch format", limit=LIMITS[FORMAT])


def _one_base(cards: Mapping[str, ExpertCard]) -> None:
    """Refuse what nobody could use together.

    Raises:
        T2Error: experts of several base models, beside each other.
    """
    of: dict[str, tuple[str, str]] = {}
    for name, card in cards.items():
        library = str(Path(name).parent)
        first, base = of.setdefault(library, (name, card.base_model.id))
        if base != card.base_model.id:
            raise T2Error(
                f"{first} is an expert of {base}, and {name} one of {card.base_model.id}: a library is of one base model. Push them to two "
                "repositories."
            )
