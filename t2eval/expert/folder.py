"""Folder: the files of an expert, by name, and what is said of a folder that is none. Imports nothing heavy."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from t2eval.errors import did_you_mean

TENSORS, CARD, README = "expert.safetensors", "expert.json", "README.md"
PROMPTS = "prompts.safetensors"
"""The vectors of training prompts beside an expert (`prompts.py`), where somebody made them."""
PROMPTS_LIMIT = 2**28
"""Most bytes of that file: some ten thousand prompts of the largest models."""


def is_plain(name: str) -> bool:
    """Whether a name is a plain file name: letters, digits, `.`, `_` and `-`, not hidden."""
    return re.fullmatch(r"[\w.-]+", name) is not None and not name.startswith(".")


def no_directory(path: Path) -> str:
    if path.exists():
        return f"{path} is not a directory."
    siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    return f"There is no directory {path}.{did_you_mean(path.parent / name for name in near)}"
