"""Export: an expert for others: merged into a plain Hugging Face model, or pushed to the Hub.

What is pushed names no folder of this machine: a base model that was a local folder is named by the folder's own name.
"""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from t2eval.basemodel.load import checkpoint_dtype
from t2eval.errors import T2Error, UsageError
from t2eval.expert.card import CARD, README, ExpertCard
from t2eval.expert.expert import Expert
from t2eval.expert.library import adapted_base
from t2eval.expert.model_card import merged_model_card, model_card
from t2eval.paths import is_embedded
from t2eval.store.files import staged_folder

_PATH = re.compile(r"(?<![\w:/.~-])(?:~|\.{1,2})?/(?:[^/\s'\",;:()]+/)*([^/\s'\",;:()]+)/?|[A-Za-z]:\\(?:[^\\\s]+\\)*([^\\\s]+)")
"""A path on a machine, in any text; its last part is a group. An address (https://…) and a Hub id (owner/name) are none."""

_log = logging.getLogger(__name__)


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


def push(expert: str | Path, repository: str, *, private: bool = False, base_model: str | None = None) -> str:
    """Upload an expert to the Hugging Face Hub, after checking that it loads.

    Args:
        expert: its directory.
        repository: `owner/name`; made if it does not exist.
        private: make it private.
        base_model: the Hub id of the base model, for the card; default: as the expert's own card has it, without folders of this machine.

    Returns:
        Its address.

    Raises:
        T2Error: no connection, no permission, or offline mode.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    loaded = Expert.load(expert)
    card = without_paths(loaded.card)
    if base_model is not None:
        card = card.model_copy(update={"base_model": card.base_model.model_copy(update={"id": base_model})})
    elif card.base_model.id != loaded.card.base_model.id and not is_embedded(card.base_model.id):
        name = card.base_model.id
        _log.warning("The base model is a folder of this machine, which the card names %r: give its Hub name with --base-model.", name)
    hub = HfApi()
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        for file in Path(expert).iterdir():
            if file.is_file() and (file.suffix == ".png" or file.name == "expert.safetensors"):
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / README).write_text(model_card(card), encoding="utf-8")
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=held, allow_patterns=["expert.*", "README.md", "*.png"])
        except (OfflineModeIsEnabled, LocalTokenNotFoundError, HfHubHTTPError, HFValidationError, ConnectionError, OSError) as error:
            raise T2Error(
                f"{repository} could not be uploaded: {error}\n"
                "Check the connection (HF_HUB_OFFLINE must not be set) and log in: `hf auth login`."
            ) from error
    return f"{repository} on the hub"


def without_paths(card: ExpertCard) -> ExpertCard:
    """A card in which every path of this machine is cut to its last part: the base model's folder, settings, descriptions."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return _PATH.sub(lambda match: match[1] or match[2], value)
        if isinstance(value, dict):
            return {key: cleaned(item) for key, item in value.items()}
        return [cleaned(item) for item in value] if isinstance(value, (list, tuple)) else value

    stated = card.model_dump(mode="json")
    kept = {key: stated[key] for key in ("modules", "basis_fingerprint")}
    rest = {key: cleaned(value) for key, value in stated.items() if key not in kept}
    base = rest["base_model"]
    if Path(base["id"]).is_dir() and not is_embedded(base["id"]):  # a folder by a relative name
        base["id"] = Path(base["id"]).name
    return ExpertCard.model_validate({**rest, **kept})
