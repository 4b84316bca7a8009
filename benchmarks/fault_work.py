"""The work that `benchmarks/faults.py` disturbs: what each kind does in a folder, as a function and by commands, and what is finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from t2eval.bench.execute import run as run_bench
from t2eval.bench.plan import load_plan
from t2eval.bench.rows import ROWS
from t2eval.bench.worker import Worker
from t2eval.expert.expert import Expert
from t2eval.expert.export import export_merged
from t2eval.expert.library import save_mix
from t2eval.expert.lora import export_lora
from t2eval.paths import experts_dir
from t2eval.training.config import TrainConfig
from t2eval.training.train import train_expert
from t2eval.workers.executor import Outcome
from t2eval.workers.pool import Pool

TIMED = {"seconds", "first_pass_seconds", "second_pass_seconds", "peak_memory_bytes", "elapsed", "t2"}
LIBRARY = experts_dir() / "library" / "seed-0"
TRAINING = {"steps": 6, "batch_size": 4, "train_limit": 8, "validation_limit": 8, "validate_every": 2, "test_limit": 8}
BENCH = {"methods": ["base", "expert", "cls", "lora"], "tasks": ["embedded_math_unseen"], "seeds": [0, 1], "limit": 8}
SEARCH = {
    "methods": ["fewshot"],
    "tasks": ["embedded_math_unseen", "embedded_code_unseen"],
    "seeds": [0, 1],
    "limit": 4,
    "model_args": {"fewshot": {"shots": 4, "population": 4, "iterations": 3}},
}


class Here:
    """An executor whose cells run in this very process, so that a kill meets the evaluation, too."""

    elsewhere, workers = False, 1

    def run(self, setup: Callable[[], Any], items: Sequence[Any], log: Path, group: Any = None) -> Generator[Outcome]:
        """Answer one after the other."""
        answer = setup()
        for item in items:
            yield Outcome(item, answer(item))


@dataclass(frozen=True)
class Work:
    """Something to do in a folder.

    Attributes:
        do: it; called again, it goes on.
        finished: what a folder holds of it that must never change again: name → digest.
        commands: the arguments of `t2` that do the same in a new folder.
    """

    name: str
    do: Callable[[Path], None]
    finished: Callable[[Path], dict[str, str]]
    commands: Callable[[Path], list[list[str]]] | None = None


# ---------------------------------------------------------------------- what is done
def train(folder: Path) -> None:
    """A training run of a few steps."""
    train_expert(TrainConfig(task="embedded_math_seen", output=folder, resume=True, **TRAINING), progress=False)


def _train_commands(folder: Path) -> list[list[str]]:
    settings = [part for key, value in TRAINING.items() if key != "steps" for part in ("--set", f"{key}={value}")]
    return [["train-expert", "--task", "embedded_math_seen", "--output", str(folder), "--steps", str(TRAINING["steps"]), *settings]]


def _file(folder: Path, settings: dict[str, Any]) -> Path:
    """A benchmark file beside a folder: some cells of the embedded base's shipped experts and baselines."""
    root = experts_dir().resolve()
    places = {"experts": str(root / "library/seed-{seed}"), "baselines": str(root / "baselines/seed-{seed}/{method}-{label}")}
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent.parent / f"{folder.parent.name}-benchmark.yaml"  # not on the small disk
    file.write_text(yaml.safe_dump({"name": "faults", "model": "embedded", "batch_size": 64, **places, **settings}))
    return file


def cells(settings: dict[str, Any], pool: Any = None, factory: type[Worker] = Worker) -> Callable[[Path], None]:
    """Cells, by this process or by those of a pool."""

    def do(folder: Path) -> None:
        run_bench(load_plan(_file(folder, settings)), folder, pool=pool or Here(), factory=factory)

    return do


def _cells_commands(settings: dict[str, Any]) -> Callable[[Path], list[list[str]]]:
    return lambda folder: [["bench", str(_file(folder, settings)), "--output", str(folder)]]


def _by_workers(folder: Path) -> None:
    """The cells of `bench` by two processes beside this one."""
    with Pool(2) as pool:
        run_bench(load_plan(_file(folder, BENCH)), folder, pool=pool)


def export(folder: Path) -> None:
    """What is not there yet: adapters, a merged model; and a mix over an older one."""
    if not (folder / "lora").exists():
        export_lora(LIBRARY, folder / "lora", rank=2)
    if not (folder / "merged").exists():
        export_merged(LIBRARY / "math", folder / "merged")
    for share in (0.25, 0.75):
        save_mix([LIBRARY / "math", LIBRARY / "code"], [share, 1 - share], folder / "mix", name="mix")


