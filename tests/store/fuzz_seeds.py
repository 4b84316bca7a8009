"""What is fuzzed: every place of t2eval that reads a file, with whole files for it. Named in docs/reliability.md."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2eval.errors import T2Error

Seed = Callable[[Path], Callable[[], Any]]
Reader = Callable[[Path], Any]


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

    log = "".join(json.dumps({"step": step, "validation": 0.5, "loss": 0.1}) + "\n" for step in range(4))

    def copied(source: Path, reader: Reader) -> Seed:
        def fill(folder: Path) -> Callable[[], Any]:
            target = folder / source.name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
            return lambda: reader(target)

        return fill

    def text(name: str, content: Any, reader: Reader) -> Seed:
        def fill(folder: Path) -> Callable[[], Any]:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
            return lambda: reader(folder / name)

        return fill

    def bench(folder: Path) -> None:
        hashes = {"task": "a", "prompts": "0" * 32, "experts": {"e": "x"}}
        for cell in (Cell("m", method, "t", 0) for method in ("base", "expert")):
            where = write_samples(folder, cell.key, [Sample(doc_id=i, doc_hash=f"h{i}", score=i % 2, response="é") for i in range(6)])
            row = {"cell": cell.key, "model": "m", "method": cell.method, "task": "t", "seed": 0, "status": "ok", "metric": "acc"}
            append(folder, Row(**row, score=0.5, stderr=0.1, n=6, seconds=1.0, samples=where, hashes=hashes))
        trained = folder / "experts" / "seed-0" / "math"
        trained.mkdir(parents=True)
        (trained / "expert.safetensors").write_bytes(b"z")
        (trained / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        stated = {
            "config": {"limit": 4, "seeds": [0]},
            "inputs": {str(trained / "expert.safetensors"): "x"},
            "tasks": {},
            "versions": {"torch": "2"},
        }
        (folder / "manifest.json").write_text(json.dumps({"name": "b", "cells": ["c"], **stated}))
        lines = [json.dumps({"doc_id": i, "prompt": "Q", "choices": ["a", "b"], "target": "a", "images": 0}) + "\n" for i in range(6)]
        (folder / "samples" / f"documents-{'0' * 32}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
        (folder / "commits.jsonl").write_text(json.dumps({"time": "2026-01-01T00:00:00+00:00", "t2eval": "a", "repository": None}) + "\n")
        (trained / "training.json").write_text(json.dumps(record))
        (trained / "log.jsonl").write_text(log)

    def benched(reader: Reader) -> Seed:
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

    more = {**_texts(text), **_models(copied, home), **_benchmarks(benched, bench)}
    recipe = "task: embedded_math_seen\noutput: x\nlr: 0.001\nsteps: 3\nclip: 0.5\n"
    plan = "tasks: [embedded_math_seen]\nmethods: [base, fewshot]\nseeds: [0, 1]\nmodel_args: {fewshot: {shots: 3}}\n"
    form = {"template": "Q {question}", "labels": {"math": "m"}, "unlisted": "{label}", "until": ["\n"]}
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
        **more,
    }


def _texts(text: Callable[[str, Any, Reader], Seed]) -> dict[str, Seed]:
    """Files of settings and results of trainings and of `t2 paper`."""
    from dataclasses import asdict

    from t2eval.basemodel.probe import HubData
    from t2eval.bench.training import Job, check_settings
    from t2eval.cli.settings import parse_settings
    from t2eval.expert.eval_results import task_in
    from t2eval.leaderboard.demo import kept_mark
    from t2eval.paper import ia3, search_study
    from t2eval.paper.lab import kept, kept_piece
    from t2eval.store.files import read_text
    from t2eval.training.claim import held_inputs, held_settings
    from t2eval.training.config import TrainConfig

    run = ia3.Run("m", "t", "train", 3, 0, 0.1, (2,))
    point = search_study.Point("t", "cem", False, 0, 0, 3, 9, 1.0, 0.5, [0.5, 1.0])

    def adapter(folder: Path) -> Callable[[], Any]:
        (folder / "adapter_config.json").write_text("{}")
        (folder / "settings.json").write_text(json.dumps({**run.settings, "steps": 2}))
        return lambda: ia3.Run(**{**asdict(run), "folders": (str(folder),)}).finished

    def settings(file: Path) -> None:
        held_settings(file.parent)

    def finished(folder: Path) -> Callable[[], Any]:
        (folder / "training.json").write_text("{}")
        (folder / "settings.json").write_text(json.dumps(config.hyperparameters))
        return lambda: check_settings(Job("j", TrainConfig(task="embedded_math_seen", output=folder)))

    def setting(file: Path) -> Any:
        return parse_settings("--set", [f"x={read_text(file)}"])

    piece = {"key": {"model": "m"}, "value": [0.5]}
    benchmark = {"tasks": [{"id": "x", "config": "default", "split": "test"}]}
    config = TrainConfig(task="embedded_math_seen", output="x").for_task()
    return {
        "settings of a training": text("settings.json", config.hyperparameters, settings),
        "settings of a finished training": finished,
        "inputs of a training": text("inputs.json", {"task": "a", "examples": "b"}, held_inputs),
        "piece of paper": text("piece.json", piece, lambda path: kept_piece(path, {"model": "m"})),
        "preset of paper": text("lab.json", {"preset": "embedded"}, lambda path: kept(path, dict)),
        "search study": text("study.jsonl", json.dumps(asdict(point)) + "\n", search_study.read),
        "IA3 of paper": adapter,
        "eval.yaml of the hub": text("eval.yaml", benchmark, lambda path: task_in(path, HubData("o/n", None), "test")),
        "mark of a demo": text("demo.json", {"full": False, "model": "embedded"}, kept_mark),
        "cached data set": _cached_data,
        "a setting of the command line": text("value", "{a: [1, 2.5, null]}", setting),
    }


def _cached_data(folder: Path) -> Callable[[], Any]:
    from datasets import config

    from t2eval.basemodel.probe import HubData, cached_data

    place = folder / "owner___name" / "default" / "0.0.0" / "hash"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(json.dumps({"splits": {"test": {"num_examples": 3}}, "dataset_size": 9}))

    def read() -> Any:
        before, config.HF_DATASETS_CACHE = config.HF_DATASETS_CACHE, str(folder)
        try:
            return cached_data(HubData("owner/name", "default"))
        finally:
            config.HF_DATASETS_CACHE = before

    return read


def _models(copied: Callable[[Path, Reader], Seed], home: Path) -> dict[str, Seed]:
    """Files of models, experts and pictures."""
    import torch
    from PIL import Image

    from t2eval.basemodel.load import load_base
    from t2eval.bench.inputs import adapter_facts
    from t2eval.expert.adapter import Adapter, write_adapter_card
    from t2eval.expert.card import refuse_adapter
    from t2eval.expert.prompts import PROBES, PromptVectors
    from t2eval.expert.upload import pack
    from t2eval.svf.bases import _read, cached_basis
    from t2eval.training.full import mounted
    from t2eval.vision.decoding import Place, read
    from tests.tiny import tiny_model, tiny_tokenizer

    plain = tiny_model()
    plain.save_pretrained(home / "base")
    tiny_tokenizer().save_pretrained(home / "base")
    Image.effect_noise((40, 30), 9).save(home / "picture.png")
    Image.effect_noise((40, 30), 9).save(home / "picture.jpg")
    (home / "pictures").mkdir()
    for kind in ("png", "jpg"):
        (home / f"picture.{kind}").rename(home / "pictures" / f"picture.{kind}")
    write_adapter_card(home / "adapter", "math", "Sums.")
    weight = torch.arange(12.0).reshape(3, 4)
    (home / "singular").mkdir()
    cached_basis(weight, home / "singular")

    shutil.copytree(home / "library", home / "upload")
    form = {"template": "Q {question}", "labels": {"math": "m"}, "unlisted": "{label}", "until": ["\n"]}
    (home / "upload" / "dispatch.json").write_text(json.dumps(form))

    def refused(path: Path) -> str | None:
        try:  # whatever is in it, it is named as what it is
            return refuse_adapter(path)
        except T2Error as error:
            return str(error)

    def vectors(folder: Path) -> Callable[[], Any]:
        PromptVectors(torch.ones(3, 4), torch.ones(len(PROBES), 4), "t", "b").save(folder)
        return lambda: PromptVectors.load(folder, "math")

    def weights(path: Path) -> None:
        with mounted(plain, path):
            pass

    def basis(path: Path) -> None:
        try:  # what is damaged is computed again; here it is only read
            for file in path.glob("*.safetensors"):
                _read(file, weight)
        except (KeyError, ValueError) as error:
            raise T2Error(str(error)) from error

    def pictures(path: Path) -> None:
        for file in sorted(path.iterdir()):
            read(file, Place("t", "test", 0))

    return {
        "adapter as an expert": copied(home / "adapter", Adapter.load),
        "prompt vectors": vectors,
        "weights of a full fine-tuning": copied(home / "base", weights),
        "base model": copied(home / "base", lambda path: load_base(str(path), device="cpu")),
        "singular bases": copied(home / "singular", basis),
        "pictures": copied(home / "pictures", pictures),
        "upload": copied(home / "upload", lambda path: pack(path, "owner/name")),
        "facts of an adapter": copied(home / "adapter", lambda path: adapter_facts(path, "lora")),
        "adapter for an expert": copied(home / "adapter", refused),
        **_packed(copied, home),
    }


def _packed(copied: Callable[[Path, Reader], Seed], home: Path) -> dict[str, Seed]:
    """A model in a GGUF file, where the package that reads it is installed."""
    import importlib.util

    from t2eval.basemodel.load import load_base
    from tests.tiny import save_tiny_gguf

    if importlib.util.find_spec("gguf") is None:
        return {}
    save_tiny_gguf(home / "packed", "model.gguf")
    return {"GGUF file": copied(home / "packed", lambda path: load_base(str(path), gguf_file="model.gguf", device="cpu", dequantize=True))}


def _benchmarks(benched: Callable[[Reader], Seed], bench: Callable[[Path], None]) -> dict[str, Seed]:
    """Files of benchmarks, read as several folders, as a page, and for export."""
    import importlib

    from t2eval.bench.commits import read as read_commits
    from t2eval.bench.documents import read_documents
    from t2eval.bench.merge import merged
    from t2eval.bench.rows import read
    from t2eval.leaderboard.exports import EXPORTS
    from t2eval.leaderboard.exports.source import source_of_rows
    from t2eval.leaderboard.page.content import content
    from t2eval.leaderboard.page.learning import learning

    def parts(folder: Path) -> Callable[[], Any]:
        for name in ("a", "b"):
            (folder / name).mkdir()
            bench(folder / name)
        return lambda: merged([folder / "a", folder / "b"])

    def page(folder: Path) -> Any:
        found = content(folder)
        return [chunk() for chunk in found.chunks.values()], learning([folder])

    def export(name: str) -> Seed:
        return benched(lambda folder: importlib.import_module(EXPORTS[name]).files(source_of_rows(folder)))

    return {
        "parts of a benchmark": parts,
        "documents": benched(lambda folder: [read_documents(folder, row) for row in read(folder)]),
        "commits": benched(read_commits),
        "page": benched(page),
        **{f"export {name}": export(name) for name in EXPORTS},
    }
