"""Hub: what of a model or a data set is on this machine, and whether the rest can be had, without loading any of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from t2eval.basemodel.hub_errors import data_problem, model_problem, one_line
from t2eval.basemodel.packaged import packaged_folder, packaged_obstacle
from t2eval.paths import SMOLLM2
from t2eval.store.files import inside, read_record
from t2eval.store.tensors import read_header

_LOCAL_READERS = frozenset({"json", "csv", "parquet", "arrow", "text", "imagefolder"})
_TIMEOUT = 10


@dataclass(frozen=True, order=True)
class HubData:
    """A data set of the hub: `owner/name`, and its configuration where it has several."""

    name: str
    config: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.config})" if self.config else self.name


@dataclass(frozen=True)
class CachedData:
    """What `datasets` has noted of a data set in its cache: examples by split, and bytes on the disk (None where it does not say)."""

    sizes: Mapping[str, int]
    bytes: int | None


class _Split(BaseModel):
    num_examples: int | None = None


class _Info(BaseModel):
    """What is read of a cached data set's `dataset_info.json`."""

    splits: dict[str, _Split] | None = None
    dataset_size: int | None = None


class _Index(BaseModel):
    """What is read of a model's `model.safetensors.index.json`."""

    weight_map: dict[str, str]


def hub_data(task: Mapping[str, Any]) -> list[HubData]:
    """The data set of the hub that a task reads: its `dataset_path`, also where a `custom_dataset` makes the splits of it.

    Args:
        task: its YAML. One that reads several data sets lists them in `metadata: {t2: {hub: […]}}`, as `owner/name` or
            `owner/name:configuration`.
    """
    stated = ((task.get("metadata") or {}).get("t2") or {}).get("hub")
    if stated:
        parts = [str(item).partition(":") for item in ([stated] if isinstance(stated, str) else stated)]
        return [HubData(name, config or None) for name, _, config in parts]
    path = task.get("dataset_path")
    if not path or path in _LOCAL_READERS or Path(str(path)).exists():
        return []
    return [HubData(str(path), task.get("dataset_name"))]


def cached_data(data: HubData) -> CachedData | None:
    """A data set in the cache of `datasets`, or None where it is not there."""
    from datasets import config as settings
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = data.name.rpartition("/")
    folder = Path(settings.HF_DATASETS_CACHE) / "___".join([*([owner] if owner else []), camelcase_to_snakecase(name)])
    found = sorted(folder.glob(f"{data.config or '*'}/*/*/dataset_info.json"))
    if not found:
        return None
    info = read_record(found[-1], _Info, what="cached data set's description", remedy="Remove its folder, and download it again.")
    sizes = {name: split.num_examples for name, split in (info.splits or {}).items() if split.num_examples is not None}
    return CachedData(sizes, info.dataset_size or sum(file.stat().st_size for file in found[-1].parent.glob("*.arrow")))


def offline() -> bool:
    """Whether the hub is switched off (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_DATASETS_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")


# ---------------------------------------------------------------------- models
def model_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model that is on this machine: in its folder, or in the hub's cache.

    Raises:
        T2Error: a name that no file of a folder has.
    """
    folder = packaged_folder() if model == SMOLLM2 else Path(model)
    if folder.is_dir():
        file = inside(folder, name, links=True, what="file of a model", remedy="Download the model again.")
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def model_config(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """A model's `config.json`, where it is on this machine."""
    file = model_file(model, "config.json", revision)
    return None if file is None else read_record(file, dict[str, Any], what="model's configuration", remedy="Download the model again.")


def weight_files(model: str, revision: str | None = None) -> list[Path] | None:
    """A model's safetensors files, where all of them are on this machine, else None."""
    index = model_file(model, "model.safetensors.index.json", revision)
    if index is None:
        single = model_file(model, "model.safetensors", revision)
        return None if single is None else [single]
    listed = read_record(index, _Index, what="model's list of weights", remedy="Download the model again.")
    names = sorted(set(listed.weight_map.values()))
    files = [model_file(model, name, revision) for name in names]
    return [file for file in files if file is not None] if all(files) else None


def has_weights(model: str, revision: str | None = None) -> bool:
    """Whether a model's weights are on this machine, in whichever format."""
    if weight_files(model, revision) is not None:
        return True
    return any(model_file(model, f"pytorch_model.bin{end}", revision) is not None for end in ("", ".index.json"))


def weight_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of safetensors files, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= read_header(file, what="file of a model's weights", remedy="Download the model again.").shapes
    return shapes


# ---------------------------------------------------------------------- what the hub says
def model_obstacle(model: str, revision: str | None = None) -> str | None:
    """Why a model of the hub cannot be had, with the remedy; None where it can, or is on this machine. At most one request."""
    if model == SMOLLM2:
        return packaged_obstacle()
    if Path(model).is_dir() or has_weights(model, revision):
        return None
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return f"There is no model folder {model}. Give the folder that holds its config.json, or a name of the hub (owner/name)."
    if offline():
        return (
            f"The model {model} is neither a folder nor in the hub's cache, and the hub is switched off. Unset HF_HUB_OFFLINE, or download "
            f"it where there is a network (hf download {model}) and copy the folder that HF_HOME names."
        )
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(model)
    except Exception as error:  # noqa: BLE001  the HTTP library's own errors, whichever it is in this release of huggingface_hub
        return model_problem(model, revision, error) or f"The model {model} cannot be asked for: {one_line(error)}"
    return None


def data_obstacle(data: HubData) -> str | None:
    """Why a data set of the hub cannot be had, in a few words; None where it can, or is in the cache. At most one request."""
    if cached_data(data) is not None:
        return None
    if offline():
        return "not in the cache, and the hub is switched off"
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(data.name, timeout=_TIMEOUT)
    except Exception as error:  # noqa: BLE001  as above
        return data_problem(data.name, error)
    return None
