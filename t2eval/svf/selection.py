"""Adapted matrices: which linear maps inside a model's decoder layers are scaled, chosen by explicit module paths.

Embeddings and the language-model head are outside the decoder layers, so they are never chosen. Fused maps (`qkv_proj`, GPT-2's `c_attn`)
count as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from t2eval.errors import T2Error, UsageError, unknown
from t2eval.svf.patterns import is_chosen, select_layers


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one linear map: `nn.Linear`, `Conv1D`, or a leaf with `in_features` and `out_features` (quantised ones)."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    sized = isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int)
    return sized and not any(True for _ in module.children())


def dense_weight(module: nn.Module) -> Tensor:
    """A linear map's weight as (out, in).

    A weight that is stored otherwise (quantised) is measured, in float32, by passing an identity through the module.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.ndim == 2:
        return weight.detach().T if isinstance(module, Conv1D) else weight.detach()
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    with torch.no_grad():
        image: Tensor = module.forward(torch.eye(int(module.in_features), device=device)).to(torch.float32)  # type: ignore[arg-type]
    bias = module_bias(module)
    return (image if bias is None else image - bias.to(torch.float32)).T.contiguous()


def module_bias(module: nn.Module) -> Tensor | None:
    """The bias of a linear map, which z does not scale, or None."""
    bias = getattr(module, "bias", None)
    bias = bias() if callable(bias) and not isinstance(bias, Tensor) else bias
    return bias.detach() if isinstance(bias, Tensor) else None


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The path and the list of a causal model's decoder layers, found from the structure and the configuration.

    Raises:
        T2Error: the model has no list of layers with linear maps in it.
    """
    root = model
    getter = getattr(model, "get_decoder", None)
    if callable(getter):
        found = getter()
        root = found if isinstance(found, nn.Module) else model
    prefix = next((name for name, module in model.named_modules() if module is root), "")
    candidates: list[tuple[int, str, nn.ModuleList]] = []
    for name, module in root.named_modules(prefix=prefix):
        nested = any(name.startswith(f"{outer}.") for _, outer, _ in candidates)
        if isinstance(module, nn.ModuleList) and not nested:
            size = sum(1 for child in module.modules() if is_linear(child))
            if size:
                candidates.append((size, name, module))
    if not candidates:
        raise T2Error(f"{type(model).__name__} has no list of decoder layers with linear maps: use a causal language model.")
    expected = _layer_count(model)
    fitting = [candidate for candidate in candidates if len(candidate[2]) == expected] or candidates
    _, name, layers = max(fitting, key=lambda candidate: candidate[0])
    return name, layers


def _layer_count(model: Any) -> int | None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return getattr(text, "num_hidden_layers", None)


def target_paths(model: Any, modules: str = "all", layers: str = "all") -> list[str]:
    """The module paths of the matrices to scale, in the model's order.

    Args:
        model: a transformers causal model.
        modules: `all`, `attention` (paths with "attn" or "attention" in them), `mlp` (every other linear map of a decoder layer), or a
            comma-separated list of these and of path endings inside a layer (`q_proj`, `mlp.down_proj`).
        layers: `all`, `half` (the first half: the paper does not say which half it took), a range `0-15`, or a list `0,3`.

    Raises:
        UsageError: an unknown module or layer, with near matches.
        T2Error: the model has no decoder layers.
    """
    prefix, blocks = decoder_layers(model)
    inside: list[tuple[int, str]] = [
        (index, name) for index, block in enumerate(blocks) for name, module in block.named_modules() if name and is_linear(module)
    ]
    names = _ordered(name for _, name in inside)
    chosen: set[str] = set()
    for wanted in [part.strip() for part in modules.split(",") if part.strip()] or [modules]:
        matched = {name for name in names if is_chosen(name, wanted)}
        if not matched:
            raise unknown("module", wanted, {"all", "attention", "mlp", *names})
        chosen |= matched
    indices = set(select_layers(layers, len(blocks)))
    paths = [f"{prefix}.{index}.{name}" for index, name in inside if index in indices and name in chosen]
    if not paths:
        raise UsageError(f"No module {modules!r} in layers {layers!r} of {type(model).__name__}.")
    return paths


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


_BLOCK = re.compile(r"(?P<prefix>.*?)\.(?P<rest>\d+\..+)")


def moved_paths(model: Any, paths: Iterable[str]) -> dict[str, str]:
    """Where matrices of a language model are inside a vision-language model that contains it, or the other way: path → path here.

    Paths are alike from the number of the decoder layer on (`model.layers.0.mlp.up_proj`, `model.language_model.layers.0.mlp.up_proj`).
    Empty where every path exists already, or where that does not lead to a matrix of this model for each of them.
    """
    own = {name for name, module in model.named_modules() if is_linear(module)}
    wanted = list(paths)
    if own.issuperset(wanted):
        return {}
    prefix, _ = decoder_layers(model)
    moved = {path: f"{prefix}.{match['rest']}" if (match := _BLOCK.fullmatch(path)) else path for path in wanted}
    return moved if own.issuperset(moved.values()) else {}


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The linear map at a path.

    Raises:
        UsageError: there is none, with near matches.
    """
    module: nn.Module | None = dict(model.named_modules()).get(path)
    if module is None or not is_linear(module):
        raise unknown("module path", path, [name for name, candidate in model.named_modules() if is_linear(candidate)])
    return module
