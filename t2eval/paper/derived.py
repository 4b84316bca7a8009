"""Derived experts: libraries on disk that are made of other libraries, so that a benchmark's cells can run them.

Shuffled experts (tables 5 and 9), even mixes (figure 7), and the experts of two base models in one library (table 5). A library is
written once; it is complete when its marker is there, which says what it holds: one of other experts is written anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2eval.basemodel.load import base_identity, load_base
from t2eval.expert.expert import Expert, mix
from t2eval.expert.library import load_library
from t2eval.store.files import read_bytes, write_bytes
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach

_MARKER = ".complete"


def skills(library: str | Path) -> list[Expert]:
    """The experts of a library without its classification expert."""
    return [expert for expert in load_library(library) if expert.label != DISPATCH_LABEL]


def shuffle(z: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """z with the values of each matrix in a random order: what it would be if the order of the singular values meant nothing."""
    generator = torch.Generator().manual_seed(seed)
    return {path: z[path][torch.randperm(len(z[path]), generator=generator)] for path in sorted(z)}


@dataclass(frozen=True)
class Derived:
    """An expert whose z is known, and whose base model need not be loaded before the expert is saved.

    Attributes:
        name, label, description, z: the expert's.
        base: the base model's name.
        make: gives the expert itself.
    """

    name: str
    label: str
    description: str
    z: Mapping[str, Tensor]
    base: str
    make: Callable[[], Expert]

    def save(self, folder: Path) -> None:
        """Write the expert to a directory."""
        self.make().save(folder)


def write_library(folder: Path, experts: Callable[[], Sequence[Expert | Derived]]) -> Path:
    """Save experts under `folder`, unless these very ones were saved before.

    Args:
        folder: of the library.
        experts: gives them. It is called each time, and what it gives is compared with what the library was written of.

    Returns:
        `folder`.
    """
    wanted = list(experts())
    content = (json.dumps([_content(expert) for expert in wanted], indent=1) + "\n").encode()
    marker = folder / _MARKER
    if not marker.exists() or read_bytes(marker) != content:
        shutil.rmtree(folder, ignore_errors=True)
        for expert in wanted:
            expert.save(folder / expert.name)
        write_bytes(marker, content)
    return folder


def _content(expert: Expert | Derived) -> dict[str, str]:
    """What tells an expert from another one: z follows from the experts that it was made of, what was done to them, and the seed."""
    digest = hashlib.sha256()
    for path in sorted(expert.z):
        digest.update(path.encode() + b"\0" + expert.z[path].contiguous().numpy().tobytes())
    base = expert.card.base_model.id if isinstance(expert, Expert) else expert.base
    return {"name": expert.name, "label": expert.label, "description": expert.description, "base": base, "z": digest.hexdigest()}


class Deriving:
    """Makes experts of a base model's experts. The base is loaded when the first of them is saved.

    Args:
        model: the base model's name or folder.
        experts: some of its experts: their matrices are attached.
    """

    def __init__(self, model: str, experts: Sequence[Expert]) -> None:
        self._model, self._paths = model, sorted({path for expert in experts for path in expert.z})
        self._adapted: Adapted | None = None
        self._identity: Mapping[str, Any] = {}

    @property
    def adapted(self) -> Adapted:
        if self._adapted is None:
            model, _ = load_base(self._model)
            self._identity = base_identity(model)
            self._adapted = attach(model, paths=self._paths)
        return self._adapted

    def expert(self, z: Mapping[str, Tensor], name: str, label: str, description: str) -> Derived:
        """An expert with the given z and the base's fingerprint."""
        make = functools.partial(self._made, z, name, label, description)
        return Derived(name, label, description, z, self._model, make)

    def _made(self, z: Mapping[str, Tensor], name: str, label: str, description: str) -> Expert:
        adapted = self.adapted
        identity = {"base_id": self._identity["id"], "revision": self._identity["revision"]}
        return Expert.from_adapted(adapted, z, name=name, label=label, description=description, **identity)

    def shuffled(self, experts: Sequence[Expert], seed: int) -> list[Derived]:
        """Each expert with its z shuffled."""
        return [self.expert(shuffle(e.z, seed), e.name, e.label, f"{e.description} z shuffled, seed {seed}.") for e in experts]

    def even(self, experts: Sequence[Expert]) -> list[Derived]:
        """The even mix of the experts, once under each of their labels: each task finds it as its own."""
        z = mix(experts, [1 / len(experts)] * len(experts))
        return [self.expert(z, f"even-{e.label}", e.label, f"The even mix of {len(experts)} experts.") for e in experts]
