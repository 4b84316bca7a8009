"""The library: experts as files that are loaded together, and mixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from t2eval.basemodel.load import load_base
from t2eval.errors import T2Error, UsageError
from t2eval.expert.adapter import Adapter, is_adapter
from t2eval.expert.card import CARD, TENSORS, refuse_adapter
from t2eval.expert.expert import Expert, mix, model_name
from t2eval.expert.hub import located, missing
from t2eval.paths import joined
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.matrices import all_matrices


def load_library(spec: str | Path | Sequence[str | Path]) -> list[Expert]:
    """The experts of a directory of experts, of one expert directory, of a `+`-joined list of either, or of a sequence of either.

    A directory may lie on the hub: `hf://owner/name[@revision][/folder]`.

    Returns:
        Experts sorted by name.

    Raises:
        T2Error: no such directory, no expert in it, a damaged expert, a PEFT adapter, two experts of one name.
    """
    for part in _parts(spec):
        refuse_adapter(located(part))
    return [found for found in load_any(spec, adapters=False) if isinstance(found, Expert)]


def load_any(spec: str | Path | Sequence[str | Path], labels: Sequence[str] = (), *, adapters: bool = True) -> list[Expert | Adapter]:
    """As `load_library`, with PEFT adapters among the experts.

    Args:
        spec: directories of experts or adapters, or expert and adapter directories.
        labels: one for each directory of `spec`, in its order, over the labels on the cards of adapters; nothing: the cards'.
        adapters: whether a directory of adapters is looked into for them.

    Raises:
        T2Error: as `load_library`; an adapter that cannot be an expert.
        UsageError: another number of labels than of directories, or a label for what has its own.
    """
    parts = _parts(spec)
    if labels and len(labels) != len(parts):
        raise UsageError(f"labels= has {len(labels)} labels for {len(parts)} folders of experts=: give one for each, in their order.")
    experts: list[Expert | Adapter] = []
    for place, part in enumerate(parts):
        folder = located(part)
        if not folder.is_dir():
            raise T2Error(missing(folder))
        label = labels[place] if labels else None
        if is_adapter(folder):
            experts.append(Adapter.load(folder, label))
            continue
        if label is not None:
            raise UsageError(f"labels= names adapters, and {folder} is none: an expert has its label in its {CARD}.")
        experts += [Expert.load(folder)] if (folder / CARD).exists() else _inside(folder, adapters)
    if not experts:
        raise UsageError("No expert was given: name a library, or expert directories joined by '+'.")
    experts.sort(key=lambda expert: expert.name)
    for first, second in zip(experts, experts[1:], strict=False):
        if first.name == second.name:
            raise T2Error(f"Two experts of the library {spec} have the name {first.name!r}. Rename one in its {CARD}.")
    return experts


def _parts(spec: str | Path | Sequence[str | Path]) -> list[str | Path]:
    if isinstance(spec, str):
        return [*joined(spec)]
    return [spec] if isinstance(spec, Path) else list(spec)


def _inside(folder: Path, adapters: bool) -> list[Expert | Adapter]:
    """The experts in a library's folder, and the adapters where they are meant."""
    found: list[Expert | Adapter] = []
    for child in sorted(folder.iterdir()):
        if (child / CARD).exists() or (child / TENSORS).exists():
            found.append(Expert.load(child))
        elif adapters and child.is_dir() and is_adapter(child):
            found.append(Adapter.load(child))
    if not found:
        raise T2Error(
            f"{folder} holds no expert (a folder with {CARD} and {TENSORS}). Train one with t2 train-expert --output {folder}/NAME."
        )
    return found


def adapted_base(
    experts: Sequence[Expert], model: str | None = None, dtype: str | torch.dtype = "auto"
) -> tuple[Adapted, list[Expert], Any]:
    """The base model of experts with their matrices attached, the experts with its module paths, and its tokenizer or processor.

    Args:
        experts: of one base model; all of their matrices are attached.
        model: another name or path of the same base, or a vision-language model that contains it; default: the one that the first
            expert's card names.
        dtype: as in `load_base`.

    Raises:
        T2Error: the model cannot be loaded, or an expert does not fit it.
    """
    base = experts[0].card.base_model
    loaded, reader = load_base(model or base.id, revision=None if model else base.revision, dtype=dtype)
    remapped = [expert.remapped(loaded) for expert in experts]
    own = all_matrices(loaded)
    for expert in remapped:
        if missing := next((path for path in expert.z if path not in own), None):
            theirs = expert.card.base_model.id
            raise T2Error(
                f"Expert {expert.name!r} was trained on {theirs}, and this is {model_name(loaded)}: it has no matrix {missing}. "
                "Experts that are used together are of one base model."
            )
    adapted = attach(loaded, paths=list(dict.fromkeys(path for expert in remapped for path in expert.z)))
    for expert in remapped:
        expert.check(adapted)
    return adapted, remapped, reader


def save_mix(
    experts: Sequence[str | Path],
    alphas: Sequence[float],
    output: str | Path,
    *,
    form: Literal["paper", "offset"] = "paper",
    name: str | None = None,
    label: str = "mix",
    description: str = "",
    model: str | None = None,
) -> Expert:
    """Mix experts with one α each and save the result as an expert of its own.

    Args:
        experts: expert directories of one base model, or of models of which one contains the other: the mix is of the first one's.
        alphas: as many.
        output: directory of the new expert.
        form: `paper`: z' = Σ α_k z_k; `offset`: z' = 1 + Σ α_k (z_k - 1).
        name: default: the directory's name.
        label: skill label.
        description: one line for dispatch prompts; default: what was mixed.
        model: the base model, if not under the name on the cards.

    Raises:
        UsageError: numbers of experts and alphas differ.
        T2Error: experts of different bases or matrices.
    """
    if len(experts) != len(alphas):
        raise UsageError(f"{len(experts)} experts and {len(alphas)} alphas: give one alpha for each expert.")
    adapted, loaded, _ = adapted_base([Expert.load(path) for path in experts], model)
    recipe = " + ".join(f"{alpha:g} {expert.name}" for alpha, expert in zip(alphas, loaded, strict=True))
    base = loaded[0].card.base_model
    elsewhere = model if loaded[0].is_remapped else None  # a model that contains the card's, or is contained in it: its revision is another
    mixed = Expert.from_adapted(
        adapted,
        mix(loaded, alphas, form),
        name=name or Path(output).name,
        label=label,
        description=description or f"A mix ({form}): {recipe}.",
        base_id=elsewhere or base.id,
        revision=None if elsewhere else base.revision,
    )
    mixed.save(output)
    return mixed
