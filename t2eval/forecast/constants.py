"""Constants: speeds that were measured, each with its card and date, from which hours are counted where a benchmark file gives none.

Tokens a second are taken to fall as a model's parameters grow: reading, answering and training all take operations and bytes in proportion
to them. That is an assumption, and every figure made of it says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2eval.basemodel.devices import AUTO
from t2eval.bench.config import BenchConfig
from t2eval.paths import is_embedded

_NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Measured:
    """One machine's speeds.

    Attributes:
        machine, date, what: on which card, when, with which model and sizes.
        parameters: of that model.
        read: tokens a second of prompts, a whole batch at once.
        answer: new tokens a second of rollouts and searches, sampled, all sequences of the batch together.
        generate: those of lm-eval's own class, which answers the test examples.
        train: tokens a second, forward and backward, prompt and answer.
        merge: seconds to merge an expert into all matrices and to take it out again.
    """

    machine: str
    date: str
    what: str
    parameters: float
    read: float
    answer: float
    generate: float
    train: float
    merge: float


GPU = Measured(
    machine="NVIDIA H200",
    date="November 2026",
    what="Llama-3-8B's shapes, bfloat16, rollouts of 256 sequences at once, training in micro batches of 8",
    parameters=8.03e9,
    read=36_000,
    answer=13_100,
    generate=2_340,
    train=11_700,
    merge=0.14,
)
CPU = Measured(
    machine="one thread of an AMD EPYC that others used too",
    date="November 2026",
    what="the embedded base, float32, 32 sequences",
    parameters=951_424,
    read=6_300,
    answer=630,
    generate=630,
    train=1_400,
    merge=0.036,
)


@dataclass(frozen=True)
class Speeds:
    """What hours are counted with. None: not known. `note` says where each is from."""

    read: float | None
    answer: float | None
    generate: float | None
    train: float | None
    merge: float
    note: str


def speeds_of(config: BenchConfig, parameters: int | None) -> Speeds:
    """The speeds of a benchmark: those that its file assumes, else those measured on its kind of device, for its model's size.

    Args:
        config: the benchmark file.
        parameters: of its model; None where not known: then nothing is known that is not given.
    """
    assume, measured = config.assume, GPU if _on_gpu(config) else CPU
    factor = None if parameters is None else measured.parameters / parameters
    given = {
        "read": assume.read_speed,
        "answer": assume.answer_speed,
        "generate": assume.answer_speed,  # the user's own figure stands for both
        "train": assume.train_speed,
    }
    found = {name: value or (getattr(measured, name) * factor if factor else None) for name, value in given.items()}
    merge = assume.merge_seconds if assume.merge_seconds is not None else (measured.merge / factor if factor else 0.0)
    own = [name for name, value in {**given, "merge": assume.merge_seconds}.items() if value is not None and name != "generate"]
    from_file = f"{', '.join(own)} as given" if own else ""
    from_measure = "" if len(own) == 4 or factor is None else f"measured on {measured.machine}, {measured.date} ({measured.what}), by size"
    return Speeds(**found, merge=merge, note="; ".join(part for part in (from_file, from_measure) if part) or "not known")


def _on_gpu(config: BenchConfig) -> bool:
    """Whether the benchmark will run on a GPU, as far as can be told without torch."""
    if config.device == AUTO:
        return _NVIDIA.is_dir() and not is_embedded(config.model)
    return config.device.split(":")[0] not in ("cpu", "mps")
