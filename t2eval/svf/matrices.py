"""Matrix: one weight matrix of a model's decoder layers, whichever module holds it, and where they all are.

Most are a module of their own (`nn.Linear`, GPT-2's `Conv1D`, a quantised map). A mixture's routed experts lie in one parameter of three
dimensions, (experts, out, in) or (experts, in, out); each of its slices is a matrix with a path of its own, `….experts.down_proj.3`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from t2eval.errors import T2Error, unknown

FUSED = ("gate_up_proj", "up_proj", "down_proj")
"""The parameters in which transformers keeps the matrices of routed experts."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """One weight matrix.

    Attributes:
        path: the module's path; with the parameter's name and the expert's number behind it where the module holds many matrices.
        module: what holds it.
        name: of the parameter in the module.
        index: the expert's number in a parameter of three dimensions.
        transposed: whether it is stored as (in, out).
    """

    path: str
    module: nn.Module
    name: str = "weight"
    index: int | None = None
    transposed: bool = False

    @property
    def parameter(self) -> Tensor | None:
        """The parameter that holds the values as floats; None where they are packed (a quantised map)."""
        held = self.module._parameters.get(self.name)
        return held if held is not None and held.is_floating_point() and held.ndim == (2 if self.index is None else 3) else None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        if (held := self.parameter) is None:
            return int(self.module.out_features), int(self.module.in_features)  # type: ignore[arg-type]
        out, into = held.shape[-2:]
        return (into, out) if self.transposed else (out, into)

    def of(self, values: Tensor) -> Tensor:
        """The view of this matrix, (out, in), in values of the shape of its parameter."""
        own = values if self.index is None else values[self.index]
        return own.T if self.transposed else own

    def weight(self) -> Tensor:
        """The values as (out, in), without gradient. Packed ones are measured, in float32, by passing an identity through the module."""
        held = self.parameter
        return self.of(held.detach()) if held is not None else _measured(self.module)

    def bias(self) -> Tensor | None:
        """The bias (out,), which z does not scale, or None."""
        if self.index is not None:
            bias = getattr(self.module, f"{self.name}_bias", None)
            return bias[self.index] if isinstance(bias, Tensor) else None
        return module_bias(self.module)

    def dtype(self, otherwise: torch.dtype) -> torch.dtype:
        """The dtype of its activations: the weight's, or, of packed values, the model's."""
        held = self.parameter
        return otherwise if held is None else held.dtype


def plain(tensor: Any, what: str) -> Tensor:
    """A tensor of real numbers in memory, as it is.

    Raises:
        T2Error: it is sparse, nested, quantised, complex, without values (meta), or no tensor.
    """
    if not isinstance(tensor, Tensor):
        raise T2Error(f"{what} is a {type(tensor).__name__}, not a tensor.")
    problem = (
        "has no values (it is on the meta device)" if tensor.is_meta
        else f"is {str(tensor.layout).removeprefix('torch.')}, not dense" if tensor.layout != torch.strided or tensor.is_nested
        else "is quantised" if tensor.is_quantized
        else f"holds {str(tensor.dtype).removeprefix('torch.')} values, not real numbers" if not _is_real(tensor.dtype)
        else None
    )  # fmt: skip
    if problem is not None:
        raise T2Error(f"{what} {problem}.")
    return tensor


def _is_real(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def module_bias(module: nn.Module) -> Tensor | None:
    """The bias of a linear map, or None."""
    bias = getattr(module, "bias", None)
    bias = bias() if callable(bias) and not isinstance(bias, Tensor) else bias
    return bias.detach() if isinstance(bias, Tensor) else None


def _measured(module: nn.Module) -> Tensor:
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    with torch.no_grad():
        identity = torch.eye(int(module.in_features), device=device)  # type: ignore[arg-type]  # (in, in)
        image: Tensor = module.forward(identity).to(torch.float32)  # (in, out)
    bias = module_bias(module)
    return (image if bias is None else image - bias.to(torch.float32)).T.contiguous()


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one linear map: `nn.Linear`, `Conv1D`, or a leaf with `in_features` and `out_features` (quantised ones)."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    sized = isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int)
    return sized and not any(True for _ in module.children())


def is_fused(module: nn.Module) -> bool:
    """Whether a module is a mixture's routed experts in the common form of transformers, whose forward pass t2eval can take over."""
    if not all(isinstance(getattr(module, flag, None), bool) for flag in ("has_gate", "has_bias", "is_transposed")):
        return False
    first = "gate_up_proj" if module.has_gate else "up_proj"
    held = [module._parameters.get(name) for name in (first, "down_proj")]
    return all(tensor is not None and tensor.ndim == 3 and tensor.is_floating_point() for tensor in held)


def matrices_of(module: nn.Module, path: str) -> list[Matrix]:
    """The matrices that a module itself holds, not its children."""
    if is_linear(module):
        return [Matrix(path, module, transposed=isinstance(module, Conv1D))]
    if not is_fused(module):
        return []
    return [
        Matrix(f"{path}.{name}.{index}", module, name, index, bool(module.is_transposed))
        for name in FUSED
        if (held := module._parameters.get(name)) is not None
        for index in range(len(held))
    ]


def all_matrices(model: nn.Module) -> dict[str, Matrix]:
    """Every matrix of a model, embeddings and heads that are linear maps included, by path, in the model's order."""
    return {matrix.path: matrix for path, module in model.named_modules() for matrix in matrices_of(module, path)}


def find_matrix(model: nn.Module, path: str) -> Matrix:
    """The matrix at a path.

    Raises:
        UsageError: there is none, with near matches.
    """
    return find_matrices(model, [path])[0]


def find_matrices(model: nn.Module, paths: Iterable[str]) -> list[Matrix]:
    """The matrices at some paths.

    Raises:
        UsageError: there is none at one of them, with near matches.
    """
    every = all_matrices(model)
    wanted = list(paths)
    if missing := next((path for path in wanted if path not in every), None):
        raise unknown("module path", missing, every)
    return [every[path] for path in wanted]


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
            size = sum(len(matrices_of(child, "")) for child in module.modules())
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


def bypassed(module: nn.Module) -> set[str]:
    """The linear maps among a module's children whose weight it hands to a kernel instead of calling them (Mamba's `x_proj`).

    Nothing can be put behind or before such a map. Read from the source of the module's class, so that the answer is the same on a
    machine without the kernels; code that only asks for a weight's dtype, shape or a slice of it is no such use.
    """
    names = {name for name, child in module.named_children() if is_linear(child)}
    return names & _weights_used(type(module)) if names else names  # type: ignore[arg-type]  # typing takes a class for its objects


@lru_cache(maxsize=256)
def _weights_used(kind: type[nn.Module]) -> frozenset[str]:
    """The children whose weight a class's source uses; read once a class, which takes longer than all else of an attachment."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return frozenset()
    lines = [line for line in source.splitlines() if not re.search(r"\binit\.|isinstance\(|\.copy_\(|^\s*#", line)]
    return frozenset(match[1] for line in lines for match in re.finditer(r"\bself\.(\w+)\.weight\b(?![\w.\[])", line))
