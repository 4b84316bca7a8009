"""Merged forward: time and peak memory of a forward pass with z merged into the weights, against the plain model's.

python benchmarks/merged_forward.py --json
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

import torch
import transformers
from train_step import batch, build, status

from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach

SIDES = ("merged", "plain")


def side(name: str, options: argparse.Namespace, cache: Path) -> Callable[[], None]:
    """One forward pass of one side."""
    model, ids = build(options).eval(), batch(options)
    adapted = attach(model, cache_dir=cache / "bases") if name == "merged" else None
    if adapted is not None:
        adapted.merge({path: torch.full((basis.rank,), 1.01) for path, basis in adapted.bases.items()})

    def step(kept: Adapted | None = adapted) -> None:  # holds the base weights, as a user's Adapted does
        with torch.inference_mode():
            model(ids, use_cache=False)

    return step


def peak(name: str, options: argparse.Namespace, cache: Path) -> int:
    """Peak memory of one side's forward pass, in bytes, with the weights and all that is kept beside them. Run it in its own process."""
    if options.device.startswith("cuda"):
        step = side(name, options, cache)
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    side(name, argparse.Namespace(**{**vars(options), "hidden": 128, "layers": 1, "rows": 1}), cache)()
    before = status("VmRSS")
    step = side(name, options, cache)
    Path("/proc/self/clear_refs").write_text("5")  # restarts the high-water mark: merging is not part of a forward pass
    step()
    return status("VmHWM") - before


def measure_peak(name: str, options: argparse.Namespace, cache: Path) -> int:
    """`peak` in a fresh process, whose allocator gives freed tensors back at once."""
    names = ("hidden", "layers", "rows", "tokens", "threads", "device", "dtype")
    forwarded = [argument for key in names for argument in (f"--{key}", str(getattr(options, key)))]
    command = [sys.executable, __file__, "--peak", name, "--cache", str(cache), *forwarded]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(finished.stdout.strip().splitlines()[-1])


def measure_seconds(options: argparse.Namespace, cache: Path) -> tuple[dict[str, float], float]:
    """Median seconds a pass, the two sides taking turns in changing order, and the median of the turns' ratios."""
    steps = {name: side(name, options, cache) for name in SIDES}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for turn in range(options.steps + 1):
        for name in SIDES if turn % 2 else SIDES[::-1]:
            started = clock()
            steps[name]()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(clock() - started)
    ratios = [merged / plain for merged, plain in zip(seconds["merged"], seconds["plain"], strict=True)]
    return {name: statistics.median(values) for name, values in seconds.items()}, statistics.median(ratios)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=31, help="timed passes of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine that others use too")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak, options, options.cache))
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds, ratio = measure_seconds(options, Path(folder))
        peaks = {name: measure_peak(name, options, Path(folder)) for name in SIDES}
    report = {
        "benchmark": "merged_forward",
        "time_ratio": round(ratio, 4),
        "memory_ratio": round(peaks["merged"] / peaks["plain"], 4),
        "median_seconds": {name: round(value, 5) for name, value in seconds.items()},
        "median_peak_bytes": peaks,
        "sizes": {key: getattr(options, key) for key in ("hidden", "layers", "rows", "tokens", "steps", "clock", "dtype")},
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.machine()}, {options.threads} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()},
    }
    for name in SIDES:
        print(f"{name:>7}: {seconds[name] * 1e3:8.1f} ms a pass, peak {peaks[name] / 2**20:7.1f} MiB")
    print(f"merged / plain: time {ratio:.3f}, memory {report['memory_ratio']:.3f} (the base weights and Q are kept beside the merged ones)")
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
