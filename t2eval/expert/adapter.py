"""Adapter: a PEFT adapter in the place of an expert: what it is called, which base it is of, and its digest.

The folder is what PEFT saves, `adapter_config.json` and `adapter_model.safetensors`; `t2_adapter.json` beside them says the label and the
description by which dispatch chooses it. Its weights are put on a model by `t2eval.training.adapters`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t2eval.basemodel.load import base_identity
from t2eval.basemodel.sampled import sampled_digest
from t2eval.errors import T2Error
from t2eval.expert.card import is_plain, no_directory
from t2eval.store.digests import file_digest, object_digest
from t2eval.store.files import read_json, write_json
from t2eval.store.tensors import read_header

_log = logging.getLogger(__name__)

CARD, CONFIG, TENSORS = "t2_adapter.json", "adapter_config.json", "adapter_model.safetensors"
_REMEDY = "Copy the adapter again."
_UNSERVED = {
    **dict.fromkeys(
        ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
        "it puts tokens of its own before every prompt, and scales or adds to no weight",
    ),
    **dict.fromkeys(("XLORA", "POLY"), "it chooses among adapters itself"),
}
"""PEFT type → why it cannot be put on for some prompts only."""
_UNMIXED = {
    "use_dora": "DoRA's magnitudes cannot be added",
    "lora_bias": "its biases would not be mixed",
    "modules_to_save": "it holds whole modules beside the adapter",
    "target_parameters": "it adapts bare parameters",
    "trainable_token_indices": "it holds embeddings of tokens",
    "layer_replication": "it repeats layers",
    "use_bdlora": "it is block-diagonal",
    "use_qalora": "it groups its inputs",
    "alora_invocation_tokens": "it is in force behind certain tokens only",
}
"""Setting of a LoRA → why PEFT's weighted sum of such adapters is not the sum of what they do."""


class AdapterCard(BaseModel):
    """`t2_adapter.json`: how dispatch calls an adapter, and the weights that it was trained on.

    `base_digest` is `basemodel.sampled.sampled_digest` of these, and `base_dtype` what they were loaded in; None where nobody noted it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(min_length=1)
    description: str = ""
    base_digest: str | None = None
    base_dtype: str | None = None


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter as an expert.

    Attributes:
        folder: where it lies. name: the folder's.
        label, description: of its card; the label is empty where there is no card.
        kind: PEFT's type, such as `LORA`.
        base: id of the base model that it was trained on; None where its configuration does not say.
        sha256: over its configuration and its weights.
        weights: sha256 of the weights' file alone.
        parameters: how many numbers it holds.
        config: of `adapter_config.json`.
        base_digest, base_dtype: of its card.
    """

    folder: Path
    name: str
    label: str
    description: str
    kind: str
    base: str | None
    sha256: str
    weights: str
    parameters: int
    config: Mapping[str, Any]
    base_digest: str | None = None
    base_dtype: str | None = None

    @classmethod
    def load(cls, path: str | Path, label: str | None = None) -> Adapter:
        """Read an adapter's configuration, card and digest.

        Args:
            path: its folder.
            label: over its card's.

        Raises:
            T2Error: no such folder, a missing or damaged file, or a type that cannot be an expert.
        """
        folder = Path(path).resolve()
        if not folder.is_dir():
            raise T2Error(no_directory(folder))
        if not is_plain(folder.name):
            raise T2Error(f"The folder {folder} gives its adapter a name that is not plain: rename it (letters, digits, '.', '_', '-').")
        config = read_json(folder / CONFIG, what="adapter's configuration", remedy=_REMEDY)
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise T2Error(f"{folder / CONFIG} has no peft_type: this is not a PEFT adapter's configuration. {_REMEDY}")
        kind = config["peft_type"]
        if kind in _UNSERVED:
            raise T2Error(
                f"{folder} is a {kind} adapter, which cannot be an expert: {_UNSERVED[kind]}. Evaluate it with lm_eval's own class "
                f"(lm_eval --model hf --model_args pretrained=BASE,peft={folder})."
            )
        weights = file_digest(folder / TENSORS)
        card = read_adapter_card(folder)
        return cls(
            folder=folder,
            name=folder.name,
            label=label or (card.label if card else ""),
            description=card.description if card else "",
            kind=kind,
            base=config.get("base_model_name_or_path") or None,
            sha256=object_digest([config, weights]),
            weights=weights,
            parameters=_count(folder / TENSORS),
            config=config,
            base_digest=card.base_digest if card else None,
            base_dtype=card.base_dtype if card else None,
        )

    def check(self, model: Any, *, allow: bool = False) -> None:
        """Whether it is of this base model: by the base's name, and by its weights where the card says which. PEFT's own check of shapes
        comes when it is put on.

        Raises:
            T2Error: it was trained on another one, or on other weights of this name.
        """
        here = base_identity(model)["id"]
        if allow:
            return
        if self.base is None or _same_base(self.base, str(here)):
            self._check_weights(model, str(here))
            return
        raise T2Error(
            f"Adapter {self.name!r} was trained on {self.base}, and this is {here} ({type(model).__name__}). Load the adapter's base "
            "model, or, where this has the same weights, give allow_basis_mismatch=true."
        )

    def _check_weights(self, model: Any, here: str) -> None:
        dtype = str(model.dtype).removeprefix("torch.")
        if self.base_digest is None:
            _say_once("Adapters without a note of their base's weights are checked by its name only (the first: %s).", self.name)
        elif self.base != here and self.base is not None and not Path(here).is_dir():
            _say_once("Adapter %s is used in a model that contains its base: whether the weights are the same was not checked.", self.name)
        elif sampled_digest(model) == self.base_digest:
            return
        elif dtype != self.base_dtype:
            _say_once(f"Adapter %s was trained in {self.base_dtype}, and this is {dtype}: the weights were not compared.", self.name)
        else:
            raise T2Error(
                f"Adapter {self.name!r} was trained on other weights of {self.base or here} than these: another revision, or another model "
                "of one name. Load the weights that it was trained on, or give allow_basis_mismatch=true."
            )

    @property
    def unmixable(self) -> str | None:
        """Why PEFT cannot add it to others, or scale it; None where it can."""
        if self.kind not in ("LORA", "IA3"):
            return f"PEFT mixes LoRA and IA3 adapters, not {self.kind}"
        found = next((why for name, why in _UNMIXED.items() if self.config.get(name)), None)
        return found or ("it holds biases" if self.config.get("bias", "none") != "none" else None)


