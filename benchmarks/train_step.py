"""Training step: time and peak memory of our factored SVF step against the reference implementation's algorithm.

Both sides train z of every linear map of the decoder layers of the same random Llama (Llama-3 8B's proportions) on the same batch.

    reference   composes W' = U diag(σ z) Vᵀ for every matrix and copies it into the module, runs forward and backward to a dense gradient,
                and projects that to the gradient of z. `--reference written` does it line by line as the implementation, but batched: it
                composes with diag_embed, keeps the new weights for the length of the step (there they are handed to vLLM), and composes
                again under autograd to project. `--reference lean` is what one could make of it: composes once, scales columns, keeps
                nothing, and projects by hand.
    ours        `t2eval.svf.attachment.attach`: hooks in the singular basis, no gradient of W.

Times are medians of interleaved steps in one process; peaks are the memory above the libraries' own, each side in a process of its own.

    python benchmarks/train_step.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from t2eval.svf.attachment import attach
from t2eval.svf.bases import cached_basis
from t2eval.svf.selection import target_paths

SIDES = ("ours", "reference")


def build(options: argparse.Namespace) -> Any:
    """The random base model: Llama-3 8B's proportions (intermediate 3.5 x hidden, 128 a head, 4 heads a key-value head)."""
    torch.manual_seed(0)
    heads = max(options.hidden // 128, 1)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 7 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 4, 1),
        max_position_embeddings=options.tokens,
    )
    return LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype))


def batch(options: argparse.Namespace) -> torch.Tensor:
    """Random token ids, (rows, tokens)."""
    return torch.randint(0, 1024, (options.rows, options.tokens), generator=torch.Generator().manual_seed(1)).to(options.device)


def ours(options: argparse.Namespace, cache: Path) -> Callable[[], None]:
    """One step of ours."""
    model, ids = build(options), batch(options)
    adapted = attach(model, cache_dir=cache / "bases")
    optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    return step


def decomposition(model: Any, path: str, cache: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (m, r), σ (r,) and V (n, r) of a weight, in its dtype, from the cached singular basis (so that the set-up leaves no peak)."""
    weight = model.get_parameter(f"{path}.weight").detach()
    basis = cached_basis(weight, cache / "bases")
    q, dense, sigma = basis.q.to(weight.device), weight.float(), basis.sigma.to(weight.device)
    safe = sigma.clamp_min(1e-12)
    u, v = (q, dense.T @ q / safe) if basis.side == "output" else (dense @ q / safe, q)
    return u.to(weight.dtype), sigma.to(weight.dtype), v.to(weight.dtype)


def reference(options: argparse.Namespace, cache: Path) -> Callable[[], None]:
    """One step of the reference implementation's algorithm."""
    model, ids = build(options), batch(options)
    model.requires_grad_(False)
    paths = target_paths(model)
    factors = {path: decomposition(model, path, cache) for path in paths}
    weights = {path: model.get_parameter(f"{path}.weight").requires_grad_(True) for path in paths}
    parameters = {path: torch.nn.Parameter(torch.zeros_like(factors[path][1], dtype=torch.float32)) for path in paths}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)

    def written(path: str) -> torch.Tensor:
        u, sigma, v = factors[path]
        return u @ torch.diag_embed(sigma * (1 + parameters[path]).to(sigma.dtype)) @ v.T

    def lean(path: str) -> torch.Tensor:
        u, sigma, v = factors[path]
        return (u * (sigma * (1 + parameters[path]).to(sigma.dtype))) @ v.T

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        kept = {}
        with torch.no_grad():
            for path in paths:
                composed = written(path) if options.reference == "written" else lean(path)
                weights[path].copy_(composed)
                if options.reference == "written":
                    kept[path] = composed
        model(ids, labels=ids, use_cache=False).loss.backward()
        for path in paths:
            gradient = weights[path].grad
            assert gradient is not None
            if options.reference == "written":
                written(path).backward(gradient)
            else:
                u, sigma, v = factors[path]
                narrow = ((u.T @ gradient) * v.T).sum(1) if u.shape[0] <= v.shape[0] else ((gradient @ v) * u).sum(0)
                parameters[path].grad = (narrow * sigma).float()
        optimizer.step()
        for path in paths:  # the implementation clears them with the next zero_grad; here as soon as they are used
            weights[path].grad = None

    return step


def side(name: str, options: argparse.Namespace, cache: Path) -> Callable[[], None]:
    """The step of one side."""
    return ours(options, cache) if name == "ours" else reference(options, cache)


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def peak(name: str, options: argparse.Namespace, cache: Path) -> int:
    """Peak memory of one side's steps, in bytes, above what it had after a step of a tiny model. Run it in its own process."""
    if options.device.startswith("cuda"):
        step = side(name, options, cache)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    small = argparse.Namespace(**{**vars(options), "hidden": 128, "layers": 1, "rows": 1})
    side(name, small, cache)()  # reads the libraries' code into memory, which is not what is measured
    before = status("VmRSS")
    step = side(name, options, cache)
    Path("/proc/self/clear_refs").write_text("5")  # restarts the high-water mark: making the model and its bases is not part of a step
    for _ in range(2):
        step()
    return status("VmHWM") - before


def measure_peak(name: str, options: argparse.Namespace, cache: Path) -> int:
    """`peak` in a fresh process, whose allocator gives freed tensors back at once, so that its resident memory is that of live tensors."""
    arguments = [sys.executable, __file__, "--peak", name, "--cache", str(cache), *forwarded(options)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    finished = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
    return int(finished.stdout.strip().splitlines()[-1])


def forwarded(options: argparse.Namespace) -> list[str]:
    """The options that a process of its own needs."""
    names = ("hidden", "layers", "rows", "tokens", "threads", "device", "dtype", "reference")
    return [argument for name in names for argument in (f"--{name}", str(getattr(options, name)))]


def measure_seconds(options: argparse.Namespace, cache: Path) -> dict[str, float]:
    """Median seconds a step, the two sides taking turns."""
    steps = {name: side(name, options, cache) for name in SIDES}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for turn in range(options.steps + 1):
        for name, step in steps.items():
            started = clock()
            step()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--reference", choices=("written", "lean"), default="written")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine that others use too")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak, options, options.cache))
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        seconds = measure_seconds(options, cache)
        peaks = {name: measure_peak(name, options, cache) for name in SIDES}
    report = {
        "benchmark": "train_step",
        "time_ratio": round(seconds["ours"] / seconds["reference"], 4),
        "memory_ratio": round(peaks["ours"] / peaks["reference"], 4),
        "median_seconds": {name: round(value, 5) for name, value in seconds.items()},
        "median_peak_bytes": peaks,
        "sizes": {key: getattr(options, key) for key in ("hidden", "layers", "rows", "tokens", "steps", "clock", "dtype", "reference")},
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.machine()}, {options.threads} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()},
    }
    for name in SIDES:
        print(f"{name:>9}: {seconds[name] * 1e3:8.1f} ms a step, peak {peaks[name] / 2**20:7.1f} MiB")
    print(f"ours / reference: time {report['time_ratio']:.3f}, memory {report['memory_ratio']:.3f}")
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
