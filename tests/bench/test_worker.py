import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2eval.bench.base import state
from t2eval.bench.config import DEFAULT_METHODS as METHODS
from t2eval.bench.config import BenchConfig
from t2eval.bench.documents import read_documents
from t2eval.bench.execute import run
from t2eval.bench.inputs import expert_of
from t2eval.bench.plan import Cell, make_plan
from t2eval.bench.rows import read_samples
from t2eval.bench.worker import Worker
from t2eval.environment import loading
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.svf.attachment import attach
from tests.tiny import save_tiny, tiny_model

TASKS = Path(__file__).resolve().parents[1] / "fixtures" / "bench_tasks"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A tiny base, a library of three experts and three adapters."""
    folder = tmp_path_factory.mktemp("bench")
    save_tiny(folder / "base")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    adapted = attach(model)
    for index, label in enumerate(("math", "code", "dispatch")):
        torch.manual_seed(index)
        z = {path: 1 + 0.5 * torch.randn_like(value) for path, value in adapted.z().items()}
        Expert.from_adapted(
            adapted, {path: value.detach() for path, value in z.items()}, name=label, label=label, description=f"{label} questions",
            base_id=str(folder / "base"),
        ).save(folder / "library" / "seed-0" / label)  # fmt: skip
    from peft import IA3Config, LoraConfig, get_peft_model

    for method in ("lora", "dora", "ia3"):
        torch.manual_seed(3)
        options = {"task_type": "CAUSAL_LM"}
        config = (
            IA3Config(**options, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
            if method == "ia3"
            else LoraConfig(**options, r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, use_dora=method == "dora")
        )
        peft = get_peft_model(tiny_model(), config)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "ia3" in name:
                    parameter.add_(torch.randn_like(parameter))
        peft.save_pretrained(folder / "baselines" / "0" / f"{method}-math")
    return {
        "model": str(folder / "base"),
        "methods": METHODS,
        "tasks": ("bench_generate", "bench_choice"),
        "experts": str(folder / "library" / "seed-{seed}"),
        "baselines": str(folder / "baselines" / "{seed}" / "{method}-{label}"),
        "labels": {"bench_choice": "math"},
        "include_path": str(TASKS),
        "batch_size": 4,
        "model_args": {"fewshot": {"shots": 2, "population": 4, "iterations": 2}},
    }


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    """Every method's rows, the base's again at the end, and the worker with its weights before."""
    config = BenchConfig(**settings)
    worker = Worker(config, tmp_path_factory.mktemp("out"))
    worker.open()
    before = {name: tensor.clone() for name, tensor in worker.base.model.state_dict().items()}
    cells = list(make_plan(config).cells)
    rows = {(cell.method, cell.task): worker.run(cell) for cell in cells}
    again = {cell.task: worker.run(cell) for cell in cells if cell.method == "base"}
    return worker, before, rows, again


def test_every_method_works_on_every_kind_of_task(done):
    *_, rows, _ = done
    assert {key: row.error for key, row in rows.items() if row.status != "ok"} == {}
    assert len(rows) == 16
    for row in rows.values():
        assert row.n == 8
        assert 0 <= row.score <= 1
        assert row.seconds > 0
        assert row.peak_memory_bytes > 1e6
        assert set(row.versions) >= {"t2eval", "lm_eval", "torch", "transformers", "peft"}
        assert len(row.hashes["task"]) == 64


def test_base_is_as_before_after_all_methods(done):
    worker, before, rows, again = done
    after = worker.base.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    for task, row in again.items():
        first, second = (read_samples(worker.output, item) for item in (rows["base", task], row))
        assert first == second
        assert row.score == rows["base", task].score


def test_each_method_really_changes_the_answers(done):
    worker, _, rows, _ = done
    base = [sample.response for sample in read_samples(worker.output, rows["base", "bench_generate"])]
    for method in ("expert", "fewshot", "lora", "dora", "ia3"):
        found = [sample.response for sample in read_samples(worker.output, rows[method, "bench_generate"])]
        assert found != base, method


def test_row_reports_passes_parameters_and_hashes(done, settings):
    *_, rows, _ = done
    size = sum(z.numel() for z in Expert.load(expert_of(Path(settings["experts"].replace("{seed}", "0")), "math")).z.values())
    counts = {method: rows[method, "bench_generate"].trainable_parameters for method in METHODS}
    assert (counts["base"], counts["expert"], counts["prompt"], counts["fewshot"], counts["cls"]) == (0, size, 2 * size, 2 * size, 3 * size)
    assert counts["lora"] == 2 * (2 * (32 + 32) + 2 * (32 + 16))
    base, prompt = rows["base", "bench_generate"], rows["prompt", "bench_generate"]
    assert base.first_pass_seconds == 0
    assert base.second_pass_seconds == base.seconds
    assert prompt.first_pass_seconds > 0
    assert prompt.second_pass_seconds < prompt.seconds
    assert list(rows["prompt", "bench_choice"].t2["dispatch"]) == ["bench_choice"]
    assert sum(prompt.t2["dispatch"]["bench_generate"].values()) == 8
    assert set(prompt.hashes["experts"]) == {"math", "code"}
    assert list(rows["lora", "bench_choice"].hashes["adapter"]) == ["lora-math"]
    assert rows["fewshot", "bench_choice"].t2["adaptation"].keys() == {"bench_choice"}


def test_documents_are_kept_once_a_task_with_prompts_choices_and_gold_answers(done):
    worker, _, rows, _ = done
    assert len(list((worker.output / "samples").glob("documents-*"))) == 2
    for task, choices in (("bench_generate", False), ("bench_choice", True)):
        found = [read_documents(worker.output, rows[method, task]) for method in METHODS]
        assert all(each == found[0] for each in found) and len(found[0]) == 8
        loaded = worker._task(task)
        for doc_id, document in found[0].items():
            doc = loaded.eval_docs[doc_id]
            assert document.prompt.endswith(loaded.doc_to_text(doc)) and document.target == str(loaded.doc_to_target(doc))
            assert [choice.strip() for choice in document.choices] == (loaded.doc_to_choice(doc) if choices else [])
    assert read_documents(worker.output, rows["base", "bench_choice"].model_copy(update={"hashes": {}})) is None
    elsewhere = rows["base", "bench_choice"].model_copy(update={"hashes": {"prompts": "../../../etc/passwd"}})
    assert read_documents(worker.output, elsewhere) is None


def test_samples_have_the_probabilities_of_the_labels(done):
    worker, _, rows, _ = done
    for sample in read_samples(worker.output, rows["prompt", "bench_choice"]):
        assert max(sample.probabilities, key=sample.probabilities.get) == sample.dispatch
        assert sum(sample.probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_samples_say_which_label_each_example_was_given(done):
    worker, _, rows, _ = done
    for method in ("prompt", "cls"):
        for task in ("bench_generate", "bench_choice"):
            given = Counter(sample.dispatch for sample in read_samples(worker.output, rows[method, task]))
            assert given == rows[method, task].t2["dispatch"][task]
    for method in ("base", "fewshot", "lora"):
        assert {sample.dispatch for sample in read_samples(worker.output, rows[method, "bench_generate"])} == {None}


def test_broken_cells_say_what_is_missing(settings, tmp_path, done):
    worker = done[0]
    row = worker.run(Cell(settings["model"], "lora", "bench_generate", 7))
    assert row.status == "failed"
    assert "No adapter in" in row.error
    row = worker.run(Cell(settings["model"], "expert", "bench_generate", 7))
    assert "No experts in" in row.error
    with pytest.raises(UsageError, match="Available: code, dispatch, math"):
        expert_of(Path(settings["experts"].replace("{seed}", "0")), "poetry")
    assert worker.run(Cell(settings["model"], "base", "bench_choice", 0)).score == done[3]["bench_choice"].score


def test_a_run_with_real_workers(settings, tmp_path, done):
    plan = make_plan(BenchConfig(**{**settings, "methods": ("base", "lora")}))
    result = run(plan, tmp_path / "out", limit=5)
    assert result.exit_code == 0
    assert [row.n for row in result.rows] == [5] * 4
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [Path(file).parent.name for file in manifest["inputs"]] == ["lora-math"]
    scores = [[sample.score for sample in read_samples(tmp_path / "out", row)] for row in result.rows[:1]]
    assert scores == [[sample.score for sample in read_samples(done[0].output, done[2]["base", "bench_generate"])][:5]]


def test_a_model_or_task_that_does_not_exist_ends_the_run(settings, tmp_path, monkeypatch):
    few = loading._task_manager((str(TASKS),), False)
    monkeypatch.setattr(loading, "_task_manager", lambda *_: few)  # lm-eval's own 14,000 take 15 s to read
    with pytest.raises(T2Error, match="Unknown task 'bench_genrate'. Did you mean 'bench_generate'"):
        Worker(BenchConfig(**{**settings, "tasks": ("bench_genrate",)}), tmp_path).open()


def _damaged(settings, folder, damage):
    """The settings with adapters whose weights have been damaged."""
    shutil.copytree(Path(settings["baselines"]).parents[1], folder)
    file = folder / "0" / "ia3-math" / "adapter_model.safetensors"
    damage(file)
    return {**settings, "baselines": str(folder / "{seed}" / "{method}-{label}"), "methods": ("base", "ia3", "lora")}


def _truncated(file):
    file.write_bytes(file.read_bytes()[:-7])


def _of_other_shapes(file):
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file)


def _half(file):
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[: len(tensors) // 2]), file)


@pytest.mark.parametrize("damage", [_truncated, _of_other_shapes, _half])
def test_a_damaged_adapter_costs_its_cells_and_no_other(settings, tmp_path, done, damage):
    worker = Worker(BenchConfig(**_damaged(settings, tmp_path / "adapters", damage)), tmp_path)
    worker.open()
    for task in ("bench_generate", "bench_choice"):
        assert worker.run(Cell(settings["model"], "ia3", task, 0)).status == "failed"
        for method in ("lora", "base"):
            row = worker.run(Cell(settings["model"], method, task, 0))
            assert (row.status, row.score) == ("ok", done[2][method, task].score)
            assert read_samples(tmp_path, row) == read_samples(done[0].output, done[2][method, task])


def test_a_cell_that_leaves_the_base_changed_is_failed_and_the_base_is_loaded_again(settings, tmp_path, done, monkeypatch):
    worker = Worker(BenchConfig(**settings), tmp_path)
    worker.open()
    plain = worker._plain

    def meddling(model, method):
        with torch.no_grad():
            next(reversed(list(model.parameters()))).view(-1)[3] += 2**-10
        return plain(model, method)

    monkeypatch.setattr(worker, "_plain", meddling)
    row = worker.run(Cell(settings["model"], "base", "bench_choice", 0))
    assert row.status == "failed" and "was not as it had been loaded after this cell" in row.error
    monkeypatch.setattr(worker, "_plain", plain)
    assert worker.run(Cell(settings["model"], "base", "bench_choice", 0)).score == done[3]["bench_choice"].score


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64])
def test_the_bases_state_sees_every_bit(dtype):
    module = torch.nn.Linear(2, 2)
    module.register_buffer("kept", torch.ones(5, 7).to(dtype))
    before = state(module)
    assert state(module) == before
    module.kept[3, 2] = 0
    assert [name for name in before if state(module)[name] != before[name]] == ["kept"]


@pytest.mark.parametrize("method", ["vera", "tinylora", "loraxs", "full"])
def test_a_further_baseline_is_trained_evaluated_and_taken_off(method, settings, tmp_path):
    from t2eval.basemodel.load import load_base
    from t2eval.training.config import TrainConfig
    from t2eval.training.methods import find_method, make_trainable

    model, _ = load_base(settings["model"])
    config = TrainConfig(task="bench_generate", output=tmp_path / "run", method=method)
    trainable = make_trainable(model, config)
    ids = torch.tensor([[5, 6, 7]])
    base = model(ids).logits.clone()
    with torch.no_grad():
        for parameter in trainable.parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
        trained = trainable.model(ids).logits.clone()
        with trainable.base():
            assert torch.equal(trainable.model(ids).logits, base), "the reference of the penalty is the base"
    assert not torch.allclose(trained, base, atol=1e-4)
    folder = tmp_path / "baselines" / f"{method}-math"
    folder.mkdir(parents=True)
    _save(trainable, folder, settings["model"])
    plan = {
        **settings,
        "methods": ("base", method),
        "tasks": ("bench_generate",),
        "baselines": str(tmp_path / "baselines" / "{method}-{label}"),
    }
    worker = Worker(BenchConfig(**plan), tmp_path / "out")
    worker.open()
    before = {name: tensor.clone() for name, tensor in worker.base.model.state_dict().items()}
    with find_method(method).mounted(worker.base.model, folder) as mounted:
        assert torch.allclose(mounted(ids).logits, trained, atol=1e-5), "what was saved is what was trained"
    rows = {cell.method: worker.run(cell) for cell in make_plan(worker.config).cells}
    assert rows[method].error is None and rows[method].trainable_parameters > 0
    assert list(rows[method].hashes["adapter"]) == [f"{method}-math"]
    after = worker.base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def _save(trainable, folder, base):
    from t2eval.training.adapters import PeftTrainable

    if isinstance(trainable, PeftTrainable):
        trainable.save_adapter(folder, {"id": base, "revision": None})
    else:
        trainable.save_checkpoint(folder)
