"""Measuring: two or more sides of a benchmark in turns, and the line that each benchmark prints last with `--json`.

Machines differ and are shared, so a benchmark's figure is a ratio of sides that took turns in one process: a load or a slower machine
meets all of them. Every key of the line that ends in `_ratio` is one of which less is better; `benchmarks/bench_check.py` reads them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach


def add_machine_options(parser: argparse.ArgumentParser, turns: int) -> None:
    """The options that every benchmark of this kind has."""
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--turns", type=int, default=turns, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine that others use too")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of the random model that a benchmark makes (`model_of`)."""
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)


def model_of(options: argparse.Namespace) -> Any:
    """The random model of some options, on their threads and device."""
    torch.set_num_threads(options.threads)
    return llama(options.hidden, options.layers, options.vocab, options.device)


def attached_to(model: Any) -> Adapted:
    """The model's z, its bases computed here and kept nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        return attach(model, cache_dir=Path(folder))


def llama(hidden: int, layers: int, vocab: int, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random Llama of Llama 3 8B's proportions (intermediate 3.5 x hidden, 4 heads a key-value head), of heads of 64."""
    torch.manual_seed(0)
    heads = max(hidden // 64, 1)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 4, 1),
        max_position_embeddings=8192,
    )
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


class Tokens:
    """A tokenizer of nothing: any id is a letter, and none ends a text."""

    eos_token_id, bos_token_id, pad_token_id, eos_token, bos_token = None, None, 0, None, None
    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids: Any, **_: Any) -> str:
        return "x" * (len(ids) if isinstance(ids, list) else 1)


def in_turns(sides: Mapping[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each side's runs, one a turn, the sides in changing order; a turn before them warms up."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.turns + 1):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            _wait(options.device)
            started = clock()
            sides[name]()
            _wait(options.device)
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ratio(seconds: Mapping[str, list[float]], ours: str, beside: str) -> float:
    """The median of the turns' ratios: what a turn's load did to both sides is divided out."""
    return round(statistics.median(one / other for one, other in zip(seconds[ours], seconds[beside], strict=True)), 4)


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 5) for name, values in seconds.items()}


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where it was measured."""
    cpu = f"{platform.machine()}, {options.threads} threads"
    return {
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu,
        "clock": options.clock,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()},
    }


def tell(benchmark: str, options: argparse.Namespace, **found: Any) -> None:
    """Print what was found: a line each, and all of it as JSON last where that is asked for."""
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json:
        print(json.dumps({"benchmark": benchmark, **found, **machine(options)}))
