"""Fuzz every reader: `python -m tests.store.fuzz_readers --cases 20000`, or `make fuzz`.

Each case damages the files of one reader (bytes flipped, cut, repeated, put in, values of another kind, devices, FIFOs, links) and reads
them. It may give a value or a `T2Error`. Anything else, more than `SECONDS`, more than `MEMORY` bytes beside what was there, a file
written or a process started counts as a failure. The last line is a JSON object of counts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import gzip
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error

SECONDS, MEMORY = 5, 2**30
PIECES = [b"{", b"[", b"]", b"}", b"&a ", b"*a ", b"!!int ", b"\x00", b"\xff\xfe", b"1e999", b"NaN", b"null", b"-1", b"\\ud800", b": ",
          b"- ", b'"', b"9" * 50, b"../", b"[" * 3000, b"\xe2\x80\xa8"]  # fmt: skip
VALUES: list[Any] = [None, [], {}, -1, 0, 10**30, 1.5, True, "", "../../x", "a\nb", "\x00", [[]], {"a": {"b": []}}, "x" * 4000]
Seed = Callable[[Path], Callable[[], Any]]


class Hang(BaseException):
    """A case that does not end."""


def seeds() -> dict[str, Seed]:
    """Name → what fills a folder and gives the call that reads it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    from t2eval.basemodel.probe import model_config, weight_files, weight_shapes
    from t2eval.bench import manifest
    from t2eval.bench.inputs import cards, expert_facts
    from t2eval.bench.plan import Cell, load_plan
    from t2eval.bench.rows import Row, Sample, append, read, read_samples, write_samples
    from t2eval.expert.expert import Expert
    from t2eval.expert.import_sakana import raw_parameters
    from t2eval.expert.library import load_library
    from t2eval.leaderboard.gate import fail_on_regression
    from t2eval.leaderboard.report import leaderboard
    from t2eval.paper.clock import _read as read_clock
    from t2eval.strategies.dispatch import load_format
    from t2eval.svf.attachment import attach
    from t2eval.training import checkpoints
    from t2eval.training.adapters import load_adapter
    from t2eval.training.config import TrainConfig
    from t2eval.training.log import read_log
    from t2eval.training.record import Results, RunRecord
    from tests.tiny import save_library, tiny_model

    home = Path(tempfile.mkdtemp())
    save_library(home / "library", "math", "code")
    get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(home / "adapter")
    adapted, plain = attach(tiny_model(), cache_dir=None), tiny_model()
    names = [name for name in adapted.model.state_dict() if "mlp" in name]
    torch.save({name: torch.zeros(min(adapted.model.state_dict()[name].shape)) for name in names}, home / "z.pt")
    score = {"score": 0.5, "stderr": 0.1, "n": 4}
    record = {"task": "t", "seed": 0, "objective": "reinforce", "steps": 2, "seconds": 1.0, "chosen_step": 1, "trainable_parameters": 3,
              "base_model": {"id": "b", "architecture": "A"},
              "scores": {"before": {"validation": score}, "after": {"validation": score}}}  # fmt: skip

    def copied(source: Path, reader: Callable[[Path], Any]) -> Seed:
        def fill(folder: Path) -> Callable[[], Any]:
            target = folder / source.name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
            return lambda: reader(target)

        return fill

    def text(name: str, content: Any, reader: Callable[[Path], Any]) -> Seed:
        def fill(folder: Path) -> Callable[[], Any]:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
            return lambda: reader(folder / name)

        return fill

    def bench(folder: Path) -> None:
        for cell in (Cell("m", method, "t", 0) for method in ("base", "expert")):
            where = write_samples(folder, cell.key, [Sample(doc_id=i, doc_hash=f"h{i}", score=i % 2, response="é") for i in range(6)])
            append(folder, Row(cell=cell.key, model="m", method=cell.method, task="t", seed=0, status="ok", metric="acc", score=0.5,
                               stderr=0.1, n=6, seconds=1.0, samples=where, hashes={"task": "a", "experts": {"e": "x"}}))  # fmt: skip
        (folder / "manifest.json").write_text(
            json.dumps({"name": "b", "config": {"limit": 4}, "inputs": {"a": "b"}, "cells": ["c"], "tasks": {}, "versions": {"torch": "2"}})
        )

    def benched(reader: Callable[[Path], Any]) -> Seed:
        def fill(folder: Path) -> Callable[[], Any]:
            bench(folder)
            return lambda: reader(folder)

        return fill

    def checkpoint(folder: Path) -> Callable[[], Any]:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter])
        parameter.grad = torch.ones(3)
        optimizer.step()
        progress = checkpoints.Progress(1, 1.0, [{"step": 0, **score}], 0, 0.5, None, {"p": parameter.detach()})
        checkpoints.save(folder / "checkpoints", progress, {"p": parameter.detach()}, optimizer, ["p"])
        return lambda: checkpoints.read_last(folder / "checkpoints", lambda line: None)

    def model(folder: Path) -> Callable[[], Any]:
        save_file({"w": torch.zeros(4, 2)}, folder / "a.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 4}))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
        return lambda: (model_config(str(folder)), weight_shapes(weight_files(str(folder)) or []))

    recipe = "task: embedded_math_seen\noutput: x\nlr: 0.001\nsteps: 3\nclip: 0.5\n"
    plan = "tasks: [embedded_math_seen]\nmethods: [base, fewshot]\nseeds: [0, 1]\nmodel_args: {fewshot: {shots: 3}}\n"
    form = {"template": "Q {question}", "labels": {"math": "m"}, "unlisted": "{label}", "until": ["\n"]}
    log = "".join(json.dumps({"step": step, "validation": 0.5, "loss": 0.1}) + "\n" for step in range(4))
    return {
        "expert": copied(home / "library" / "e-math", Expert.load),
        "library": copied(home / "library", lambda path: (load_library(path), cards(path), expert_facts("cls", str(path)))),
        "adapter": copied(home / "adapter", lambda path: load_adapter(plain, path).unload()),
        "pt": copied(home / "z.pt", lambda path: raw_parameters(path, adapted)),
        "rows": benched(lambda path: [read_samples(path, row) for row in read(path)]),
        "leaderboard": benched(lambda path: leaderboard(path).to_markdown()),
        "gate": benched(lambda path: fail_on_regression(path, path)),
        "manifest": benched(manifest.limit_of),
        "checkpoint": checkpoint,
        "model folder": model,
        "benchmark file": text("b.yaml", plan, load_plan),
        "recipe": text("r.yaml", recipe, TrainConfig.from_yaml),
        "dispatch format": text("dispatch.json", form, lambda path: load_format(path.parent)),
        "training.json": text("training.json", record, lambda path: (Results.read(path.parent, "Mend."), RunRecord.read(path.parent))),
        "log": text("log.jsonl", log, read_log),
        "seconds of paper": text("clock.json", {"table1": {"1": 2.5}}, read_clock),
    }


@functools.cache
def _outside() -> Path:
    """A file of our own that lies outside every folder that is damaged."""
    path = Path(tempfile.mkdtemp()) / "outside"
    path.write_text("root:x:0:0\n")
    return path


def damage(folder: Path, generator: random.Random) -> None:
    """One file of a folder made wrong, or replaced by something that is no file."""
    # A link that an earlier damage left is never written through: what it leads to is not ours.
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink() and file.name != "README.md")
    if not files:
        return
    file = generator.choice(files)
    content, kind = file.read_bytes(), generator.randrange(14)
    packed = file.suffix == ".gz"
    if kind == 0:
        file.unlink()
        generator.choice([lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), lambda: file.symlink_to(_outside()),
                          file.mkdir, lambda: file.symlink_to(file), lambda: None])()  # fmt: skip
        return
    if kind <= 4 and file.suffix in (".json", ".jsonl"):
        with contextlib.suppress(ValueError, RecursionError):  # damaged before: then its bytes are damaged further
            lines = content.decode().splitlines() if file.suffix == ".jsonl" else [content.decode()]
            place = generator.randrange(len(lines))
            lines[place] = json.dumps(_other(json.loads(lines[place]), generator))
            file.write_text("\n".join(lines) + "\n")
            return
    if packed and kind <= 8:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            content = gzip.decompress(content)
    for _ in range(generator.randint(1, 4)):
        place, way = generator.randint(0, len(content)), generator.randrange(4)
        if way == 0:
            content = content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
        elif way == 1:
            content = content[:place]
        elif way == 2:
            content = content[:place] + generator.choice(PIECES) * generator.choice((1, 1, 40)) + content[place:]
        else:
            content = content.replace(generator.choice((b"a", b"1", b":", b",", b"[")), generator.choice(PIECES), 2)
    file.write_bytes(gzip.compress(content) if packed and kind <= 8 else content)