def _export_commands(folder: Path) -> list[list[str]]:
    two = [str(LIBRARY / "math"), str(LIBRARY / "code")]
    return [
        ["expert", "export", str(LIBRARY), "--lora", "2", "--output", str(folder / "lora")],
        ["expert", "export", str(LIBRARY / "math"), "--merged", "--output", str(folder / "merged")],
        ["expert", "mix", *two, "--alphas", "0.75,0.25", "--output", str(folder / "mix")],
    ]


# ---------------------------------------------------------------------- what is finished
def digest(content: bytes) -> str:
    """Of some bytes."""
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in TIMED}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _lines(file: Path, *keys: str) -> dict[str, str]:
    """The whole lines of a JSONL file, by some of their values, without what is timed; each once."""
    text = file.read_text().split("\n")[:-1] if file.is_file() else []
    values = [json.loads(line) for line in text]
    return {" ".join(str(value.get(key)) for key in keys): digest(json.dumps(_timeless(value)).encode()) for value in values}


def of_bench(folder: Path) -> dict[str, str]:
    """Rows that are `ok`, and samples."""
    rows = {name: found for name, found in _lines(folder / ROWS, "status", "cell").items() if name.startswith("ok ")}
    kept = {name.removeprefix("ok ") for name in rows}
    samples = {file.name: digest(file.read_bytes()) for file in (folder / "samples").glob("*.gz") if file.name.split(".jsonl")[0] in kept}
    return rows | samples


def of_training(folder: Path) -> dict[str, str]:
    """The expert's z, once its record says that the run is finished."""
    if not (folder / "training.json").is_file():
        return {}
    Expert.load(folder)
    return {name: digest((folder / name).read_bytes()) for name in ("expert.safetensors", "test_outcomes.json")}


def of_exports(folder: Path) -> dict[str, str]:
    """All files of the exports that are there; of the mix, which is written over, whether it is one of the two whole ones."""
    found = {}
    for part in ("lora", "merged"):
        files = [file for file in (folder / part).rglob("*") if file.is_file()]
        found |= {file.relative_to(folder).as_posix(): digest(file.read_bytes()) for file in files}
    if (folder / "mix").exists():
        Expert.load(folder / "mix")  # never half of one
        found["mix"] = "whole"
    return found


# ---------------------------------------------------------------------- all kinds
def pushing(stack: contextlib.ExitStack) -> Work:
    """A push to a hub in this process: all of it is there, or nothing."""
    from huggingface_hub import constants

    from t2eval.expert.upload import pack, push

    sys.path.append(str(Path(__file__).parents[1]))
    from tests.fakes.hub import TOKEN, FakeHub

    hub = FakeHub()
    hub.quiet()  # its threads lose their other ends
    stack.callback(hub.close)
    os.environ["HF_TOKEN"] = TOKEN
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = hub.endpoint, False
    constants.HF_HUB_DISABLE_XET = True  # its storage has a protocol of its own; over LFS the hub works too
    constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"

    def do(folder: Path) -> None:
        name = f"someone/{folder.parent.name}"
        push(pack(LIBRARY, name), name)

    def finished(folder: Path) -> dict[str, str]:
        name = f"models/someone/{folder.parent.name}"
        tree = hub.tree(name.removeprefix("models/")) if "main" in getattr(hub.repositories.get(name), "branches", {}) else {}
        own = folder.parent.name.encode()  # model cards name the repository
        return {path: digest(content.replace(own, b"NAME")) for path, content in tree.items() if not path.startswith(".git")}

    def commands(folder: Path) -> list[list[str]]:
        return [["expert", "push", str(LIBRARY), f"someone/{folder.parent.name}"]]

    return Work("push", do, finished, commands)


def works(chosen: Sequence[str], stack: contextlib.ExitStack) -> list[Work]:
    """Those with some of the names; the stack closes what they need."""
    known = [
        Work("train", train, of_training, _train_commands),
        Work("bench", cells(BENCH), of_bench, _cells_commands(BENCH)),
        Work("search", cells(SEARCH), of_bench, _cells_commands(SEARCH)),
        Work("workers", _by_workers, of_bench),
        Work("export", export, of_exports, _export_commands),
    ]
    if "push" in chosen:
        known.append(pushing(stack))
    return [work for work in known if work.name in chosen]
