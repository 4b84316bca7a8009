"""Export: an expert for other engines, merged into a plain Hugging Face model."""

from __future__ import annotations

from pathlib import Path

from t2eval.basemodel.load import checkpoint_dtype
from t2eval.errors import UsageError
from t2eval.expert.card import README
from t2eval.expert.expert import Expert
from t2eval.expert.library import adapted_base
from t2eval.expert.machine_paths import without_paths
from t2eval.expert.model_card import merged_model_card
from t2eval.store.folders import staged_folder


def export_merged(expert: str | Path, output: str | Path, *, model: str | None = None) -> Path:
    """Write the base model with an expert merged into its weights: a plain Hugging Face model, for any engine, with a card that names
    the expert. The weights are in the dtype of the base model's checkpoint.

    Args:
        expert: its directory.
        output: a new or empty folder.
        model: the base model, if not under the name on the card.

    Raises:
        UsageError: `output` holds something already.
        T2Error: the expert does not fit the model, the model is quantised, or the folder cannot be written.
    """
    folder = new_folder(output)
    loaded = Expert.load(expert)
    base = loaded.card.base_model
    dtype = checkpoint_dtype(model or base.id, None if model else base.revision)
    adapted, (chosen,), reader = adapted_base([loaded], model, dtype)
    plain = adapted.model
    adapted.bake(chosen.z)
    with staged_folder(folder) as staging:
        plain.save_pretrained(staging)
        reader.save_pretrained(staging)
        card = merged_model_card(without_paths(loaded.card), loaded.sha256)
        (staging / README).write_text(card, encoding="utf-8")
    return folder


def new_folder(output: str | Path) -> Path:
    """The folder of an export.

    Raises:
        UsageError: it holds something already, or is a file.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder.")
    return folder
