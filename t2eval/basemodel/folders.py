"""Folders: where the embedded models lie, and what is shipped with them. Nothing is loaded here, and torch is not needed."""

from __future__ import annotations

from pathlib import Path

from t2eval import paths
from t2eval.errors import unknown
from t2eval.paths import EMBEDDED, EMBEDDED_FOLDERS, EMBEDDED_VLM

_BASELINES = ("lora", "ia3", "dora", "vera", "tinylora", "loraxs", "full")
LANGUAGE_SKILLS = ("math", "code", "reasoning")
"""The skills of which the embedded base model has experts and baselines."""


def embedded_base_dir(name: str = EMBEDDED) -> Path:
    """The folder of an embedded base model, in the Hub layout. It may be absent in a checkout where it was not built.

    Args:
        name: `embedded`; `embedded-seed-1`, which has no experts of its own; or `embedded-vlm`, whose folder holds a processor too.

    Raises:
        UsageError: another name.
    """
    if name not in EMBEDDED_FOLDERS:
        raise unknown("embedded base", name, EMBEDDED_FOLDERS)
    return paths.experts_dir() / EMBEDDED_FOLDERS[name]


def embedded_library_dir(seed: int = 0) -> Path:
    """The folder of the embedded base model's experts (math, code, reasoning, dispatch) of one seed."""
    return paths.experts_dir() / "library" / f"seed-{seed}"


def embedded_baseline_dir(method: str, task_family: str, seed: int = 0) -> Path:
    """The folder of the PEFT adapter that one baseline method gave for one task family and seed.

    Args:
        method: `lora`, `ia3`, `dora`, which are shipped, or `vera`, `tinylora`, `loraxs`, `full`, which `t2 demo --full` trains.
        task_family: `math`, `code` or `reasoning`.
        seed: the training seed.

    Raises:
        UsageError: an unknown method or family.
    """
    if method not in _BASELINES:
        raise unknown("baseline", method, _BASELINES)
    if task_family not in LANGUAGE_SKILLS:
        raise unknown("task family", task_family, LANGUAGE_SKILLS)
    return paths.experts_dir() / "baselines" / f"seed-{seed}" / f"{method}-{task_family}"


def embedded_vlm_library_dir(seed: int = 0) -> Path:
    """The folder of the embedded vision-language model's experts of one seed, one folder a label."""
    return paths.experts_dir() / "vlm-library" / f"seed-{seed}"


def embedded_vlm_baseline_dir(method: str, label: str, seed: int = 0) -> Path:
    """The folder of the PEFT adapter that one baseline method gave for one label and seed on the embedded vision-language model.

    Raises:
        UsageError: an unknown method.
    """
    if method not in _BASELINES:
        raise unknown("baseline", method, _BASELINES)
    return paths.experts_dir() / "vlm-baselines" / f"seed-{seed}" / f"{method}-{label}"


def embedded_libraries(name: str, seed: int = 0) -> list[Path]:
    """The folders of the experts that go with an embedded model: to the vision-language one belong the language model's too, and what
    was trained with pictures takes the place of what has its name there (`paths.experts_in`).

    Args:
        name: `embedded` or `embedded-vlm`.
        seed: the training seed.
    """
    return [embedded_library_dir(seed), *([embedded_vlm_library_dir(seed)] if name == EMBEDDED_VLM else [])]


def embedded_adapters(name: str, method: str, label: str, seed: int = 0) -> list[Path]:
    """Where a baseline's adapter for an embedded model may lie, in the order of `embedded_libraries`; `*` stands for all labels.

    Raises:
        UsageError: an unknown method, or, for the language model, a label that it has no baselines for.
    """
    found = [embedded_vlm_baseline_dir(method, label, seed)] if name == EMBEDDED_VLM else []
    if label == "*":
        return [embedded_baseline_dir(method, LANGUAGE_SKILLS[0], seed).with_name(f"{method}-*"), *found]
    return [embedded_baseline_dir(method, label, seed), *found] if label in LANGUAGE_SKILLS or not found else found
