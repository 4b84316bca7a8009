"""Choice: which decoder layers and which of their linear maps a setting means, by number and by name alone."""

from __future__ import annotations

import re

from t2eval.errors import UsageError

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


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


def is_chosen(name: str, wanted: str) -> bool:
    """Whether a linear map is meant by `all`, `attention`, `mlp` (all but attention), or the ending of a module path."""
    if wanted == "all":
        return True
    if wanted == "attention":
        return bool(_ATTENTION.search(name))
    if wanted == "mlp":
        return not _ATTENTION.search(name)
    return name == wanted or name.endswith(f".{wanted}")
