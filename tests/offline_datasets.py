"""A `datasets` cache made by hand, so that lm-eval's own hub tasks run in a test without a network."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from datasets.naming import camelcase_to_snakecase

_REVISION = "0" * 40
HUB = Path(__file__).parent / "fixtures" / "hub"
"""Hand-written rows in the real schemas: `<owner>__<dataset>/<configuration>/<split>.jsonl`, one JSON object a line."""


def write_dataset(root: Path, name: str, config: str, features: datasets.Features, splits: dict[str, list[dict[str, Any]]]) -> None:
    """Rows in the layout that `load_dataset(name, config)` finds offline under `root` (a `datasets` cache folder).

    Args:
        root: the cache folder (`HF_DATASETS_CACHE`, or `HF_HOME/datasets`).
        name: the hub id, `owner/dataset`.
        config: the configuration's name.
        features: the columns.
        splits: split → rows.
    """
    owner, dataset = name.split("/")
    dataset = camelcase_to_snakecase(dataset)
    folder = root / f"{owner}___{dataset}" / config / "0.0.0" / _REVISION
    folder.mkdir(parents=True)
    infos = datasets.SplitDict(dataset_name=dataset)
    for split, rows in splits.items():
        with ArrowWriter(features=features, path=str(folder / f"{dataset}-{split}.arrow")) as writer:
            for row in rows:
                writer.write(row)
            writer.finalize()
        infos.add(datasets.SplitInfo(name=split, num_examples=len(rows), dataset_name=dataset))
    info = datasets.DatasetInfo(
        features=features, builder_name="parquet", dataset_name=dataset, config_name=config, version="0.0.0", splits=infos
    )
    info.write_to_directory(str(folder))


def hub_rows(name: str, config: str, split: str, hub: Path = HUB) -> list[dict[str, Any]]:
    """The rows of one split, by default hand-written ones. `name` is the hub id, `owner/dataset`."""
    path = hub / name.replace("/", "__") / config / f"{split}.jsonl"
    # Not `splitlines`, which cuts at U+2028 too: real rows have it.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write_hub(root: Path, *names: str, hub: Path = HUB) -> None:
    """Every configuration of the given data sets (default: of all in `hub`), where `load_dataset` finds it offline.

    The columns' types are those that `datasets` infers from all rows of a configuration.

    Args:
        root: the cache folder (`HF_DATASETS_CACHE`).
        names: hub ids, `owner/dataset`.
        hub: a folder of rows in the layout of `HUB`.
    """
    every = sorted(path for path in hub.iterdir() if path.is_dir() and "__" in path.name)
    for folder in every if not names else [hub / name.replace("/", "__") for name in names]:
        for config in sorted(path for path in folder.iterdir() if path.is_dir()):
            name = folder.name.replace("__", "/", 1)
            splits = {path.stem: hub_rows(name, config.name, path.stem, hub) for path in sorted(config.glob("*.jsonl"))}
            features = datasets.Dataset.from_list([row for rows in splits.values() for row in rows]).features
            write_dataset(root, name, config.name, features, splits)


@contextmanager
def datasets_cache(root: Path) -> Iterator[None]:
    """`datasets` reads and writes its cache under `root`, inside the context."""
    config: Any = importlib.import_module("datasets.config")
    before = {
        name: getattr(config, name) for name in ("HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if hasattr(config, name)
    }
    config.HF_DATASETS_CACHE = root
    for name in before:
        if name != "HF_DATASETS_CACHE":
            setattr(config, name, True)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
