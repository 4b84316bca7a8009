"""LoRA export: an expert as a PEFT LoRA adapter, for servers that take one adapter a request.

W' - W = Q diag(z - 1) Qᵀ W is a sum of orthogonal terms of rank one and norm |z_k - 1| σ_k: its own singular value decomposition. So the r
largest of them are the best approximation of rank r in the Frobenius norm, and the energy that they keep is their share of
Σ_k ((z_k - 1) σ_k)². Every matrix has the same rank in the file, filled up with noughts, because SGLang reads no other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from t2eval.errors import T2Error, UsageError
from t2eval.expert.card import CARD, README
from t2eval.expert.expert import Expert
from t2eval.expert.export import new_folder
from t2eval.expert.library import adapted_base, load_library
from t2eval.expert.machine_paths import without_paths
from t2eval.expert.model_card import lora_model_card
from t2eval.store.folders import staged_folder
from t2eval.svf.adapted import Adapted
from t2eval.svf.bases import Basis
from t2eval.svf.matrices import Matrix, find_matrices
from t2eval.svf.merge import shared_parameters

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Kept:
    """What of one matrix's W' - W, or of all together, is in an adapter.

    Attributes:
        energy: the share of the squared Frobenius norm that the kept terms have, 0 to 1.
        error: ‖(W' - W) - B A‖ / ‖W' - W‖ of the factors as they were written.
        norm: ‖W' - W‖.
    """

    energy: float
    error: float
    norm: float


@dataclass(frozen=True)
class LoraExport:
    """One adapter that was written.

    Attributes:
        expert: what it approximates. folder: where it is.
        rank: of every matrix in it. full_rank: the rank at which it would be exact.
        matrices: what it keeps, by matrix path. total: of all together.
    """

    expert: Expert
    folder: Path
    rank: int
    full_rank: int
    matrices: dict[str, Kept]
    total: Kept


def export_lora(
    experts: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    model: str | None = None,
) -> list[LoraExport]:
    """Write experts as PEFT LoRA adapters of the best approximation of W' - W.

    Args:
        experts: as `load_library` takes them. Of one expert's own folder, `output` is the adapter; else `output` holds a folder an expert.
        output: a new or empty folder.
        rank: of the adapters; or
        energy: for each expert the smallest rank that keeps this share, 0 to 1, of Σ ((z - 1) σ)² over all its matrices.
        model: the base model, if not under the name on the cards.

    Raises:
        UsageError: neither or both of rank and energy, a value out of range, an output that holds something.
        T2Error: an expert does not fit the model, changes nothing, or scales a matrix that no adapter can stand for.
    """
    folder = new_folder(output)
    loaded = load_library(experts)
    alone = isinstance(experts, (str, Path)) and (Path(experts) / CARD).exists()
    _check_wanted(rank, energy, loaded)
    adapted, remapped, _ = adapted_base(loaded, model)
    base = model or loaded[0].card.base_model.id
    with staged_folder(folder) as staging:
        made = []
        for expert in remapped:
            refuse_unfit(adapted.model, expert)
            place = Path() if alone else Path(expert.name)
            (staging / place).mkdir(exist_ok=True)
            written = _write(adapted, expert, staging / place, rank, energy, base)
            made.append(replace(written, folder=folder / place))
    return made


def _check_wanted(rank: int | None, energy: float | None, experts: Sequence[Expert]) -> None:
    if (rank is None) == (energy is None):
        raise UsageError("An adapter has a rank or an energy: give one of the two.")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"The energy that is kept is a share above 0 and up to 1, not {energy:g}.")
    if rank is None:
        return
    largest = max(module.rank for expert in experts for module in expert.card.modules.values())
    if not 1 <= rank <= largest:
        raise UsageError(f"The rank is 1 to {largest}, at which the adapter is exact, not {rank}.")


def refuse_unfit(model: Any, expert: Expert) -> None:
    """Refuse what LoRA cannot stand for: packed weights, matrices without a module of their own, and weights in several places.

    Raises:
        T2Error: names the matrix, and what serves the expert all the same.
    """
    shared = shared_parameters(model)
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for matrix in find_matrices(model, expert.z):
        problem = None
        if matrix.index is not None:
            problem = "is one of many in one parameter (a mixture's routed experts), and a LoRA adapter has modules only"
        elif matrix.parameter is None:
            problem = "is quantised: what an adapter adds would be to other weights than servers unpack"
        elif id(matrix.parameter) in shared or places[id(matrix.module)] > 1:
            problem = "shares its weight with another module, which merging the adapter would change too"
        if problem is not None:
            merged = "" if matrix.parameter is None else ", or write a whole model with t2 expert export --merged"
            raise T2Error(
                f"Expert {expert.name!r} cannot be a LoRA adapter: {matrix.path} {problem}. Use the expert itself "
                f"(lm_eval --model t2-expert){merged}."
            )


# ---------------------------------------------------------------------- one adapter
def _write(adapted: Adapted, expert: Expert, folder: Path, rank: int | None, energy: float | None, base: str) -> LoraExport:
    deltas = {path: z.to(torch.float64) - 1 for path, z in expert.z.items()}  # (r,) each
    changed = {path: delta for path, delta in deltas.items() if bool(delta.any())}
    if not changed:
        raise T2Error(f"Expert {expert.name!r} changes nothing: every z is 1, so that there is no adapter to write. It is the base model.")
    strengths = {path: delta.abs() * adapted.bases[path].sigma.cpu().to(torch.float64) for path, delta in changed.items()}  # |z - 1| σ
    full = max(len(strength) for strength in strengths.values())
    chosen = rank if rank is not None else smallest_rank(list(strengths.values()), energy or 1.0)
    tensors: dict[str, Tensor] = {}
    kept: dict[str, Kept] = {}
    for matrix in find_matrices(adapted.model, changed):
        path = matrix.path
        down, up, kept[path] = _factors(matrix, adapted.bases[path], changed[path], strengths[path], chosen)
        tensors[f"base_model.model.{path}.lora_A.weight"], tensors[f"base_model.model.{path}.lora_B.weight"] = down, up
    export = LoraExport(expert, folder, chosen, full, kept, _total(kept))
    card = lora_model_card(without_paths(expert.card), expert.sha256, chosen, full, export.total.energy, export.total.error)
    _config(adapted.model, list(changed), chosen, base, expert).save_pretrained(str(folder))
    (folder / TENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / README).write_text(card, encoding="utf-8")
    return export


def smallest_rank(strengths: Sequence[Tensor], energy: float) -> int:
    """The smallest rank, the same for all matrices, at which they keep a share of their energy together.

    Args:
        strengths: (r,) |z - 1| σ of each matrix.
        energy: the share.
    """
    full = max(len(strength) for strength in strengths)
    by_rank = torch.zeros(full, dtype=torch.float64)  # what the term of each rank adds
    for strength in strengths:
        by_rank[: len(strength)] += strength.sort(descending=True).values.square()
    share = by_rank.cumsum(0) / by_rank.sum()
    return min(full, int((share < energy * (1 - 1e-12)).sum()) + 1)


def _factors(matrix: Matrix, basis: Basis, delta: Tensor, strength: Tensor, rank: int) -> tuple[Tensor, Tensor, Kept]:
    """A (rank, in) and B (out, rank) in float32, of equal scale, and what they keep.

    Args:
        matrix: of the model. basis: of its weight.
        delta: (r,) z - 1, float64. strength: (r,) |z - 1| σ.
        rank: of the factors; beyond r they are noughts.
    """
    weight = matrix.weight()
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device  # which has no float64
    w, q = weight.to(device, torch.float64), basis.q.to(device, torch.float64)  # (out, in), (r, r)
    delta, strength = delta.to(device), strength.to(device)
    places = strength.argsort(descending=True)[:rank]  # (k,)
    root = strength[places].sqrt()  # (k,)
    own = q[:, places]  # (r, k)
    rest = torch.where(root > 0, delta[places] / root, 0.0)  # (k,); signed
    if basis.side == "output":
        change = (q * delta) @ (q.T @ w)  # (out, in)
        up, down = own * root, (own.T @ w) * rest[:, None]  # (out, k), (k, in)
    else:
        change = (w @ q * delta) @ q.T
        up, down = (w @ own) * rest, own.T * root[:, None]
    out, into = basis.shape
    a, b = torch.zeros(rank, into), torch.zeros(out, rank)
    a[: len(places)], b[:, : len(places)] = down.cpu(), up.cpu()
    norm = float(change.norm())
    missed = float((change - b.to(change) @ a.to(change)).norm())
    total = float(strength.square().sum())
    energy = min(1.0, float(strength[places].square().sum()) / total) if total else 1.0
    return a, b, Kept(energy, missed / norm if norm else 0.0, norm)


def _total(kept: dict[str, Kept]) -> Kept:
    squares = [each.norm**2 for each in kept.values()]
    whole = sum(squares) or 1.0
    energy = min(1.0, sum(each.energy * square for each, square in zip(kept.values(), squares, strict=True)) / whole)
    error = math.sqrt(sum(each.error**2 * square for each, square in zip(kept.values(), squares, strict=True)) / whole)
    return Kept(energy, error, math.sqrt(sum(squares)))


def _config(model: Any, paths: Sequence[str], rank: int, base: str, expert: Expert) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=rank,  # B A is added as it is
        target_modules=short_targets(model, paths),
        fan_in_fan_out=find_matrices(model, paths[:1])[0].transposed,  # PEFT itself looks at each module again
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
        revision=None if base != expert.card.base_model.id else expert.card.base_model.revision,
    )


def short_targets(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """The last parts of module paths where these alone mean just these modules, as people and servers write them; else the whole paths."""
    names = sorted({path.rpartition(".")[2] for path in paths})
    meant = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in names}
    return names if meant == set(paths) else sorted(paths)
