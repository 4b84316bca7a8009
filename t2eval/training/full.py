"""Full fine-tuning: every weight of the base model, or those of the modules that are named; the result is a plain checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from t2eval.errors import T2Error
from t2eval.store.files import write_text
from t2eval.store.folders import system_errors
from t2eval.store.tensors import map_tensors
from t2eval.svf.selection import target_paths
from t2eval.training.adapter_card import adapter_card
from t2eval.training.config import TrainConfig
from t2eval.training.record import RunRecord
from t2eval.training.trainable import Names, Trainable

WEIGHTS = "model.safetensors"
README = "README.md"


class FullTrainable(Trainable):
    """The base model's own parameters. A copy of them is kept, for the KL penalty and the score before training.

    Args:
        model: the base model; its weights change.
        config: its modules and layers, where not all parameters are meant.
    """

    def __init__(self, model: Any, config: TrainConfig) -> None:
        self.model = model.requires_grad_(False)
        chosen = None
        if config.modules is not None or config.layers != "all":
            paths = target_paths(model, config.modules or "all", config.layers, fused=False)
            chosen = {f"{path}.{kind}" for path in paths for kind in ("weight", "bias")}
        self._own = {name: parameter for name, parameter in model.named_parameters() if chosen is None or name in chosen}
        for parameter in self._own.values():
            if not parameter.is_floating_point():
                raise T2Error("A quantised model cannot be trained in full: load it in float32 or bfloat16, or choose another method.")
            parameter.requires_grad_(True)
        self._base = {name: parameter.detach().clone() for name, parameter in self._own.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._own)

    @contextmanager
    def base(self) -> Iterator[Any]:
        with _values(self._own, self._base):
            yield self.model

    @contextmanager
    def fast(self) -> Iterator[Any]:
        yield self.model

    def save(self, folder: Path, record: RunRecord, names: Names) -> None:
        self.save_checkpoint(folder)
        write_text(folder / README, adapter_card(names.name, record, whole=True))

    def save_checkpoint(self, folder: Path) -> None:
        """Write a checkpoint in the Hub's layout, with the base's configuration and tokenizer; `config.json` last.

        Raises:
            T2Error: the directory cannot be written.
        """
        staging = folder / ".unfinished-checkpoint"
        try:
            with system_errors():
                self._write(staging)
            for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, folder / path.name)
        except OSError as error:
            raise T2Error(f"Could not write the checkpoint to {folder}: {error}. Make room, then run again with resume.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        if not (folder / WEIGHTS).is_file():  # a large model is saved in several files: one is what is read here
            save_file({name: value.contiguous() for name, value in _untied(self.model).items()}, folder / WEIGHTS, {"format": "pt"})
            for part in folder.glob("model-*.safetensors"):
                part.unlink()
            (folder / f"{WEIGHTS}.index.json").unlink(missing_ok=True)
        self._tokenizer(folder)

    def _tokenizer(self, folder: Path) -> None:
        """The base's tokenizer beside the weights, so that the folder is a model of its own."""
        from transformers import AutoTokenizer

        source = str(self.model.config.name_or_path)
        AutoTokenizer.from_pretrained(source, revision=getattr(self.model.config, "_commit_hash", None)).save_pretrained(folder)


@contextmanager
def mounted(model: Any, folder: Path) -> Iterator[Any]:
    """A base model with the weights of a full fine-tuning, inside the context; afterwards its own tensors again, the very same.

    Args:
        model: the base model that was trained.
        folder: of the run.

    Raises:
        T2Error: no such file, a damaged one, or one of another model.
    """
    stored = map_tensors(folder / WEIGHTS, what="file of trained weights", remedy="Train them again, or copy them again.")
    own = dict(model.named_parameters())
    problem = next((name for name, value in own.items() if name not in stored or stored[name].shape != value.shape), None)
    problem = problem or next((name for name in stored if name not in own and name not in model.state_dict()), None)
    if problem is not None:
        raise T2Error(f"The weights in {folder} do not fit this {type(model).__name__}: {problem} is missing, or of another shape.")
    values = {name: stored[name].to(parameter.device, parameter.dtype) for name, parameter in own.items()}
    with _values(own, values):
        yield model


@contextmanager
def _values(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> Iterator[None]:
    """Parameters with other tensors, inside the context; nothing is copied, so their own are the same bits afterwards."""
    kept = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]


def _untied(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
