"""Base: where lm-eval's class is to load the base model, in which dtype, and what is said where it cannot."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

from t2eval.basemodel.devices import check_dtype, pick_device, pick_dtype, say_widened, stored_dtype
from t2eval.basemodel.load import check_gguf
from t2eval.errors import T2Error, UsageError

_PACKED = ("autogptq", "gptqmodel", "load_in_", "bnb_", "quant")


def placed(pretrained: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's arguments with the device and the dtype that the model is loaded in; as they are for a model in memory.

    Raises:
        UsageError: a device, dtype or GGUF file that does not exist.
    """
    dtype = check_dtype(arguments.get("dtype") or "auto")
    if isinstance(pretrained, torch.nn.Module):
        return dict(arguments)
    if (gguf_file := arguments.get("gguf_file")) is not None:
        check_gguf(str(pretrained), str(gguf_file))
    asked = arguments.get("device")  # lm-eval's command says cuda:0 where nobody asked for anything
    device = pick_device(None if asked == "cuda:0" and not torch.cuda.is_available() else asked)
    return {**arguments, "device": str(device), "dtype": _dtype(dtype, device, pretrained, arguments)}


def _dtype(asked: str, device: torch.device, pretrained: Any, arguments: Mapping[str, Any]) -> str:
    """The dtype of the weights: half precision is held in float32 on a CPU, as `load_base` does, where the model is not a quantised one."""
    packed = any(name.startswith(_PACKED) for name in arguments)
    if asked != "auto" or device.type != "cpu" or packed or not isinstance(pretrained, (str, Path)):
        return asked
    try:
        revision, trust = arguments.get("revision") or "main", bool(arguments.get("trust_remote_code"))
        gguf_file = arguments.get("gguf_file")
        config = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=trust, gguf_file=gguf_file)
    except (OSError, ValueError, HFValidationError):
        return asked  # lm-eval's class will say what is wrong with it
    if gguf_file is None and getattr(config, "quantization_config", None) is not None:
        return asked
    loaded = pick_dtype(asked, device, stored_dtype(config))
    say_widened(str(pretrained), stored_dtype(config), loaded)
    return str(loaded).removeprefix("torch.")


@contextlib.contextmanager
def one_reason(pretrained: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a base model, or the tokenizer given beside it, that cannot be loaded is a `T2Error` with what to do.

    Args:
        pretrained: the base model.
        arguments: what lm-eval's class is given; what it does not know either goes to `from_pretrained`, which refuses it by a TypeError.
    """
    try:
        yield
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if refused is None or refused[1] not in arguments:
            raise
        raise UsageError(
            f"model_args: {refused[1]!r} is no option of t2eval or of lm-eval's class, and the base model {pretrained!r} does not take it "
            "either. Leave it out, or check its spelling."
        ) from error
    except (OSError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0]
        tokenizer = arguments.get("tokenizer")
        beside = f", or the tokenizer {tokenizer!r}," if isinstance(tokenizer, str) else ""
        raise T2Error(
            f"The base model {pretrained!r}{beside} could not be loaded: {first} Check the name or path; if the hub cannot be reached, "
            "download the model where it can and give its folder, or leave pretrained= out to use the embedded base model."
        ) from error
