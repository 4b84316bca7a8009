"""Exports: rows as lm-eval, every-eval-ever and peft read them."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from lm_eval.utils import get_latest_filename, get_results_filenames, get_sample_results_filenames, make_table

from t2eval import cli
from t2eval.bench.manifest import write as write_manifest
from t2eval.bench.rows import Row, append
from t2eval.errors import UsageError
from t2eval.leaderboard.exports import EXPORTS, export
from t2eval.store.digests import file_digest
from t2eval.store.files import write_json
from tests.leaderboard.test_report import ones, put


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """The base, an adapter with its training record, a strategy with two tasks, and a cell that failed."""
    folder, adapter = tmp_path / "run", tmp_path / "lora-math"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA", "r": 16, "base_model_name_or_path": str(tmp_path / "model")})
    record = {"task": "seen", "seconds": 30.5, "steps": 20, "hyperparameters": {"batch_size": 8, "model": str(tmp_path / "model")}}
    write_json(adapter / "training.json", {**record, "scores": {"after": {"validation": {"score": 0.5, "stderr": None, "n": 4}}}})
    digest = file_digest(adapter / "adapter_model.safetensors")
    versions = {"t2eval": "0.1.0", "lm_eval": "0.4.13", "transformers": "5.24.0"}
    model = str(tmp_path / "model")
    put(folder, "base", ones(50), model=model, versions=versions)
    put(
        folder,
        "lora",
        ones(70),
        model=model,
        versions=versions,
        hashes={"adapter": {"lora-math": digest}, "task": "abc"},
        peak_memory_bytes=9,
    )
    t2 = {"strategy": "fewshot", "library": f"{tmp_path}/library"}
    source = f"hf://someone/experts@{'0' * 40}/math"
    hashes = {"experts": {"math": "1" * 64}, "sources": {"math": source}}
    for task in ("t", "u"):
        put(folder, "fewshot", ones(80), model=model, task=task, seed=1, versions=versions, t2=t2, hashes=hashes)
    put(folder, "fewshot", [1], model=model, task="one", seed=1, versions=versions, stderr=None, higher_is_better=False)
    append(folder, Row(cell="x", model=model, method="cls", task="t", seed=0, status="failed", error="no"))
    settings = {"name": "mine", "num_fewshot": 2, "limit": 100, "batch_size": 4, "device": "auto"}
    inputs = {str(adapter / "adapter_model.safetensors"): digest}
    write_manifest(folder, {"config": settings, "inputs": inputs, "cells": [], "versions": {}})
    return folder


def read(files: list[Path], part: str) -> dict[str, object]:
    (found,) = [file for file in files if part in str(file)]
    content = json.loads(found.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in {found}"))
    assert isinstance(content, dict)
    return content


def test_lm_evals_own_tools_read_what_is_exported(benchmark: Path, tmp_path: Path) -> None:
    files, notes = export(benchmark, "lm-eval", tmp_path / "out")
    texts = [str(file) for file in files]
    assert len(get_results_filenames(texts)) == 3 and len(get_sample_results_filenames(texts)) == 5
    assert get_latest_filename([file for file in texts if "fewshot" in file and "/results_" in file])
    results = read(files, "fewshot-seed1/results_")
    table = make_table(results)
    assert "|t " in table and "0.8|" in table and "±" in table and "N/A" in table and "|     2|" in table
    assert make_table(results).count("↓") == 1  # `one`, of which less is better
    assert results["config"]["model_args"] == {"pretrained": "model", "experts": f"hf://someone/experts@{'0' * 40}/math"}
    assert results["config"]["t2"]["t"] == {"strategy": "fewshot", "library": "library"}
    lines = next(file for file in files if "samples_u_" in file.name).read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 100 and first["acc"] == 1.0 and first["metrics"] == ["acc"] and first["doc_hash"] == "u0"
    assert notes == ["1 failed cells are not exported."]


def test_every_eval_evers_schema_holds(benchmark: Path, tmp_path: Path, root: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((root / "tests/fixtures/every_eval_ever/eval.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    check = jsonschema.Draft7Validator(schema).validate
    files, _ = export(benchmark, "every-eval-ever", tmp_path / "out", organization="Somebody")
    contents = [json.loads(file.read_text()) for file in files]
    for content in contents:
        check(content)
    assert {file.relative_to(tmp_path / "out").parts[:4] for file in files} == {("data", "mine", "unknown", "model")}
    assert {uuid.UUID(file.stem).version for file in files} == {4}, "its own check takes no other"
    (fewshot,) = [content for content in contents if "fewshot" in content["evaluation_id"]]
    by_task = {result["evaluation_name"]: result for result in fewshot["evaluation_results"]}
    assert by_task["t"]["score_details"]["score"] == 0.8 and by_task["t"]["score_details"]["uncertainty"]["num_samples"] == 100
    assert by_task["t"]["score_details"]["uncertainty"]["standard_error"]["value"] == 0.01
    assert "standard_error" not in by_task["one"]["score_details"]["uncertainty"] and by_task["one"]["metric_config"]["lower_is_better"]
    assert fewshot["model_info"]["additional_details"]["t2eval_sources_math"].startswith("hf://someone/experts@")
    assert fewshot["source_metadata"]["source_organization_name"] == "Somebody"
    del fewshot["model_info"]
    with pytest.raises(jsonschema.ValidationError):
        check(fewshot)
    again, notes = export(benchmark, "every-eval-ever", tmp_path / "again")
    assert "--organization" in " ".join(notes)
    assert [file.name for file in again] == [file.name for file in files], "the same rows have the same names"


def test_every_eval_evers_own_package_takes_it(benchmark: Path, tmp_path: Path) -> None:
    types = pytest.importorskip("every_eval_ever.eval_types", reason="every-eval-ever needs Python 3.12")
    files, _ = export(benchmark, "every-eval-ever", tmp_path / "out")
    for file in files:
        types.EvaluationLog.model_validate_json(file.read_text())
    command = [sys.executable, "-m", "every_eval_ever", "validate", *(str(file.relative_to(tmp_path / "out")) for file in files)]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


COMPARED = {
    "run_info": {"created_at", "total_time", "experiment_name", "peft_branch", "train_config", "peft_config"},
    "train_info": {
        "accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th", "train_time", "file_size",
        "num_trainable_params", "status", "metrics",
    },
    "meta_info": {"package_info", "system_info"},
}  # fmt: skip
"""What peft's method_comparison reads of a result."""


