"""Adapters: the baselines' parameters, which are PEFT's own (LoRA, IA3, DoRA), and loading one that was saved."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2eval.basemodel.sampled import sampled_digest
from t2eval.errors import T2Error, UsageError
from t2eval.expert.adapter import write_adapter_card
from t2eval.store.files import inside, read_record, write_text
from t2eval.store.folders import system_errors
from t2eval.store.tensors import read_tensors
from t2eval.svf.matrices import find_matrix
from t2eval.svf.selection import remapped_paths, target_paths
from t2eval.training.adapter_card import adapter_card
from t2eval.training.config import TrainConfig
from t2eval.training.record import RunRecord
from t2eval.training.trainable import Names, Trainable

CONFIG, TENSORS, README = "adapter_config.json", "adapter_model.safetensors", "README.md"
_ADAPTED_MODULE = re.compile(r"base_model\.model\.(?P<path>.+?)\.(?:lora|ia3|vera|tinylora)_.+")
_LARGEST = 2**34  # bytes of an adapter: one of high rank on a large model, with its embeddings
_FEEDFORWARD = ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj", "w2", "wo")
"""The last map of a feed-forward block: IA3 scales its input, and the output of every other map."""


class PeftTrainable(Trainable):
    """A PEFT adapter.

    Args:
        model: the base model.
        config: its seed gives the adapter's first values.
        adapter: PEFT's configuration.
    """

    def __init__(self, model: Any, config: TrainConfig, adapter: Any) -> None:
        from peft import get_peft_model

        model.requires_grad_(False)
        self._base = sampled_digest(model), str(model.dtype).removeprefix("torch.")  # before an adapter changes it, as PiSSA does
        torch.manual_seed(config.seed)
        self.model = get_peft_model(model, adapter)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def base(self) -> Any:
        return self.model.disable_adapter()

    @contextmanager
    def fast(self) -> Iterator[Any]:
        yield self.model  # unmerging would not give the weights back bit for bit

    def save(self, folder: Path, record: RunRecord, names: Names) -> None:
        self.save_adapter(folder, record.base_model.model_dump())
        write_adapter_card(folder, names.label, names.description, self._base)
        write_text(folder / README, adapter_card(names.name, record))

    def save_adapter(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write the adapter as PEFT does, `adapter_config.json` last.

        Args:
            folder: the directory.
            identity: `id` and `revision` of the base model, which the adapter's configuration names.

        Raises:
            T2Error: the directory cannot be written.
        """
        adapter = self.model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = identity["id"], identity["revision"]
        staging = folder / ".unfinished-adapter"
        try:
            with system_errors():
                self.model.save_pretrained(staging)
            for name in (TENSORS, CONFIG):
                os.replace(staging / name, folder / name)
        except OSError as error:
            raise T2Error(f"Could not write the adapter to {folder}: {error}. Make room, then run again with resume.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


# ---------------------------------------------------------------------- the methods
def lora(model: Any, config: TrainConfig) -> PeftTrainable:
    """LoRA on the modules that PEFT has for the model (Table 6: query and value projections), or on those that are given."""
    return PeftTrainable(model, config, _lora_config(model, config, dora=False))


def dora(model: Any, config: TrainConfig) -> PeftTrainable:
    """DoRA, where LoRA would be."""
    return PeftTrainable(model, config, _lora_config(model, config, dora=True))


def ia3(model: Any, config: TrainConfig) -> PeftTrainable:
    """IA3 on the modules that PEFT has for the model, or on those that are given."""
    from peft import IA3Config

    paths, transposed = target_modules(model, config, "ia3")
    feedforward = [path for path in paths if any(path.endswith(f".{name}") for name in _FEEDFORWARD)]
    adapter = IA3Config(target_modules=paths, feedforward_modules=feedforward, fan_in_fan_out=transposed, task_type="CAUSAL_LM")
    return PeftTrainable(model, config, adapter)


def _lora_config(model: Any, config: TrainConfig, *, dora: bool) -> Any:
    from peft import LoraConfig

    paths, transposed = target_modules(model, config, "lora")
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=paths,
        fan_in_fan_out=transposed,
        use_dora=dora,
        task_type="CAUSAL_LM",
    )


def target_modules(model: Any, config: TrainConfig, family: str) -> tuple[list[str], bool]:
    """What an adapter adapts, and whether those weights are stored as (in, out).

    Args:
        model: the base model.
        config: its modules and layers; without modules, PEFT's own for `family` and this kind of model.
        family: `lora` or `ia3`.

    Raises:
        UsageError: unknown modules or layers, or a model that PEFT has no default for.
    """
    paths = target_paths(model, config.modules or ",".join(_peft_defaults(model, family, config.method)), config.layers, fused=False)
    return paths, find_matrix(model, paths[0]).transposed


def _peft_defaults(model: Any, family: str, method: str) -> list[str]:
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    )

    table = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING if family == "ia3" else TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    kind = getattr(model.config.get_text_config(decoder=True), "model_type", "")  # of a vision-language model, its backbone's
    if kind not in table:
        raise UsageError(f"PEFT has no default modules for {method} on {kind!r} models: choose modules: all, mlp, attention, or names.")
    return list(table[kind])


# ---------------------------------------------------------------------- loading
@contextmanager
def mounted(model: Any, folder: Path) -> Iterator[Any]:
    """A base model with a PEFT adapter on it, unmerged, inside the context; afterwards the base's own modules and tensors again.

    Raises:
        T2Error: as `load_adapter`.
    """
    with mounted_together(model, {"default": folder}) as adapted:
        yield adapted


