"""Shape: how large a base model is, from its files where they are on this machine, else from what a benchmark file assumes.

Nothing is loaded: `config.json`, and the headers of the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from t2eval.basemodel import probe as hub
from t2eval.bench.config import BenchConfig
from t2eval.paths import EMBEDDED_FOLDERS, experts_dir, is_embedded
from t2eval.svf.selection import is_chosen, select_layers

Source = Literal["measured", "read", "assumed", "unknown"]
"""Where a figure is from: counted on this machine; read from a file that states it (or computed from such); taken for granted."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_COUNTED = ("llama", "mistral", "qwen2", "qwen3", "gemma")
"""Architectures of one shape: four attention maps and a gated MLP of three in each layer."""
_LAYER = re.compile(r"\.(\d+)\.(.+)\.weight$")


@dataclass(frozen=True)
class Matrix:
    """One linear map inside a decoder layer."""

    layer: int
    name: str
    out: int
    into: int


@dataclass(frozen=True)
class Shape:
    """A base model's size. None is what is not known.

    Attributes:
        source: `read` or `assumed`.
        parameters: of the whole model.
        width: bytes a parameter, in the dtype that the benchmark loads it in.
        layers, hidden, vocabulary: of the decoder.
        inner: the width of the MLP.
        cache_values: numbers in the key-value cache for one token.
        matrices: the linear maps in its decoder layers.
    """

    source: Source
    parameters: int | None = None
    width: int | None = None
    layers: int | None = None
    hidden: int | None = None
    inner: int | None = None
    vocabulary: int | None = None
    cache_values: int | None = None
    matrices: tuple[Matrix, ...] = ()

    @property
    def weight_bytes(self) -> int | None:
        """Of the weights, loaded."""
        return None if self.parameters is None or self.width is None else self.parameters * self.width

    def bases(self, modules: str = "all", layers: str = "all") -> int | None:
        """Numbers in the singular bases of the adapted matrices: min(out, in)² each.

        Beside the model they are in its dtype; in the cache on the disk, and in the host's memory, in float32.
        """
        chosen = self._chosen(modules, layers)
        return sum(min(matrix.out, matrix.into) ** 2 for matrix in chosen) if chosen else None

    def adapted(self, modules: str = "all", layers: str = "all") -> int | None:
        """Numbers in the adapted matrices: as many wait beside the merged ones while an expert is merged."""
        chosen = self._chosen(modules, layers)
        return sum(matrix.out * matrix.into for matrix in chosen) if chosen else None

    def scales(self, modules: str = "all", layers: str = "all") -> int | None:
        """Trainable parameters of one expert: min(out, in) a matrix."""
        chosen = self._chosen(modules, layers)
        return sum(min(matrix.out, matrix.into) for matrix in chosen) if chosen else None

    def _chosen(self, modules: str, layers: str) -> list[Matrix]:
        if not self.matrices:
            return []
        count = 1 + max(matrix.layer for matrix in self.matrices)
        kept = set(select_layers(layers, count))
        wanted = [part.strip() for part in modules.split(",")]
        return [matrix for matrix in self.matrices if matrix.layer in kept and any(is_chosen(matrix.name, name) for name in wanted)]


def model_shape(config: BenchConfig) -> Shape:
    """The shape of a benchmark's base model."""
    model = _folder(config)
    stated = hub.model_config(model, config.revision)
    if stated is not None:
        shape = _from_config(stated, "read", _width(config.dtype, stated))
        files = hub.weight_files(model, config.revision)
        if files is None:
            return shape
        tensors = hub.weight_shapes(files)
        parameters = sum(math.prod(size) for size in tensors.values())
        return Shape(**{**vars(shape), "parameters": parameters, "matrices": shape.matrices or _from_tensors(tensors)})
    given = config.assume.model_dump(exclude_none=True)
    if "hidden_size" in given:
        return _from_config({"model_type": _COUNTED[0], **given}, "assumed", _width(config.dtype, given))
    return Shape("assumed" if config.assume.parameters else "unknown", config.assume.parameters, _width(config.dtype, given))


def _folder(config: BenchConfig) -> str:
    if not is_embedded(config.model):
        return config.model
    return str(experts_dir() / EMBEDDED_FOLDERS[config.model])


def _width(dtype: str, stated: Mapping[str, Any]) -> int:
    name = str(stated.get("dtype") or stated.get("torch_dtype") or "bfloat16") if dtype == "auto" else dtype
    return _BYTES.get(name.removeprefix("torch."), 2)


def _from_config(stated: Mapping[str, Any], source: Source, width: int) -> Shape:
    text: Mapping[str, Any] = stated.get("text_config") or stated
    hidden, layers = text.get("hidden_size"), text.get("num_hidden_layers")
    inner, heads, vocabulary = text.get("intermediate_size"), text.get("num_attention_heads"), text.get("vocab_size")
    if text.get("model_type") not in _COUNTED or None in (hidden, layers, inner, heads, vocabulary):
        return Shape(source, stated.get("parameters"), width, layers, hidden, inner, vocabulary)
    hidden, layers, inner, heads, vocabulary = (int(value) for value in (hidden, layers, inner, heads, vocabulary))  # type: ignore[arg-type]
    head = int(text.get("head_dim") or hidden // heads)
    keys = int(text.get("num_key_value_heads") or heads) * head
    maps = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    matrices = tuple(Matrix(layer, name, out, into) for layer in range(layers) for name, (out, into) in maps.items())
    embeddings = vocabulary * hidden * (1 if text.get("tie_word_embeddings") else 2)
    norms = hidden * (2 * layers + 1)
    counted = embeddings + norms + sum(matrix.out * matrix.into for matrix in matrices)
    return Shape(source, int(stated.get("parameters") or counted), width, layers, hidden, inner, vocabulary, 2 * layers * keys, matrices)


def _from_tensors(tensors: Mapping[str, tuple[int, ...]]) -> tuple[Matrix, ...]:
    """The linear maps of an architecture that is not counted: tables of two dimensions in numbered layers."""
    found = []
    for path, size in tensors.items():
        match = _LAYER.search(path)
        if match is not None and len(size) == 2:
            found.append(Matrix(int(match[1]), match[2], size[0], size[1]))
    return tuple(found)
