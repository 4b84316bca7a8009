"""Base model: a causal or vision-language model with its tokenizer or processor, from a Hugging Face name, a folder, or t2eval itself."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import struct
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from t2eval.basemodel import folders
from t2eval.basemodel.devices import AUTO, SPREAD, check_dtype, pick_device, pick_dtype, say_widened, stored_dtype
from t2eval.basemodel.hub_errors import answer_of, model_problem, one_line
from t2eval.basemodel.packaged import gguf_config, packaged_folder, unpacked
from t2eval.errors import T2Error, UsageError, did_you_mean, unknown
from t2eval.paths import EMBEDDED, EMBEDDED_FOLDERS, EMBEDDED_VLM, SMOLLM2, is_embedded
from t2eval.store.gguf import check_gguf_file
from t2eval.vision.images import text_tokenizer

_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    RuntimeError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)  # what a damaged file makes the libraries raise
_log = logging.getLogger(__name__)


def load_base(
    name: str | None = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = AUTO,
    device: str | torch.device | None = AUTO,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    dequantize: bool = False,
) -> tuple[Any, Any]:
    """Load a base model, in evaluation mode, and its tokenizer, which pads on the left; of a vision-language model, its processor.

    Args:
        name: a Hub name, a folder, None or `embedded` for the embedded base model, `embedded-seed-1` for the one of another seed,
            `embedded-vlm` for the embedded vision-language one, or `smollm2` for SmolLM2-135M-Instruct from a package.
        revision: a Hub revision.
        dtype: `auto` (as stored on a GPU, float32 on a CPU), `float32`, `bfloat16`, `float16`, or a torch dtype.
        device: where to put the model: `auto` or None (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, `mps`; `balanced` spreads its
            layers over all GPUs (accelerate's device map).
        trust_remote_code: run code that the repository brings.
        gguf_file: the name of a GGUF file in the folder or repository, which holds the model. Its weights stay packed where transformers
            has a kernel for their format on this device: a quantised base, which experts scale while it runs. Elsewhere it unpacks them.
        dequantize: unpack the weights of the GGUF file into an ordinary model.

    Returns:
        (model, tokenizer), or (model, processor) where the configuration is a vision-language model's: `t2eval.vision.images.reads_images`
        tells which, and `text_tokenizer` gives the tokenizer of either.

    Raises:
        T2Error: no such folder or repository, a gated one, a hub that cannot be reached, a damaged checkpoint, no embedded base.

    Examples:
        >>> model, tokenizer = load_base("embedded")
    """
    source = model_source(name)
    check_dtype(dtype)
    place = pick_device(device)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
        check_gguf(source, gguf_file)
    try:
        options["local_files_only"] = not _hub_answers(source, revision)
        try:
            model, reader, stored = _read(source, dtype, device, place, options, dequantize)
        except Exception as error:
            if options["local_files_only"] or answer_of(error) != "outage":
                raise
            _log.info("The Hub broke off (%s): looking in the local cache only.", one_line(error))
            model, reader, stored = _read(source, dtype, device, place, {**options, "local_files_only": True}, dequantize)
    except Exception as error:  # the libraries raise dozens of types; _explain re-raises what is not about the checkpoint
        raise _explain(source, revision, error) from error
    tokenizer = text_tokenizer(reader)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        _set_padding(tokenizer, source)
    if dtype == AUTO and name != SMOLLM2:
        say_widened(name or EMBEDDED, stored, model.dtype)
    return model.eval(), reader


def _read(
    source: str, dtype: str | torch.dtype, device: Any, place: torch.device, options: dict[str, Any], dequantize: bool
) -> tuple[Any, Any, torch.dtype | None]:
    """The model, its tokenizer or processor, and the dtype that its configuration gives for the checkpoint."""
    config = AutoConfig.from_pretrained(source, **options)
    reader = (AutoProcessor if _is_vlm(config) else AutoTokenizer).from_pretrained(source, **options)
    kind = AutoModelForImageTextToText if _is_vlm(config) else AutoModelForCausalLM
    stored = stored_dtype(config)
    silent = dtype == AUTO and stored is None and place.type != "cpu"  # transformers then looks at the weights themselves
    weights: dict[str, Any] = {"dtype": AUTO if silent else pick_dtype(dtype, place, stored)}
    if "gguf_file" in options:
        weights["quantization_config"] = gguf_config(dequantize=dequantize)
    if device == SPREAD:
        weights["device_map"] = SPREAD
    elif place.type != "cpu":
        weights["device_map"] = {"": place}  # straight there: no copy of the weights in main memory
    model, loading = kind.from_pretrained(source, output_loading_info=True, **weights, **options)
    if missing := sorted(loading["missing_keys"]):
        raise T2Error(  # transformers gives them random values, and warns
            f"The checkpoint in {source} has no weights for {len(missing)} of the model's tensors, such as {missing[0]}. Copy it again, or "
            "give a checkpoint of the whole model."
        )
    return model, reader, stored


def check_gguf(source: str, gguf_file: str) -> None:
    """See that a GGUF file can be read, and is there if its place is a folder.

    Raises:
        UsageError: the package gguf is not installed, or no such file.
        T2Error: the file in the folder is damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("gguf_file needs the package gguf: pip install 't2eval[smollm2]', or pip install gguf.")
    folder = Path(source)
    if folder.is_dir():
        if not (folder / gguf_file).exists():
            raise unknown("GGUF file", gguf_file, [file.name for file in folder.glob("*.gguf")])
        check_gguf_file(folder / gguf_file)


def checkpoint_dtype(name: str | None, revision: str | None = None) -> str | torch.dtype:
    """The dtype that a base model's checkpoint is stored in, as its configuration says; `auto` where it does not.

    Raises:
        T2Error: as `load_base`.
    """
    return stored_dtype(_configuration(model_source(name), revision)) or AUTO


def _configuration(source: str, revision: str | None = None) -> Any:
    try:
        return AutoConfig.from_pretrained(source, revision=revision, local_files_only=not _hub_answers(source, revision))
    except Exception as error:  # as in load_base
        raise _explain(source, revision, error) from error


def _is_vlm(config: Any) -> bool:
    """Some families (Gemma 3) have one class for both kinds: those with a vision tower in the configuration are meant."""
    vision = getattr(config, "vision_config", None) is not None
    return vision and config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def base_identity(model_or_name: Any) -> dict[str, str | None]:
    """What names a base model in an expert's card and in results.

    Args:
        model_or_name: a loaded model, or what `load_base` takes.

    Returns:
        `id` (`embedded`, `embedded-seed-1`, `embedded-vlm`, `smollm2`, a Hub name, or a path), `revision` (the Hub's commit where known)
        and `architecture` (the class name).

    Raises:
        T2Error: as `load_base`, where a name is given.
    """
    if model_or_name is None or isinstance(model_or_name, (str, Path)):
        source = model_source(None if model_or_name is None else str(model_or_name))
        config = _configuration(source)
        architecture = (config.architectures or ["unknown"])[0]
        location = source
    else:
        config, architecture = model_or_name.config, type(model_or_name).__name__
        location = str(config.name_or_path)
    local = Path(location).resolve() if location and Path(location).is_dir() else None
    own = {**{name: folders.embedded_base_dir(name) for name in EMBEDDED_FOLDERS}, SMOLLM2: packaged_folder()}
    ours = next((name for name, folder in own.items() if local is not None and local == folder.resolve()), None)
    return {
        "id": ours or location or "unnamed",
        "revision": getattr(config, "_commit_hash", None),
        "architecture": architecture,
    }


def model_source(name: str | None) -> str:
    """What transformers loads a base model from: the folder of an embedded one, else the name itself.

    Args:
        name: an embedded model, `smollm2`, a folder in the Hub layout or a Hub id; None: the embedded base.

    Raises:
        T2Error: the folder is missing, or has no config.json.
    """
    if name is None or is_embedded(name):
        folder = folders.embedded_base_dir(name or EMBEDDED)
        if not (folder / "config.json").exists():
            kind = "vision-language" if name == EMBEDDED_VLM else "base"
            remedy = "Install t2eval again, or build it with `make embedded`; or give another model."
            raise T2Error(f"The embedded {kind} model is not in {folder}. {remedy}")
        return str(folder)
    assert name is not None
    if name == SMOLLM2:
        return str(unpacked())
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").exists() and not any(path.glob("*.gguf")):
            raise T2Error(f"{name} is a folder without config.json: it is not a model in the Hub layout.")
        return name
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=2, cutoff=0.5)
        raise T2Error(f"There is no model folder {name}.{did_you_mean(path.parent / match for match in near)}")
    return name


def _hub_answers(source: str, revision: str | None) -> bool:
    """Whether the Hub can be asked for this source: one request, because the libraries retry each file of a checkpoint for half a minute.

    A Hub that is out of order (5xx) or overrun (429) is no better than none: what is in the cache is used.

    Raises:
        Exception: the Hub's own answer that there is no such repository or revision, or that it is not for this user.
    """
    if Path(source).is_dir():
        return False
    try:
        HfApi().model_info(source, revision=revision, timeout=10)
    except Exception as error:
        if answer_of(error) not in ("outage", None):
            raise
        _log.info("The Hub cannot be asked (%s): looking in the local cache only.", one_line(error))
        return False
    return True


def _set_padding(tokenizer: Any, source: str) -> None:
    """A tokenizer without a padding token pads with the end of text, as lm-eval does; a new token would change the embeddings."""
    token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if token is None:
        raise T2Error(f"The tokenizer of {source} has no padding and no end-of-text token: set pad_token in its tokenizer_config.json.")
    tokenizer.pad_token = token


def _explain(source: str, revision: str | None, error: Exception) -> Exception:
    """A `T2Error` for a checkpoint that cannot be had; anything else as it is."""
    if isinstance(error, T2Error):
        return error
    local = Path(source).is_dir()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return T2Error(f"Not enough memory to load {source}. Try dtype bfloat16, or a smaller model.")
    if not local and (problem := model_problem(source, revision, error)) is not None:
        return T2Error(problem)
    if local and isinstance(error, _DAMAGE) or "Safetensor" in type(error).__name__:
        return T2Error(f"The checkpoint in {source} cannot be loaded: {one_line(error)}")
    if isinstance(error, OSError):
        return T2Error(
            f"{source} is neither a folder nor in the local cache, and the Hub cannot be reached. Check the name and the network "
            "(is HF_HUB_OFFLINE set?), or use a local folder, or the embedded base model (no name)."
        )
    if isinstance(error, (ValueError, ImportError)):
        return UsageError(f"{source} cannot be loaded: {one_line(error)}")
    if local and (type(error) is Exception or type(error).__module__ != "builtins"):  # as tokenizers and configurations raise them
        return T2Error(f"The checkpoint in {source} cannot be loaded: {type(error).__name__}: {one_line(error)}. Copy it again.")
    return error