def _other(value: Any, generator: random.Random) -> Any:
    """A JSON value with one place in it made of another kind, doubled or left out."""
    if not isinstance(value, (dict, list)) or not value or generator.random() < 0.1:
        return generator.choice(VALUES)
    key = generator.choice(list(value)) if isinstance(value, dict) else generator.randrange(len(value))
    if generator.random() < 0.15:
        value.pop(key)
    elif isinstance(value, dict) and generator.random() < 0.1:
        value[generator.choice(["x", "", "../x", "a\nb"])] = value.pop(key)
    else:
        value[key] = _other(value[key], generator)
    return value


def run(cases: int, seed: int = 0) -> dict[str, Any]:
    """Run cases, the readers in turn.

    Returns:
        Counts: `cases`, `refused`, `read`, by-kind `failures`, with `examples` of them.
    """
    warnings.simplefilter("ignore")
    table, place = seeds(), Path(tempfile.mkdtemp())
    written: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(f"open {arguments[0]}")
        elif event in ("subprocess.Popen", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "socket.connect", "pickle.find_class"):
            written.append(f"{event} {arguments[:1]}")

    def late(*_: Any) -> None:
        raise Hang

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, late)
    for fill in table.values():  # the undamaged files must be read; and what is imported late comes before the limit
        folder = place / "whole"
        folder.mkdir()
        fill(folder)()
        shutil.rmtree(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    counts: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    names, began, slowest = list(table), time.perf_counter(), 0.0
    try:
        for case in range(cases):
            name, generator = names[case % len(names)], random.Random(f"{seed} {case}")
            folder = place / "case"
            folder.mkdir()
            read = table[name](folder)
            for _ in range(generator.randint(1, 2)):
                damage(folder, generator) if any(file.is_file() for file in folder.rglob("*")) else None
            since, outcome = time.perf_counter(), "read"
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            watching = True
            try:
                read()
            except T2Error:
                outcome = "refused"
            except Hang:
                outcome = f"{name}: hangs"
            except MemoryError:
                outcome = f"{name}: memory"
            except BaseException as error:  # noqa: BLE001  what it is, is the finding
                outcome = f"{name}: {type(error).__name__}"
                examples.setdefault(outcome, f"case {case}: {str(error)[:200]}")
            finally:
                watching = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.perf_counter() - since)
            if written:
                outcome = f"{name}: wrote or started {written[0]}"
                written.clear()
            counts[outcome] += 1
            shutil.rmtree(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        shutil.rmtree(place)
    failures = {key: value for key, value in counts.items() if key not in ("read", "refused")}
    return {"cases": cases, "read": counts["read"], "refused": counts["refused"], "failures": failures, "examples": examples,
            "slowest_seconds": round(slowest, 2), "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = run(given.cases, given.seed)
    print(json.dumps(found))
    sys.exit(1 if found["failures"] else 0)
