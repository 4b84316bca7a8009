"""Prompts: `prompts.safetensors` beside an expert, the vectors of prompts of its training task, by which questions find the expert.

A vector means nothing without the model that made it. So the file also holds the vectors of a few fixed texts, the *probes*: loading
compares them with those of the model at hand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from t2eval.errors import T2Error
from t2eval.expert.folder import PROMPTS, PROMPTS_LIMIT
from t2eval.store.files import inside, read_bytes, write_bytes
from t2eval.store.tensors import parse_tensors, read_header

FILE = PROMPTS
PROBES = (
    "What is 3 plus 4?",
    "Write a function that reverses a list.",
    "Which of these floats on water: a stone, a leaf, a nail?",
    "Tell me a story about the sea.",
)
"""The fixed texts."""
_REMEDY = "Make it again with `t2 expert vectors`."
_TOLERATED = 5e-2  # relative difference of a probe; a dtype makes some 1e-2, other weights 1e-1 and more


@dataclass(frozen=True, eq=False)
class PromptVectors:
    """What the file holds.

    Attributes:
        vectors: (prompts, hidden) float32, one a prompt.
        probes: (len(PROBES), hidden) float32, of the same model.
        task: the task that the prompts are of.
        base: the base model's id, for messages.
        sha256: of the file; empty before it is written.
    """

    vectors: Tensor
    probes: Tensor
    task: str
    base: str
    sha256: str = ""

    def save(self, folder: Path) -> Path:
        """Write it beside an expert or adapter.

        Raises:
            T2Error: the folder cannot be written.
        """
        tensors = {"vectors": self.vectors.contiguous(), "probes": self.probes.contiguous()}
        content = save_tensors(tensors, {"format": "1", "task": self.task, "base": self.base})
        write_bytes(folder / FILE, content)
        return folder / FILE

    @classmethod
    def load(cls, folder: Path, name: str) -> PromptVectors:
        """Read and check the file.

        Args:
            folder: the expert's.
            name: the expert's, for messages.

        Raises:
            T2Error: there is none, it is damaged, or it is of a newer format.
        """
        if not (folder / FILE).exists():
            raise T2Error(
                f"Expert {name!r} has no {FILE} in {folder}, by which questions find it. Make it from its training prompts: "
                f"t2 expert vectors {folder}"
            )
        what = "file of prompt vectors"
        path = inside(folder, FILE, what=what, remedy=_REMEDY)
        content = read_bytes(path, what=what, remedy=_REMEDY, limit=PROMPTS_LIMIT)
        facts = read_header(path, what=what, remedy=_REMEDY).metadata
        if facts.get("format") != "1":
            raise T2Error(f"{path} has format {facts.get('format')!r}, and this t2eval reads format '1'. {_REMEDY}")
        tensors = parse_tensors(content, path, what=what, remedy=_REMEDY)
        vectors, probes = (_rows(tensors.get(each), f"The {what} {path} has no {each}") for each in ("vectors", "probes"))
        if len(probes) != len(PROBES) or vectors.shape[1] != probes.shape[1]:
            raise T2Error(
                f"The {what} {path} has rows of {vectors.shape[1]} numbers, and {len(probes)} probes of {probes.shape[1]}: there are "
                f"{len(PROBES)} of the same length. {_REMEDY}"
            )
        return cls(vectors, probes, facts.get("task", ""), facts.get("base", "another base"), hashlib.sha256(content).hexdigest())

    def check(self, probes: Tensor, name: str, base: str, *, allow: bool = False) -> None:
        """Whether the vectors are of the model at hand.

        Args:
            probes: (len(PROBES), hidden) float32, of that model.
            name: the expert's.
            base: the model's.
            allow: take other numbers all the same; another width cannot be taken.

        Raises:
            T2Error: they are of another one.
        """
        other = self.probes.shape != probes.shape
        difference = 1.0 if other else float(((probes - self.probes).norm(dim=1) / self.probes.norm(dim=1).clamp_min(1e-9)).max())
        if other or (difference > _TOLERATED and not allow):
            how = f"vectors of {self.probes.shape[1]} numbers, not {probes.shape[1]}" if other else f"they differ by {difference:.1%}"
            raise T2Error(f"The prompt vectors of expert {name!r} are of another model ({self.base}; here is {base}: {how}). {_REMEDY}")


def _rows(tensor: Tensor | None, problem: str) -> Tensor:
    """A tensor that is rows of finite float32 numbers."""
    if tensor is None or tensor.dtype != torch.float32 or tensor.ndim != 2 or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
        raise T2Error(f"{problem} in rows of finite float32 numbers. {_REMEDY}")
    return tensor
