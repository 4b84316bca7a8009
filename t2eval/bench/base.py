"""Base: the model that all cells of a worker share, and the proof between two cells that it is still what was loaded.

A method that ends badly may leave something behind (layers that an adapter put in, weights that were merged), and the next method's score
would silently be another. So after each cell every parameter's checksum is compared with the one at loading, and the base is loaded again
where it differs. The checksum reads each weight once: 5 ms for 16 GB on a GPU, a few seconds on a CPU, beside minutes for a cell.
"""

from __future__ import annotations

import gc
from typing import Any

from t2eval.bench.config import BenchConfig

_CHUNK = 1 << 22  # numbers that are widened to int64 at a time: 32 MB, whatever the size of the tensor


class Base:
    """A loaded base model and its tokenizer (of a vision-language model, its processor).

    Args:
        config: says which model, and how it is loaded.

    Raises:
        T2Error: no such model.
    """

    def __init__(self, config: BenchConfig) -> None:
        self._config = config
        self._load()

    def _load(self) -> None:
        from t2eval.basemodel.load import load_base

        config = self._config
        self.model, self.tokenizer = load_base(config.model, revision=config.revision, dtype=config.dtype, device=config.device)
        self._state = state(self.model)

    def changed(self) -> str | None:
        """The first module or parameter that is not as it was loaded; None where all are. What was added beside them does not count."""
        now = state(self.model)
        return next((name for name, value in self._state.items() if now.get(name) != value), None)

    def reload(self) -> None:
        """Load the model anew. The old one's memory is given back first."""
        import torch

        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._load()


def state(model: Any) -> dict[str, Any]:
    """What a base model is made of: the class of each module by path, and the shape, dtype and checksum of each tensor by name.

    Checksums are sums of the bits as whole numbers, modulo 2**64: one changed number always changes them.
    """
    import torch

    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        sums = {name: _checksum(tensor) for name, tensor in named.items()}
    by_device: dict[Any, list[str]] = {}
    for name, total in sums.items():
        by_device.setdefault(total.device, []).append(name)
    values: dict[str, int] = {}
    for names in by_device.values():  # one transfer a device, not one a tensor
        values |= dict(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    tensors = {name: (tuple(tensor.shape), str(tensor.dtype), values[name]) for name, tensor in named.items()}
    return {**{f"module {path}": type(module).__name__ for path, module in model.named_modules()}, **tensors}


def _checksum(tensor: Any) -> Any:
    """The sum of a tensor's bits, read as whole numbers of its own width; an int64 scalar on its device."""
    import torch

    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    if tensor.is_meta or not tensor.numel():
        return torch.zeros((), dtype=torch.int64)  # weights that accelerate keeps elsewhere are read from there at each use
    flat = tensor.detach().contiguous().flatten()  # (numbers,)
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    bits = flat.view(whole[flat.element_size()])  # (numbers,) the same bytes
    for part in bits.split(_CHUNK):
        total += part.sum(dtype=torch.int64)
    return total
