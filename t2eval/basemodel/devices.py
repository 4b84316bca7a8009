"""Device: where a model runs, in which dtype, with how much memory and how many cores.

`auto` is the best device that torch sees: a CUDA GPU (each process of a parallel run its own), then Apple's, then the CPU. torch is
imported only where a device is asked for: counting cores needs none.
"""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.errors import UsageError, unknown

if TYPE_CHECKING:
    import torch

AUTO = "auto"
SPREAD = "balanced"
"""The device setting that spreads a model's layers over all GPUs, accelerate's word for it (`device_map="balanced"`)."""
DTYPES = ("float32", "bfloat16", "float16")
_HALF = ("bfloat16", "float16")

_log = logging.getLogger(__name__)
_said: set[str] = set()


def pick_device(asked: str | torch.device | None = AUTO) -> torch.device:
    """The device that a setting means.

    Args:
        asked: `auto` or None (CUDA, then MPS, then the CPU), `cpu`, `cuda`, `cuda:1`, `mps`. Under torchrun or `accelerate launch` each
            process gets the GPU of its LOCAL_RANK where it asks for `auto` or `cuda`. `balanced` (`SPREAD`) is the first GPU here.

    Raises:
        UsageError: not a device, or one that is not in this machine.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = AUTO if asked is None else str(asked)
    if name == AUTO:
        name = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu|cuda|mps|xpu|npu|balanced)(?::(\d+))?", name)
    if match is None:
        raise unknown("device", name, (AUTO, "cpu", "cuda", "cuda:0", "mps", SPREAD))
    kind, index = match[1], match[2]
    if kind in ("cuda", SPREAD):
        if not gpus:
            raise UsageError(f"The device is {name!r}, and torch sees no CUDA GPU here. Give device auto or cpu, or run where one is.")
        place = int(index) if index else _local_rank(gpus) if kind == "cuda" else 0
        if place is not None and place >= gpus:
            raise UsageError(f"The device is {name!r}, and torch sees {gpus} CUDA GPUs here, cuda:0 to cuda:{gpus - 1}.")
        return torch.device("cuda") if place is None else torch.device("cuda", place)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"The device is {name!r}, and torch sees no Apple GPU here. Give device auto or cpu.")
    return torch.device(name)


def _local_rank(gpus: int) -> int | None:
    """The GPU of this process in a parallel run on this machine; None in a run of one process, which takes torch's current one."""
    rank = os.environ.get("LOCAL_RANK", "")
    return int(rank) % gpus if rank.isdecimal() else None


def check_dtype(asked: str | torch.dtype) -> str:
    """The name of a dtype setting: `auto`, `float32`, `bfloat16` or `float16`.

    Raises:
        UsageError: another one, with near matches.
    """
    name = str(asked).removeprefix("torch.")
    if name not in (AUTO, *DTYPES):
        raise unknown("dtype", name, (AUTO, *DTYPES))
    return name


def pick_dtype(asked: str | torch.dtype | None, device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """The dtype in which weights are loaded.

    Args:
        asked: `auto` or None, `float32`, `bfloat16`, `float16`, or a torch dtype.
        device: where they go.
        stored: the dtype of the checkpoint; None where it does not say.

    Returns:
        What is asked; for `auto` the stored one on a GPU, and float32 on a CPU, where products of bfloat16 are some ten times slower
        and the values are the same.

    Raises:
        UsageError: an unknown dtype.
    """
    import torch

    name = check_dtype(AUTO if asked is None else asked)
    if name != AUTO:
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if stored is None or device.type == "cpu":
        return torch.float32
    return stored


def stored_dtype(config: Any) -> torch.dtype | None:
    """The dtype that a transformers configuration gives for its checkpoint; None where it gives none."""
    import torch

    for part in (config, getattr(config, "text_config", None)):
        dtype = getattr(part, "dtype", None)
        dtype = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
        if isinstance(dtype, torch.dtype):
            return dtype
    return None


def say_widened(source: str, stored: torch.dtype | None, loaded: torch.dtype) -> None:
    """Log, once a process and model, that a checkpoint in half precision is held in float32 on this CPU."""
    name = str(stored).removeprefix("torch.")
    if name in _HALF and str(loaded) == "torch.float32" and source not in _said:
        _said.add(source)
        _log.info(
            "%s is stored in %s and loaded in float32: the same values, and faster on a CPU. dtype=%s keeps it so.", source, name, name
        )


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """A device and a dtype in words, for the first line of a run: `NVIDIA H100 80GB HBM3 (cuda:0), bfloat16`."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device}), {name}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU ({threads} thread{'' if threads == 1 else 's'}), {name}"
    return f"{device}, {name}"


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where nobody can say.

    On a GPU, what the driver has free and what torch's allocator keeps unused. On a CPU, what the machine and its control group have left.
    """
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _free_main_memory() if device.type == "cpu" else None


def _free_main_memory() -> int | None:
    left = []
    if (available := _proc_available()) is not None:
        left.append(available)
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is None:
        limit, used = _number("/sys/fs/cgroup/memory/memory.limit_in_bytes"), _number("/sys/fs/cgroup/memory/memory.usage_in_bytes")
    if limit is not None and used is not None:
        left.append(max(0, limit - used))
    return min(left) if left else None


def _proc_available() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (rounded up), whatever the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def usable_cores() -> int:
    """Threads that torch may take in all: what the user set by OMP_NUM_THREADS, else `available_cores`."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else available_cores()


def _cgroup_cores() -> float | None:
    """The quota of this container in cores: control groups of version 2 (`cpu.max`), then 1; None where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        quota = str(_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "max")
        period = str(_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us") or 0)
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) > 0 else None