@contextmanager
def mounted_together(model: Any, folders: Mapping[str, Path]) -> Iterator[Any]:
    """A base model with PEFT adapters of one type on it, the first of them active, inside the context.

    Whatever happens inside, the model has its own modules and its own tensors, bit for bit, afterwards: tensors that an adapter's file or
    its first values would write into (biases, the base of some initialisations) are copies meanwhile.

    Args:
        model: the base model.
        folders: of each adapter, by the name that PEFT is to know it by.

    Raises:
        T2Error: as `load_adapter`.
    """
    restore = _snapshot(model)
    checksums = _first_numbers(model)
    try:
        adapted: Any = None
        for name, folder in folders.items():
            adapted = load_adapter(adapted if adapted is not None else model, folder, name)
        adapted.set_adapter(next(iter(folders)))
        adapted.eval()
        yield adapted
    finally:
        restore()
        if _first_numbers(model) != checksums:
            raise T2Error(f"The adapter in {next(iter(folders.values()))} has changed the base model's weights. Load the base model anew.")


def _first_numbers(model: Any) -> dict[str, tuple[int, float]]:
    """Where each parameter's memory is, and its sum: other memory or other numbers are noticed."""
    return {name: (parameter.data_ptr(), float(parameter.detach().double().sum())) for name, parameter in model.named_parameters()}


def load_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """A base model with a PEFT adapter on it, in evaluation mode. Where that fails, the model is left exactly as it was.

    An adapter of a language model also fits a vision-language model that contains it, as an expert does (`selection.remapped_paths`). PEFT
    checks no weights: whether the language model is the same one is the caller's to know.

    Args:
        model: the base model, or one with an adapter on it, which gets a further one.
        folder: the adapter, as PEFT saves it.
        name: that PEFT is to know it by.

    Raises:
        T2Error: the adapter is damaged, or does not fit the model.
    """
    from peft import PeftConfig

    remedy = "Train it again, or give another folder."
    state = read_tensors(inside(folder, TENSORS, what="adapter", remedy=remedy), what="adapter", remedy=remedy, limit=_LARGEST)
    given = read_record(inside(folder, CONFIG, what="adapter", remedy=remedy), dict[str, Any], what="adapter", remedy=remedy)
    _refuse_larger(given, state, folder)
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever PEFT's own reading of settings of any shape happens to raise
        raise T2Error(f"The adapter in {folder} cannot be read: {_first_line(error)}. {remedy}") from error
    restore = _snapshot(model)
    try:
        return _with_adapter(model, config, state, folder, name)
    except BaseException as error:
        restore()
        if isinstance(error, Exception) and not isinstance(error, (T2Error, MemoryError, torch.OutOfMemoryError)):
            raise T2Error(f"The adapter in {folder} does not fit this {type(model).__name__}: {_first_line(error)}") from error
        raise


def _refuse_larger(given: Mapping[str, Any], state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Refuse settings of an adapter that is larger than its own file: PEFT would make it first, and compare afterwards."""
    if given.get("peft_type") != "LORA":
        return
    largest = max((size for tensor in state.values() for size in tensor.shape), default=0)
    ranks = [given.get("r"), *(given["rank_pattern"].values() if isinstance(given.get("rank_pattern"), dict) else ())]
    for rank in ranks:
        if isinstance(rank, (int, float)) and rank > largest:
            raise T2Error(
                f"The adapter in {folder} cannot be read: its rank is said to be {rank:g}, and no tensor of its file is longer than "
                f"{largest}. Train it again, or give another folder."
            )


def _with_adapter(model: Any, config: Any, state: dict[str, torch.Tensor], folder: Path, called: str) -> Any:
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    places = {name: match["path"] for name in state if (match := _ADAPTED_MODULE.fullmatch(name))}
    remapped = remapped_paths(model, set(places.values()))
    if remapped:
        feedforward = tuple(getattr(config, "feedforward_modules", None) or ())
        config.target_modules = sorted(remapped.values())
        if feedforward:
            config.feedforward_modules = sorted(new for old, new in remapped.items() if old.endswith(feedforward))
        state = {name.replace(path, remapped[path], 1) if (path := places.get(name)) else name: state[name] for name in state}
    config.inference_mode = True
    if getattr(config, "bias", "none") != "none":  # the file's are written into the model's own
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data = parameter.data.clone()
    if hasattr(model, "add_adapter") and hasattr(model, "peft_type"):
        adapted = model
        adapted.add_adapter(called, config)
    else:
        adapted = get_peft_model(model, config, adapter_name=called)
    found: Any = set_peft_model_state_dict(adapted, state, adapter_name=called)
    if found.unexpected_keys:
        raise T2Error(f"The adapter in {folder} does not fit this {type(model).__name__}: it has no place for {found.unexpected_keys[0]}.")
    # PEFT only warns of tensors that a file lacks, and leaves them as they are before training.
    missing = sorted(get_peft_model_state_dict(adapted, adapter_name=called, save_embedding_layers=False).keys() - state.keys())
    if missing:
        raise T2Error(
            f"The adapter in {folder} lacks {len(missing)} of its tensors, {missing[0]} among them: its file is damaged, or of another "
            "configuration. Train it again, or copy it again."
        )
    return adapted.eval()


def _snapshot(model: nn.Module) -> Callable[[], None]:
    """A function that puts every module of a model back in its place, and every parameter's tensor and `requires_grad`."""
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    wanted = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    had_config = hasattr(model, "peft_config")
    training = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for parent, name, child in children:
            setattr(parent, name, child)
        for parameter, data, gradient in wanted:
            parameter.data = data
            parameter.requires_grad_(gradient)
        for module, mode in training:
            module.training = mode
        if not had_config and hasattr(model, "peft_config"):
            del model.peft_config

    return restore


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