def test_pefts_comparison_has_what_its_app_reads(benchmark: Path, tmp_path: Path) -> None:
    files, notes = export(benchmark, "peft", tmp_path / "out")
    assert [file.name for file in files] == ["lora--model-t-seed0.json"]
    content = read(files, "lora")
    for part, keys in COMPARED.items():
        assert keys <= set(content[part])
    train = content["train_info"]
    assert train["status"] == "success" and train["train_time"] == 30.5 and train["file_size"] == len(b"weights")
    assert train["num_trainable_params"] == 1200 and train["accelerator_memory_max"] == 9
    last = train["metrics"][-1]
    assert last["test accuracy"] == 0.7 and last["train samples"] == 160 and last["train loss"] is None
    assert content["run_info"]["total_time"] == 32.5 and content["run_info"]["peft_config"]["peft_type"] == "LORA"
    assert {f"{name}-version" for name in ("transformers", "datasets", "peft", "torch", "bitsandbytes")} <= set(
        content["meta_info"]["package_info"]
    )
    assert "3 cells are left out" in notes[-1]


@pytest.mark.parametrize("form", EXPORTS)
def test_no_export_names_a_folder_of_this_machine(benchmark: Path, tmp_path: Path, form: str) -> None:
    files, _ = export(benchmark, form, tmp_path / "out")
    assert files and all(str(tmp_path) not in file.read_text(encoding="utf-8") for file in files)


def test_wrong_exports_are_refused(benchmark: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Unknown export 'lm_eval'\. Did you mean 'lm-eval'"):
        export(benchmark, "lm_eval", tmp_path / "out")
    with pytest.raises(UsageError, match="not an empty folder"):
        export(benchmark, "lm-eval", benchmark)
    failed = tmp_path / "failed"
    failed.mkdir()
    append(failed, Row(cell="x", model="m", method="cls", task="t", seed=0, status="failed", error="no"))
    with pytest.raises(UsageError, match="No cell of .* worked"):
        export(failed, "lm-eval", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports(benchmark: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["leaderboard", str(benchmark), "--export", "peft", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0 and "Wrote 1 files" in result.stdout and "left out" in result.stderr
    result = CliRunner().invoke(cli.main, ["leaderboard", str(benchmark), "--export", "peft"])
    assert result.exit_code == 2 and "belong together" in result.stderr
