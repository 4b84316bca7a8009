"""Arguments: `model_args` of a benchmark file, checked against what each method takes before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from t2eval.bench.config import EXPERT_METHODS, BenchConfig
from t2eval.errors import UsageError, unknown
from t2eval.models.registry import strategy_class

_DECIDED = frozenset({"pretrained", "tokenizer", "batch_size", "device", "dtype", "revision"})
"""What the benchmark file says for all methods."""


def check_arguments(config: BenchConfig) -> None:
    """Refuse model_args that a method does not take, or whose value it cannot use.

    Raises:
        UsageError: with the method, the argument and what there is.
    """
    for method, given in config.model_args.items():
        for name in sorted(given.keys() & _DECIDED):
            raise UsageError(f"model_args of {method}: {name!r} is a setting of the benchmark file itself, for all methods alike.")
        if given and method in config.methods:
            _check(method, config.kind(method), given)


def _check(method: str, kind: str, given: Mapping[str, Any]) -> None:
    from lm_eval.models.huggingface import HFLM

    from t2eval.models.options import DispatchOptions, split_arguments

    if kind in EXPERT_METHODS:
        taken = strategy_class(kind).OPTIONS
        if "dispatch_image" in given and issubclass(taken, DispatchOptions):
            taken = strategy_class(kind, with_images=True).OPTIONS
        split_arguments(taken, given, HFLM.__mro__)
        return
    known = set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs", *_DECIDED}
    for name in given:
        if name not in known:
            raise unknown(f"model_args of {method!r}, which has no options of t2eval's:", name, known)
