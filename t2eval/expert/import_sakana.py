"""Reference checkpoints: raw p from the `.pt` files of the reference implementation (SakanaAI/self-adaptive-llms)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from t2eval.errors import T2Error
from t2eval.expert.card import no_directory
from t2eval.svf.adapted import Adapted


def raw_parameters(path: Path, adapted: Adapted) -> dict[str, Tensor]:
    """p by parameter name, from `learnable_params.pt` or from a policy's state dict, whose tensors are numbered.

    Raises:
        T2Error: no such file, or not a checkpoint of one expert of this model.
    """
    if not path.is_file():
        raise T2Error(no_directory(path).replace("directory", "file"))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the damaged or refused pickle happens to raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise T2Error(f"{path} cannot be read as tensors only ({reason}). Nothing else in it is ever unpickled.") from error
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise T2Error(f"{path} is not a dictionary of tensors, as the reference implementation saves experts.")
    if "adaptive_weights" in loaded:
        raise T2Error(f"{path} is a weighted combination of experts, not one expert. Import its experts, and mix them with t2 expert mix.")
    numbered = "learnable_params_module_list."
    if not any(str(name).startswith(numbered) for name in loaded):
        return {str(name): value for name, value in loaded.items()}
    names = [name for name in adapted.model.state_dict() if "mlp" in name and name.endswith(".weight")]
    if len(names) != len(loaded):
        raise T2Error(f"{path} holds {len(loaded)} matrices; this model has {len(names)} with 'mlp' in their names: it is another model.")
    return {names[int(str(name).removeprefix(numbered))]: value for name, value in loaded.items()}
