"""The library: experts as files that are loaded together, mixed, merged into a plain model, and shared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from t2eval.basemodel.load import base_identity, load_base
from t2eval.errors import T2Error, UsageError
from t2eval.expert.card import CARD, TENSORS, no_directory
from t2eval.expert.expert import Expert, import_reference, mix
from t2eval.paths import joined
from t2eval.svf.adapted import Adapted, attach


def load_library(spec: str | Path | Sequence[str | Path]) -> list[Expert]:
    """The experts of a directory of experts, of one expert directory, of a `+`-joined list of either, or of a sequence of either.

    Returns:
        Experts sorted by name.

    Raises:
        T2Error: no such directory, no expert in it, a damaged expert, two experts of one name.
    """
    if isinstance(spec, str):
        parts: list[str | Path] = [*joined(spec)]
    else:
        parts = [spec] if isinstance(spec, Path) else list(spec)
    folders: list[Path] = []
    for part in parts:
        folder = Path(part)
        if not folder.is_dir():
            raise T2Error(no_directory(folder))
        if (folder / CARD).exists():
            folders.append(folder)
            continue
        inside = sorted(child for child in folder.iterdir() if (child / CARD).exists() or (child / TENSORS).exists())
        if not inside:
            raise T2Error(
                f"{folder} holds no expert (a folder with {CARD} and {TENSORS}). Train one with t2 train-expert --output {folder}/NAME."
            )
        folders += inside
    if not folders:
        raise UsageError("No expert was given: name a library, or expert directories joined by '+'.")
    experts = sorted((Expert.load(folder) for folder in folders), key=lambda expert: expert.name)
    for first, second in zip(experts, experts[1:], strict=False):
        if first.name == second.name:
            raise T2Error(f"Two experts of the library {spec} have the name {first.name!r}. Rename one in its {CARD}.")
    return experts


def adapted_base(experts: Sequence[Expert], model: str | None = None) -> tuple[Adapted, list[Expert], Any]:
    """The base model of experts with their matrices attached, the experts with its module paths, and its tokenizer or processor.

    Args:
        experts: of one base model; all of their matrices are attached.
        model: another name or path of the same base, or a vision-language model that contains it; default: the one that the first
            expert's card names.

    Raises:
        T2Error: the model cannot be loaded, or an expert does not fit it.
    """
    base = experts[0].card.base_model
    loaded, reader = load_base(model or base.id, revision=None if model else base.revision)
    remapped = [expert.remapped(loaded) for expert in experts]
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
        experts: expert directories of one base model.
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
    mixed = Expert.from_adapted(
        adapted,
        mix(loaded, alphas, form),
        name=name or Path(output).name,
        label=label,
        description=description or f"A mix ({form}): {recipe}.",
        base_id=model if loaded[0].is_remapped and model else base.id,
        revision=base.revision,
    )
    mixed.save(output)
    return mixed


def export_merged(expert: str | Path, output: str | Path, *, model: str | None = None) -> Path:
    """Write the base model with an expert merged into its weights: a plain Hugging Face model, for any engine.

    Args:
        expert: its directory.
        output: a new or empty folder.
        model: the base model, if not under the name on the card.

    Raises:
        UsageError: `output` holds something already.
        T2Error: the expert does not fit the model.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder.")
    adapted, (chosen,), reader = adapted_base([Expert.load(expert)], model)
    with adapted.merged(chosen.z):
        merged = {path: adapted.model.get_submodule(path).weight for path in chosen.z}
    adapted.detach()
    for path, weight in merged.items():
        adapted.model.get_submodule(path).weight = weight
    adapted.model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def convert_reference(
    file: str | Path, output: str | Path, *, model: str | None, name: str | None = None, label: str = "imported", description: str = ""
) -> Expert:
    """Convert a `.pt` file of the reference implementation (read with `weights_only=True`) and save it.

    Args:
        file: the reference's file.
        output: directory of the expert.
        model: the base model that it was trained on; None: the embedded base.
        name: default: the directory's name.
        label: skill label.
        description: one line for dispatch prompts.
    """
    loaded, _ = load_base(model)
    base = base_identity(loaded)
    expert = import_reference(
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


def push(expert: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload an expert's directory to the Hugging Face hub, after checking that it loads.

    Args:
        expert: its directory.
        repository: `owner/name`; made if it does not exist.
        private: make it private.

    Returns:
        Its address.

    Raises:
        T2Error: no connection, no permission, or offline mode.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    Expert.load(expert)
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=str(expert), allow_patterns=["expert.*", "README.md", "*.png"])
    except (OfflineModeIsEnabled, LocalTokenNotFoundError, HfHubHTTPError, ConnectionError, OSError) as error:
        raise T2Error(
            f"{repository} could not be uploaded: {error}\n"
            "Check the connection (HF_HUB_OFFLINE must not be set) and log in: `hf auth login`."
        ) from error
    return f"{repository} on the hub"
