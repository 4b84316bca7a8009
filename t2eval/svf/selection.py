"""Selection: which matrices of the decoder layers are scaled, chosen by layer numbers and by names.

Embeddings and the language-model head are outside the decoder layers, so they are never chosen. Fused maps (`qkv_proj`, GPT-2's `c_attn`,
an expert's `gate_up_proj`) count as one. torch is imported only where a model is at hand: a plan chooses by names alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from t2eval.errors import T2Error, UsageError, unknown

CHOICES = ("all", "attention", "mlp", "dense")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_INDEX = re.compile(r"\.\d+$")
_BLOCK = re.compile(r"(?P<prefix>.*?)\.(?P<rest>\d+\..+)")


def select_layers(layers: str, count: int) -> list[int]:
    """Layer indices of a choice: `all`, `half` (the first half, rounded up), ranges and lists such as `0-15` or `0,3,8-11`.

    Raises:
        UsageError: not such a choice, or a layer that the model lacks.
    """
    if layers == "all":
        return list(range(count))
    if layers == "half":
        return list(range((count + 1) // 2))
    chosen: set[int] = set()
    for part in str(layers).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UsageError(f"Unknown choice of layers {layers!r}. Give all, half, a range such as 0-15, or a list such as 0,3,8-11.")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first or last >= count:
            raise UsageError(f"Layers {part.strip()!r}: the model has {count} decoder layers, 0 to {count - 1}.")
        chosen.update(range(first, last + 1))
    return sorted(chosen)


def is_chosen(name: str, wanted: str, fused: bool = False) -> bool:
    """Whether a matrix is meant by a word or by the ending of a path.

    Args:
        name: its path inside the layer.
        wanted: `all`, `attention` (names with "attn" or "attention"), `mlp` (all the others), `dense` (all but a mixture's routed
            experts in fused form), or the ending of a path, for an expert's matrix with or without its number.
        fused: whether it is one of several matrices in one parameter, numbered at the end of its path.
    """
    if wanted == "all":
        return True
    if wanted == "attention":
        return bool(_ATTENTION.search(name))
    if wanted == "mlp":
        return not _ATTENTION.search(name)
    if wanted == "dense":
        return not fused
    names = (name, _INDEX.sub("", name)) if fused else (name,)
    return any(own == wanted or own.endswith(f".{wanted}") for own in names)


def target_paths(model: Any, modules: str = "all", layers: str = "all", *, fused: bool = True) -> list[str]:
    """The paths of the matrices to scale, in the model's order.

    Args:
        model: a transformers causal model.
        modules: `all`, `attention` (paths with "attn" or "attention" in them), `mlp` (every other matrix of a decoder layer), `dense` (all
            but a mixture's routed experts), or a comma-separated list of these and of path endings inside a layer (`q_proj`,
            `mlp.down_proj`, `experts.down_proj`).
        layers: `all`, `half` (the first half: the paper does not say which half it took), a range `0-15`, or a list `0,3`.
        fused: also the matrices of routed experts that share one parameter, which have no module of their own.

    Raises:
        UsageError: an unknown module or layer, with near matches.
        T2Error: the model has no decoder layers, or hands a chosen weight to a kernel.
    """
    from t2eval.svf.matrices import decoder_layers, matrices_of

    prefix, blocks = decoder_layers(model)
    inside = [
        (index, matrix.path, matrix.index is not None)
        for index, block in enumerate(blocks)
        for name, module in block.named_modules()
        if name
        for matrix in matrices_of(module, name)
        if fused or matrix.index is None
    ]
    names = dict.fromkeys((name, numbered) for _, name, numbered in inside)
    chosen: set[str] = set()
    for wanted in _parts(modules):
        matched = {name for name, numbered in names if is_chosen(name, wanted, numbered)}
        if not matched:
            raise unknown("module", wanted, {*CHOICES, *(_INDEX.sub("", name) if numbered else name for name, numbered in names)})
        chosen |= matched
    indices = set(select_layers(layers, len(blocks)))
    paths = [f"{prefix}.{index}.{name}" for index, name, _ in inside if index in indices and name in chosen]
    if not paths:
        raise UsageError(f"No module {modules!r} in layers {layers!r} of {type(model).__name__}.")
    return paths


def refuse_bypassed(model: Any, paths: Sequence[str]) -> None:
    """Refuse matrices whose weight the model hands to a kernel without calling the map: z would be left out there without a word.

    Raises:
        T2Error: there are such; names them, and the modules that are left.
    """
    from t2eval.svf.matrices import bypassed

    modules = dict(model.named_modules())
    wanted = set(paths)
    parents = {path.rpartition(".")[0] for path in paths} & modules.keys()
    of_parent = {parent: bypassed(modules[parent]) for parent in parents}
    refused = [path for path in paths if path.rpartition(".")[2] in of_parent.get(path.rpartition(".")[0], ())]
    if not refused:
        return
    names = sorted({path.rpartition(".")[2] for path in refused})
    left = sorted({_INDEX.sub("", path).rpartition(".")[2] for path in wanted - set(refused)} - set(names))
    remedy = f"Leave them out: modules {','.join(left)}." if left else "Choose other modules."
    raise T2Error(
        f"{type(model).__name__} hands the weights of {', '.join(names)} to a kernel and does not call these maps ({refused[0]}"
        f"{f' and {len(refused) - 1} more' if len(refused) > 1 else ''}): no z can be put around them. {remedy}"
    )


def left_out(model: Any, paths: Sequence[str], modules: str, layers: str) -> tuple[float, list[str]]:
    """The share of the chosen decoder layers' weights that no z scales although the choice of modules means them, and what they are.

    Args:
        model: a transformers causal model.
        paths: what is scaled.
        modules, layers: the choice; one of path endings means what it names and leaves nothing out.

    Returns:
        The share, 0 to 1, and the names of the largest such parameters inside a layer.
    """
    from t2eval.svf.matrices import decoder_layers, find_matrices

    prefix, blocks = decoder_layers(model)
    words = [part for part in _parts(modules) if part in CHOICES]
    scaled = find_matrices(model, paths)
    covered = sum(math.prod(matrix.shape) for matrix in scaled)
    own = {(id(matrix.module), matrix.name) for matrix in scaled}
    missed: dict[str, int] = {}
    for index in select_layers(layers, len(blocks)):
        for name, module in blocks[index].named_modules():
            for parameter, values in module.named_parameters(recurse=False):
                whole = f"{name}.{parameter}".lstrip(".")
                meant = any(is_chosen(name, "all" if word == "dense" else word) for word in words)
                if values.ndim >= 2 and meant and (id(module), parameter) not in own:
                    missed[whole.removesuffix(".weight")] = missed.get(whole.removesuffix(".weight"), 0) + values.numel()
    total = covered + sum(missed.values())
    return sum(missed.values()) / max(total, 1), sorted(missed, key=lambda name: -missed[name])


def _parts(modules: str) -> list[str]:
    return [part.strip() for part in modules.split(",") if part.strip()] or [modules]


def remapped_paths(model: Any, paths: Iterable[str]) -> dict[str, str]:
    """Where matrices of a language model are inside a vision-language model that contains it, or the other way: path → path here.

    Paths are alike from the number of the decoder layer on (`model.layers.0.mlp.up_proj`, `model.language_model.layers.0.mlp.up_proj`).
    Empty where every path exists already, or where that does not lead to a matrix of this model for each of them.
    """
    from t2eval.svf.matrices import all_matrices, decoder_layers

    own = set(all_matrices(model))
    wanted = list(paths)
    if own.issuperset(wanted):
        return {}
    prefix, _ = decoder_layers(model)
    remapped = {path: f"{prefix}.{match['rest']}" if (match := _BLOCK.fullmatch(path)) else path for path in wanted}
    return remapped if own.issuperset(remapped.values()) else {}
