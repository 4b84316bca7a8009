"""Devices: what `auto` means on machines of several kinds, which are faked, and the dtype that goes with each."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from t2eval.basemodel import devices
from t2eval.basemodel.devices import describe, free_memory, pick_device, pick_dtype, stored_dtype
from t2eval.errors import UsageError


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int = 0, mps: bool = False, rank: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)


@pytest.mark.parametrize(
    ("gpus", "mps", "rank", "asked", "device"),
    [
        (0, False, None, "auto", "cpu"),
        (0, False, "1", "auto", "cpu"),
        (0, True, None, "auto", "mps"),
        (2, True, None, "auto", "cuda"),
        (2, False, None, None, "cuda"),
        (2, False, "1", "auto", "cuda:1"),
        (2, False, "1", "cuda", "cuda:1"),
        (2, False, "3", "auto", "cuda:1"),
        (2, False, "1", "cuda:0", "cuda:0"),
        (2, False, None, "balanced", "cuda:0"),
        (2, False, None, "cpu", "cpu"),
    ],
)
def test_what_a_setting_means(
    gpus: int, mps: bool, rank: str | None, asked: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus, mps, rank)
    assert pick_device(asked) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "asked", "message"),
    [
        (0, "cuda", "torch sees no CUDA GPU here. Give device auto or cpu"),
        (0, "balanced", "torch sees no CUDA GPU here"),
        (2, "cuda:2", "torch sees 2 CUDA GPUs here, cuda:0 to cuda:1"),
        (2, "mps", "torch sees no Apple GPU here"),
        (0, "cda", "Unknown device 'cda'. Did you mean 'cuda'"),
        (0, "cuda:one", "Unknown device 'cuda:one'"),
        (0, "", "Unknown device ''"),
    ],
)
def test_devices_that_are_not_here(gpus: int, asked: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus)
    with pytest.raises(UsageError, match=message):
        pick_device(asked)


def test_the_dtype_goes_by_the_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    half, single, double = torch.bfloat16, torch.float32, torch.float16
    table = {
        ("auto", gpu, half): half,
        ("auto", gpu, double): double,
        ("auto", gpu, single): single,
        ("auto", cpu, half): single,
        ("auto", cpu, None): single,
        (None, cpu, double): single,
        ("bfloat16", cpu, single): half,
        (torch.float16, gpu, half): double,
    }
    for (asked, device, stored), expected in table.items():
        assert pick_dtype(asked, device, stored) == expected, (asked, device, stored)
    with pytest.raises(UsageError, match="Unknown dtype 'float33'. Did you mean 'float32'"):
        pick_dtype("float33", cpu, None)


def test_the_stored_dtype_of_a_configuration() -> None:
    assert stored_dtype(SimpleNamespace(dtype=torch.float16)) == torch.float16
    assert stored_dtype(SimpleNamespace(dtype="torch.bfloat16")) == torch.bfloat16
    assert stored_dtype(SimpleNamespace(dtype=None, text_config=SimpleNamespace(dtype="float16"))) == torch.float16
    assert stored_dtype(SimpleNamespace()) is None


def test_a_device_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert describe(torch.device("cpu"), torch.float32) == "CPU (2 threads), float32"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    assert describe(torch.device("cuda", 1), torch.bfloat16) == "NVIDIA H100 (cuda:1), bfloat16"


def test_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    assert free_memory(torch.device("cuda")) == 140
    monkeypatch.setattr(devices, "_proc_available", lambda: 5000)
    files = {"/sys/fs/cgroup/memory.max": 4000, "/sys/fs/cgroup/memory.current": 1000}
    monkeypatch.setattr(devices, "_number", files.get)
    assert free_memory(torch.device("cpu")) == 3000
    monkeypatch.setattr(devices, "_number", lambda _: None)
    assert free_memory(torch.device("cpu")) == 5000


def test_cores_are_those_of_the_process_and_of_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    real = Path.read_text
    quota = "max 100000"

    def read_text(path: Path, *arguments: str, **options: str) -> str:
        return quota if str(path) == "/sys/fs/cgroup/cpu.max" else real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert devices.available_cores() == devices.usable_cores() == 8
    quota = "250000 100000"
    assert devices.available_cores() == devices.usable_cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert (devices.available_cores(), devices.usable_cores()) == (3, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "all")
    assert devices.usable_cores() == 3