def read_adapter_card(folder: Path) -> AdapterCard | None:
    """The card beside an adapter; None where there is none.

    Raises:
        T2Error: it is damaged.
    """
    if not (folder / CARD).is_file():
        return None
    content = read_json(folder / CARD, what="adapter's card", remedy="Write it anew with `t2 expert label`.")
    try:
        return AdapterCard.model_validate(content)
    except ValidationError as error:
        raise T2Error(f"{folder / CARD}: {error.errors()[0]['msg']}. Write it anew with `t2 expert label`.") from error


def write_adapter_card(folder: Path, label: str, description: str = "", base: tuple[str, str] | None = None) -> None:
    """Say how dispatch is to call an adapter.

    Args:
        folder: the adapter's.
        label, description: of the card.
        base: the digest and the dtype of the base's weights; None: as an older card has them.

    Raises:
        T2Error: no adapter is there, or the card cannot be written.
    """
    if not (folder / CONFIG).is_file():
        raise T2Error(f"{folder} holds no {CONFIG}: it is no PEFT adapter. An expert's own label is in its expert.json.")
    if base is None and (old := read_adapter_card(folder)) is not None and old.base_digest and old.base_dtype:
        base = old.base_digest, old.base_dtype
    digest, dtype = base or (None, None)
    card = AdapterCard(label=label, description=description, base_digest=digest, base_dtype=dtype)
    write_json(folder / CARD, card.model_dump(exclude_none=True))


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter and no expert."""
    return (folder / CONFIG).is_file() and not (folder / "expert.json").exists()


_SAID: set[str] = set()


def _say_once(message: str, name: str) -> None:
    """A warning, once a process."""
    if message not in _SAID:
        _SAID.add(message)
        _log.warning(message, name)


def _same_base(one: str, other: str) -> bool:
    if one == other or {one, other} == {"embedded", "embedded-vlm"}:  # the second one contains the first
        return True
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).resolve() == Path(other).resolve()


def _count(file: Path) -> int:
    return read_header(file, what="adapter's weights", remedy=_REMEDY).numbers
