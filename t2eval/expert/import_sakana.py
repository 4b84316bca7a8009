"""Import: experts from the `.pt` files of the reference implementation (SakanaAI/self-adaptive-llms).

Nothing in them is executed: they are read with `weights_only`.

Deviation from the reference implementation: sigmoid(p) is taken in float32; there it is rounded to bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from t2eval.basemodel.load import base_identity, load_base
from t2eval.errors import T2Error, shown, unknown
from t2eval.expert.card import no_directory
from t2eval.expert.expert import Expert, check_tensor
from t2eval.store.tensors import read_torch_file
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.matrices import plain
from t2eval.svf.scales import renormalise

_NUMBERED = "learnable_params_module_list."


def import_sakana(
    file: str | Path, output: str | Path, *, model: str | None, name: str | None = None, label: str = "imported", description: str = ""
) -> Expert:
    """Convert a `.pt` file and save it.

    Args:
        file: the reference implementation's file.
        output: directory of the expert.
        model: the base model that it was trained on; None: the embedded base.
        name: default: the directory's name.
        label: skill label.
        description: one line for dispatch prompts.
    """
    loaded, _ = load_base(model)
    base = base_identity(loaded)
    expert = from_sakana(
        file,
        attach(loaded),
        name=name or Path(output).name,
        label=label,
        description=description,
        base_id=base["id"] or str(model),
        revision=base["revision"],
    )
    expert.save(output)
    return expert


def from_sakana(
    path: str | Path,
    adapted: Adapted,
    *,
    name: str,
    label: str,
    description: str,
    base_id: str,
    revision: str | None = None,
) -> Expert:
    """An expert from `learnable_params.pt` or from a policy's state dict.

    The file holds raw p, by parameter name or numbered in the order of the model's parameters with "mlp" in their names. Its scale is
    z = sigmoid(p) Σσ / Σ(σ sigmoid(p)), so σ comes from `adapted`, which must be the base model that the checkpoint was trained on: the
    file says nothing about it.

    Raises:
        T2Error: no such file, not a checkpoint of this kind, or one of another model.
    """
    raw = raw_parameters(Path(path), adapted)
    z = {}
    for parameter, p in raw.items():
        matrix = parameter.removesuffix(".weight")
        if matrix not in adapted.bases:
            raise T2Error(
                f"{path} holds {parameter}. {unknown('adapted matrix', matrix, adapted.paths)} Attach the model with modules='all'."
            )
        own = p.detach().to("cpu", torch.float32)
        check_tensor(str(path), matrix, own, adapted.bases[matrix].rank)
        z[matrix] = renormalise(torch.sigmoid(own), adapted.bases[matrix].sigma.cpu(), matrix)
    expert = Expert.from_adapted(adapted, z, name=name, label=label, description=description, base_id=base_id, revision=revision)
    return expert.with_parameterisation("sigmoid-renorm")


def raw_parameters(path: Path, adapted: Adapted) -> dict[str, Tensor]:
    """p by parameter name, from `learnable_params.pt` or from a policy's state dict, whose tensors are numbered.

    Raises:
        T2Error: no such file, or not a checkpoint of one expert of this model.
    """
    if not path.exists():
        raise T2Error(no_directory(path).replace("directory", "file"))
    loaded = read_torch_file(path, what="checkpoint", remedy="Give the .pt file that the reference implementation saved.")
    if "adaptive_weights" in loaded:
        raise T2Error(f"{path} is a weighted combination of experts, not one expert. Import its experts, and mix them with t2 expert mix.")
    tensors = {name: plain(value, f"{path}: the tensor {shown(name)}") for name, value in loaded.items()}
    if not any(name.startswith(_NUMBERED) for name in tensors):
        return tensors
    names = [name for name in adapted.model.state_dict() if "mlp" in name and name.endswith(".weight")]
    if len(names) != len(tensors):
        raise T2Error(f"{path} holds {len(tensors)} matrices; this model has {len(names)} with 'mlp' in their names: it is another model.")
    numbered = {}
    for name, value in tensors.items():
        number = name.removeprefix(_NUMBERED)
        if not number.isdecimal() or int(number) >= len(names):
            raise T2Error(f"{path} holds a tensor {name!r} beside numbered ones, 0 to {len(names) - 1}: it is no expert's checkpoint.")
        numbered[names[int(number)]] = value
    return numbered
