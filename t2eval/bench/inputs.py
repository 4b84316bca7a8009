"""Inputs: the experts, adapters and tasks that a cell's score depends on, where they lie, and their digests."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from t2eval.bench.config import BASELINES, DISPATCH, EXPERT_METHODS, STRATEGIES, BenchConfig
from t2eval.errors import T2Error, unknown
from t2eval.expert.hub import located_all, pinned
from t2eval.expert.location import source_of
from t2eval.paths import experts_in
from t2eval.store.digests import file_digest, object_digest
from t2eval.store.files import inside, read_record
from t2eval.store.tensors import read_header
from t2eval.training.methods import find_method

_EXPERT, _ADAPTER = "expert.safetensors", "adapter_model.safetensors"
_CARD_BYTES = 64 << 20  # a card of an expert holds a few numbers for each of its matrices


class _Card(BaseModel):
    """What a benchmark needs of an expert's card."""

    name: str
    label: str
    basis_fingerprint: dict[str, list[float]] | None = None


def cards(library: str | Path) -> dict[str, dict[str, Any]]:
    """The cards of the experts of a library.

    Args:
        library: a folder of experts, or of one, or several such folders joined by `+`.

    Returns:
        Expert folder → contents of its `expert.json`.

    Raises:
        T2Error: no folder, no expert in it, or a damaged card.
    """
    found = {str(folder): _card(folder) for part in located_all(str(library)) for folder in experts_in([part])}
    if not found:
        raise T2Error(f"No experts in {library}. Train them with `t2 train-expert`, or set `experts:` in the benchmark file.")
    return found


def _card(folder: Path) -> dict[str, Any]:
    """The card of one expert, which may be a PEFT adapter; errors as `cards`."""
    if not (folder / "expert.json").is_file():
        from t2eval.expert.adapter import Adapter

        adapter = Adapter.load(folder)
        return {"name": adapter.name, "label": adapter.label, "basis_fingerprint": None}
    remedy = "Train the expert again, or copy it again."
    file = inside(folder, "expert.json", what="expert's card", remedy=remedy)
    return read_record(file, _Card, what="expert's card", remedy=remedy, limit=_CARD_BYTES).model_dump()


def expert_of(library: str | Path, label: str) -> Path:
    """The folder of the expert with a label.

    Raises:
        T2Error: the library has none.
    """
    labels = {str(card["label"]): folder for folder, card in cards(library).items()}
    if label not in labels:
        raise unknown(f"expert label in {library}:", label, labels)
    return Path(labels[label])


def adapter_file(folder: Path, method: str) -> Path:
    """The weights of a baseline's run: of a PEFT adapter, or a whole checkpoint.

    Raises:
        T2Error: it is not there.
    """
    file = folder / find_method(method).weights
    if not file.is_file():
        raise T2Error(f"No adapter in {folder}. Train it with `t2 train-expert --method …`, or set `baselines:` in the benchmark file.")
    return file


def parameter_count(file: Path) -> int:
    """How many numbers a safetensors file holds.

    Raises:
        T2Error: it is not one.
    """
    return read_header(file, what="file of tensors", remedy="Train it again, or copy it again.").numbers


def expert_facts(method: str, spec: str) -> dict[str, Any]:
    """Parameters and hashes of the experts that a method uses: cls also its classification expert, the others not."""
    used = {folder: card for folder, card in cards(spec).items() if _may_use_dispatch(method) or card["label"] != DISPATCH}
    files = {folder: Path(folder) / (_EXPERT if (Path(folder) / "expert.json").is_file() else _ADAPTER) for folder in used}
    names = {folder: str(card["name"]) for folder, card in used.items()}
    sources = {names[folder]: str(source) for folder in used if (source := source_of(folder)) is not None}
    return {
        "trainable_parameters": sum(parameter_count(file) for file in files.values()),
        "hashes": {
            "experts": {names[folder]: file_digest(file) for folder, file in files.items()},
            "basis": {names[folder]: object_digest(card.get("basis_fingerprint")) for folder, card in used.items()},
            **({"sources": sources} if sources else {}),
        },
    }


