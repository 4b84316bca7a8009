"""Methods: svf, lora, ia3 and dora, each a base model in and a trainable model out, behind one small surface.

A further baseline is one more entry of `_PEFT`. IA3 and DoRA (Table 7) and LoRA (Table 6: query and value projections) are PEFT's own.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from t2eval.errors import T2Error, UsageError
from t2eval.paths import cache_dir
from t2eval.svf.adapted import Adapted, attach
from t2eval.svf.matrices import find_matrix
from t2eval.svf.selection import remapped_paths, target_paths
from t2eval.training.config import TrainConfig

_ADAPTED_MODULE = re.compile(r"base_model\.model\.(?P<path>.+?)\.(?:lora|ia3)_.+")
_FEEDFORWARD = ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj", "w2", "wo")
"""The last map of a feed-forward block: IA3 scales its input, and the output of every other map."""


class Trainable(ABC):
    """A model with a few trainable parameters beside its frozen weights.

    Attributes:
        model: what is called: `model(input_ids=…)`.
    """

    model: Any

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name; nothing else of the model requires a gradient."""

    @abstractmethod
    def base(self) -> Any:
        """A context manager in which the model is the base model: the reference of the KL penalty."""

    @abstractmethod
    def fast(self) -> Any:
        """A context manager in which the model answers as trained so far, as fast as it can, without gradients."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    def train_mode(self) -> None:
        """Dropout in the adapter only: the base model's own would make the policy that is scored another than the one that spoke."""
        self.model.eval()
        for name, module in self.model.named_modules():
            if "lora_dropout" in name:
                module.train()

    def eval_mode(self) -> None:
        """No dropout at all."""
        self.model.eval()

    def state(self) -> dict[str, Tensor]:
        """A copy of the trainable parameters, on the CPU."""
        return {name: parameter.detach().cpu().clone().contiguous() for name, parameter in self.parameters().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a copy back.

        Raises:
            T2Error: it has other parameters than this model.
        """
        own = self.parameters()
        if set(own) != set(state) or any(own[name].shape != state[name].shape for name in own):
            raise T2Error(
                "The checkpoint holds other parameters than this run trains. Resume with the model, method, modules and layers it was "
                "started with, or give overwrite."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])


class SvfTrainable(Trainable):
    """The singular-value scales of the chosen matrices (eq. of section 3.1: W' = U Σ diag(z) Vᵀ)."""

    def __init__(self, model: Any, config: TrainConfig) -> None:
        self.model = model
        self.adapted: Adapted = attach(
            model, config.modules or "all", config.layers, parameterisation=config.parameterisation, cache_dir=cache_dir() / "bases"
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.adapted.trainable()

    def z(self) -> dict[str, Tensor]:
        """The trained scales, detached."""
        return {path: scale.detach().clone() for path, scale in self.adapted.z().items()}

    def base(self) -> Any:
        return self.adapted.disabled()

    def fast(self) -> Any:
        return self.adapted.fast(self.z())


class PeftTrainable(Trainable):
    """A PEFT adapter: LoRA, IA3 or DoRA."""

    def __init__(self, model: Any, config: TrainConfig) -> None:
        from peft import get_peft_model

        model.requires_grad_(False)
        paths = _peft_paths(model, config)
        torch.manual_seed(config.seed)  # the adapter's first values
        self.model = get_peft_model(model, _PEFT[config.method](model, paths, config))

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def base(self) -> Any:
        return self.model.disable_adapter()

    @contextmanager
    def fast(self) -> Iterator[Any]:
        yield self.model  # unmerging would not give the weights back bit for bit

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write the adapter as PEFT does, `adapter_config.json` last.

        Args:
            path: the directory.
            identity: `id` and `revision` of the base model, which the adapter's configuration names.

        Raises:
            T2Error: the directory cannot be written.
        """
        adapter = self.model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = identity["id"], identity["revision"]
        staging = path / ".unfinished-adapter"
        try:
            self.model.save_pretrained(staging)
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                os.replace(staging / name, path / name)
        except (OSError, SafetensorError) as error:
            raise T2Error(f"Could not write the adapter to {path}: {error}. Make room, then run again with resume.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def load_adapter(model: Any, folder: Path) -> Any:
    """A base model with a PEFT adapter on it, in evaluation mode.

    An adapter of a language model also fits a vision-language model that contains it, as an expert does (`targets.remapped_paths`). PEFT
    checks no weights: whether the language model is the same one is the caller's to know.

    Args:
        model: the base model.
        folder: the adapter, as PEFT saves it.
    """
    from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict

    state = load_file(folder / "adapter_model.safetensors")
    places = {name: match["path"] for name in state if (match := _ADAPTED_MODULE.fullmatch(name))}
    moved = remapped_paths(model, set(places.values()))
    if not moved:
        return _complete(PeftModel.from_pretrained(model, str(folder)), state, folder)
    config: Any = PeftConfig.from_pretrained(str(folder))
    feedforward = tuple(getattr(config, "feedforward_modules", None) or ())
    config.target_modules = sorted(moved.values())
    if feedforward:
        config.feedforward_modules = sorted(new for old, new in moved.items() if old.endswith(feedforward))
    adapted = get_peft_model(model, config)
    found: Any = set_peft_model_state_dict(adapted, {name.replace(path, moved[path], 1): state[name] for name, path in places.items()})
    if found.unexpected_keys or len(places) != len(state):
        raise T2Error(f"The adapter in {folder} does not fit this {type(model).__name__}.")
    return _complete(adapted, {name.replace(path, moved[path], 1): None for name, path in places.items()}, folder)


def _complete(adapted: Any, given: Mapping[str, Any], folder: Path) -> Any:
    """An adapted model in evaluation mode. PEFT only warns of tensors that a file lacks, and leaves them as they are before training.

    Raises:
        T2Error: the file lacks some.
    """
    from peft import get_peft_model_state_dict

    missing = sorted(get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - given.keys())
    if missing:
        raise T2Error(
            f"The adapter in {folder} lacks {len(missing)} of its tensors, {missing[0]} among them: its file is damaged, or of another "
            "configuration. Train it again, or copy it again."
        )
    return adapted.eval()


def _peft_defaults(model: Any, method: str) -> list[str]:
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    )

    table = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING if method == "ia3" else TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    kind = getattr(model.config.get_text_config(decoder=True), "model_type", "")  # of a vision-language model, its backbone's
    if kind not in table:
        raise UsageError(f"PEFT has no default modules for {method} on {kind!r} models: choose modules: all, mlp, attention, or names.")
    return list(table[kind])


def _peft_paths(model: Any, config: TrainConfig) -> list[str]:
    return target_paths(model, config.modules or ",".join(_peft_defaults(model, config.method)), config.layers, fused=False)


def _transposed(model: Any, paths: list[str]) -> bool:
    return find_matrix(model, paths[0]).transposed


def _lora(model: Any, paths: list[str], config: TrainConfig) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=paths,
        fan_in_fan_out=_transposed(model, paths),
        use_dora=config.method == "dora",
        task_type="CAUSAL_LM",
    )


def _ia3(model: Any, paths: list[str], config: TrainConfig) -> Any:
    from peft import IA3Config

    feedforward = [path for path in paths if any(path.endswith(f".{name}") for name in _FEEDFORWARD)]
    return IA3Config(target_modules=paths, feedforward_modules=feedforward, fan_in_fan_out=_transposed(model, paths), task_type="CAUSAL_LM")


_PEFT: dict[str, Callable[[Any, list[str], TrainConfig], Any]] = {"lora": _lora, "dora": _lora, "ia3": _ia3}


def make_trainable(model: Any, config: TrainConfig) -> Trainable:
    """Add a method's parameters to a base model.

    Args:
        model: a transformers causal model; it is frozen.
        config: method, modules, layers, parameterisation, LoRA's sizes, seed.

    Returns:
        The trainable model; before the first step it answers as the base model.

    Raises:
        UsageError: unknown modules or layers.
    """
    return SvfTrainable(model, config) if config.method == "svf" else PeftTrainable(model, config)