def _may_use_dispatch(method: str) -> bool:
    """Whether a method reads the classification expert: of the strategies that choose, `cls` alone."""
    return method == "cls" or method not in STRATEGIES


def adapter_facts(folder: Path, method: str) -> dict[str, Any]:
    """Parameters and hash of a baseline's adapter.

    Raises:
        T2Error: it is missing or damaged.
    """
    file = adapter_file(folder, method)
    return {"trainable_parameters": parameter_count(file), "hashes": {"adapter": {folder.name: file_digest(file)}}}


def files_of(config: BenchConfig) -> dict[str, str]:
    """Digests of the expert and adapter files that lie where a benchmark will look, but of a classification expert that none of its
    methods uses: with another one no row would be another."""
    found: dict[str, str] = {}
    for seed in config.seeds:
        files: list[Path] = []
        if config.uses_library:
            kinds = {config.kind(method) for method in config.methods if config.shares_library(method)}
            files += [file for place in config.libraries(seed) for file in _weights_in(place, kinds)]
        own = [(config.own_experts(method, seed), {config.kind(method)}) for method in config.methods]
        files += [file for spec, kinds in own if spec is not None for place in located_all(spec) for file in _weights_in(place, kinds)]
        for method in sorted(set(BASELINES) & set(config.methods)):
            files += [folder / find_method(method).weights for folder in config.adapters(method, seed)]
        found |= {str(file): file_digest(file) for file in sorted(files) if file.is_file()}
    return found


def pinned_config(config: BenchConfig) -> BenchConfig:
    """A benchmark in which the experts of the hub have the commit that they stand for now, so that every worker reads the same ones.

    Raises:
        T2Error: the hub does not give them.
    """
    if not EXPERT_METHODS & config.kinds:
        return config
    arguments = {
        method: {**given, "experts": pinned(str(given["experts"]))} if "experts" in given else given
        for method, given in config.model_args.items()
    }
    experts = None if config.experts is None else pinned(config.experts)
    return config.model_copy(update={"experts": experts, "model_args": arguments})


def _weights_in(place: Path, kinds: Collection[str]) -> list[Path]:
    """The files of experts and of adapters that methods use of a library, or of the one expert that it is itself."""
    found = [file for name in (_EXPERT, _ADAPTER) for file in (place / name, *place.glob(f"*/{name}")) if file.is_file()]
    return found if any(map(_may_use_dispatch, kinds)) else [file for file in found if not _is_dispatch(file)]


def _is_dispatch(file: Path) -> bool:
    """Whether weights are a classification expert's. Those of an expert without a card are not: who loads it will say that it has none."""
    return (file.name == _ADAPTER or (file.parent / "expert.json").is_file()) and _card(file.parent)["label"] == DISPATCH


def task_digest(manager: Any, name: str) -> str:
    """A digest of a task as it is on this machine: its YAML with all that it includes, the Python files of its functions, local data.

    Folders do not count, so that a copied checkout has the same digest. Data sets of the hub count by name and revision.
    """
    from t2eval.environment.loading import checked_config

    config = checked_config(manager, name)
    return object_digest(_located(config))


def _located(value: Any) -> Any:
    """A YAML value in which each file that it names is its name and digest."""
    if isinstance(value, Mapping):
        return {str(key): _located(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_located(part) for part in value]
    return next((f"{Path(value).name} {file_digest(file)}" for file in _files(value)), value) if isinstance(value, str) else value


def _files(text: str) -> Iterator[Path]:
    """The local file that a text of a task's YAML stands for: data, or the module of a function (lm-eval gives `/folder/module.name`)."""
    if "\n" in text or "\0" in text or len(text) > 1000 or "/" not in text and not text.endswith((".json", ".jsonl", ".csv", ".parquet")):
        return
    module = Path(text.rpartition(".")[0] + ".py")
    yield from (file for file in (Path(text), module) if file.is_file())
