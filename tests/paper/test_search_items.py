"""Tables 5, 8, 9 and 10 and figure 7 on cells from a formula: their numbers against the files', read another way, and what is run."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from t2eval.basemodel.folders import embedded_library_dir
from t2eval.bench.rows import Row
from t2eval.errors import T2Error, UsageError
from t2eval.expert.library import load_library
from t2eval.paper import ia3
from t2eval.paper import lab as lab_module
from t2eval.paper.item import item
from t2eval.paper.items import budgets, shots, transfer
from t2eval.paper.lab import Lab
from t2eval.paper.presets import preset
from t2eval.paper.report import run_item
from t2eval.workers.pool import Pool
from tests.bench.fakes import number
from tests.paper import conftest

SKILLS = ("math", "code", "reasoning")
REASONING = "embedded_reasoning_unseen"


def alphas(cell: str) -> list[float]:
    return [number(cell, name) % 100 / 100 for name in ("code", "math", "reasoning")]


def spent(study: str, cell: str) -> dict[str, Any]:
    return {"evaluations": number(study, cell, "e") % 500, "iterations": number(study, cell, "i") % 100, "examples": 3, "search": "cem"}


@pytest.fixture
def searched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab, whose few-shot cells say what they found and spent, and whose trainings leave the shipped experts."""
    plain = conftest.fake_row

    def with_search(plan: Any, output: Path, cell: Any) -> Row:
        row = plain(plan, output, cell)
        if cell.method != "fewshot":
            return row
        t2 = {"alphas": {cell.task: alphas(cell.key)}, "alpha_order": ["code", "math", "reasoning"]}
        adaptation = {"adaptation": {cell.task: spent(plan.config.name, cell.key)}}
        seconds = number(plan.config.name, cell.key, "s") % 90
        return row.model_copy(update={"t2": {**(row.t2 or {}), **t2, **adaptation}, "first_pass_seconds": float(seconds)})

    def train(trainings: Any, pool: Any, say: Any, log: Any) -> None:
        for training in trainings:
            assert training.config.model == "embedded-seed-1" and training.config.method == "svf"
            shutil.copytree(embedded_library_dir(training.seed) / training.config.label, training.output)

    monkeypatch.setattr(conftest, "fake_row", with_search)
    monkeypatch.setattr(lab_module, "train", train)
    return lab


def scores(lab: Lab, study: str, method: str, task: str, seeds: Sequence[int] = (0, 1), model: str = "embedded") -> np.ndarray:
    """Scores by example, averaged over seeds, read from the files themselves."""
    folder = lab.output / "cells" / study / "samples"
    read = []
    for seed in (0,) if method == "base" else seeds:
        with gzip.open(folder / f"{model}__{method}__{task}__seed{seed}.jsonl.gz", "rt") as file:
            read.append([json.loads(line)["score"] for line in file])
    return np.mean(read, axis=0)


def config(lab: Lab, study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.output / "cells" / study / "config.json").read_text())
    return found


def check(row: Any, expected: np.ndarray) -> None:
    assert row["score"] == pytest.approx(expected.mean()) and row["stderr"] == pytest.approx(stats.sem(expected))


@pytest.mark.parametrize(("name", "level"), [("table5", "unseen"), ("table9", "seen")])
def test_transfer(searched: Lab, monkeypatch: pytest.MonkeyPatch, name: str, level: str) -> None:
    monkeypatch.setattr(transfer, "SHUFFLES", 3)
    monkeypatch.setattr(transfer, "refusal", lambda _lab: "matrix x has shape (64, 64)")
    result = item(name).run(searched)
    rows = {(row["way"], row["task"]): row for row in result.rows}
    studies = {
        transfer.BASE: ("base", "base", (0, 1)),
        transfer.ORDERED: ("ordered", "expert", (0, 1)),
        transfer.SHUFFLED: ("shuffled", "expert", (0, 1, 2)),
        transfer.OWN: ("own", "expert", (0, 1)),
    }
    if level == "unseen":
        studies |= {transfer.OWN_FEWSHOT: ("fewshot-own", "fewshot", (0, 1)), transfer.BOTH: ("fewshot-both", "fewshot", (0, 1))}
    assert len(rows) == 3 * len(studies)
    for way, (study, method, seeds) in studies.items():
        told = config(searched, f"transfer-{study}")
        assert told["model"] == "embedded-seed-1"
        assert way == transfer.BASE or told["model_args"][method] == {"allow_basis_mismatch": True}
        for skill in SKILLS:
            task = f"embedded_{skill}_{level}"
            check(rows[way, task], scores(searched, f"transfer-{study}", method, task, seeds, "embedded-seed-1"))
    task = f"embedded_math_{level}"
    claim = next(
        c
        for c in result.claims
        if c.text == f"the second base scores higher than the first base's ordered expert on math_{level}"  # in the paper's figures, too
    )
    ordered, base = rows[transfer.ORDERED, task]["score"], rows[transfer.BASE, task]["score"]
    assert claim.difference == pytest.approx(base - ordered) and claim.adjusted is not None
    assert result.claims[-1].holds and "shape" in str(result.claims[-1])
    columns = item(name).ours(result)
    assert columns[f"math_{level} (n=40)"][transfer.ORDERED].startswith(f"{ordered:.3f}")


def test_shuffled_experts_keep_their_values_and_both_libraries_their_experts(searched: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SHUFFLES", 3)
    monkeypatch.setattr(transfer, "refusal", lambda _lab: "refused")
    item("table5").run(searched)
    template = config(searched, "transfer-shuffled")["experts"]
    orders = []
    for shuffle in range(3):
        shuffled = {expert.label: expert for expert in load_library(template.replace("{seed}", str(shuffle)))}
        original = {expert.label: expert for expert in load_library(embedded_library_dir(shuffle % 2))}
        assert set(shuffled) == set(SKILLS)
        path = next(iter(shuffled["math"].z))
        mine, theirs = shuffled["math"].z[path], original["math"].z[path]
        assert torch.equal(mine.sort().values, theirs.sort().values) and not torch.equal(mine, theirs)
        assert shuffled["math"].card.basis_fingerprint[path] != original["math"].card.basis_fingerprint[path]
        orders.append(mine)
    assert not torch.equal(orders[0], orders[2])  # two shuffles of one expert
    both = load_library(config(searched, "transfer-fewshot-both")["experts"].replace("{seed}", "1"))
    assert sorted(expert.name for expert in both) == sorted([*SKILLS, *(f"first-{skill}" for skill in SKILLS)])
    first = next(expert for expert in both if expert.name == "first-code")
    assert first.sha256 == next(e for e in load_library(embedded_library_dir(1)) if e.name == "code").sha256


def test_an_expert_is_refused_on_another_width_with_the_reason(lab: Lab) -> None:
    message = transfer.refusal(lab)
    assert "has shape (128, 384)" in message or "has shape (128, 128)" in message
    assert "64" in message and "in this model" in message


def test_table10_counts_what_was_spent(searched: Lab) -> None:
    result = item("table10").run(searched)
    rows = {row["budget"]: row for row in result.rows}
    assert list(rows) == ["base", *(budget.label for budget in budgets._FULL)]
    check(rows["base"], scores(searched, "main", "base", REASONING))
    for budget in budgets._FULL:
        told = config(searched, budget.study)["model_args"]["fewshot"]
        assert told["shots"] == budget.shots
        assert told.get("iterations") == budget.iterations and (told.get("preset") == "paper") == (budget.iterations is not None)
        row = rows[budget.label]
        check(row, scores(searched, budget.study, "fewshot", REASONING))
        each = [spent(budget.study, f"embedded__fewshot__{REASONING}__seed{seed}") for seed in (0, 1)]
        assert row["evaluations"] == np.mean([e["evaluations"] for e in each]) and row["answers"] == 3 * row["evaluations"]
        seconds = [number(budget.study, f"embedded__fewshot__{REASONING}__seed{seed}", "s") % 90 for seed in (0, 1)]
        assert row["first_pass_seconds"] == np.mean(seconds)
    columns = item("table10").ours(result)
    assert columns["candidates"]["CEM, 3 shots"] == f"{rows['CEM, 3 shots']['evaluations']:.0f}"
    claims = {claim.text.removesuffix(" on reasoning_unseen"): claim for claim in result.claims}
    assert len(claims) == len(result.claims) == 9
    for text, claim in claims.items():
        first, second = (rows[name.replace("the base", "base")]["score"] for name in text.split(" scores higher than "))
        assert claim.difference == pytest.approx(first - second)
    light = claims["CEM, 10 shots scores higher than CEM light, 3 shots, 10 iterations"]
    assert light.reported == (82.61, 82.08)


def test_table10_tests_a_search_once_that_two_budgets_share(searched: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    full, light = budgets._FULL[1:3]  # both converge, say, so that they find the same
    study = budgets.Budget.study.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(budgets.Budget, "study", property(lambda self: study(full if self == light else self)))
    monkeypatch.setattr(budgets.Budget, "model_args", property(lambda self: {}))
    result = item("table10").run(searched)
    assert result.rows[2]["score"] == result.rows[3]["score"] and result.rows[3]["budget"] == light.label
    assert not any(light.label in claim.text for claim in result.claims) and any(full.label in claim.text for claim in result.claims)
    assert any(light.label in note and full.label in note for note in result.notes)


def test_figure7_shows_alphas_and_scores_the_even_mix(searched: Lab, tmp_path: Path) -> None:
    done = run_item(item("figure7"), searched)
    assert (searched.output / "figure7" / "figure.png").stat().st_size > 10_000
    found = [row for row in done.result.rows if row["kind"] == "alphas"]
    assert len(found) == 6
    for row in found:
        given = alphas(f"embedded__fewshot__{row['task']}__seed{row['seed']}")
        assert list(row["alphas"].values()) == given
        assert list(row["normalised"].values()) == pytest.approx(np.array(given) / sum(given))
    for skill in SKILLS:
        task = f"embedded_{skill}_unseen"
        (row,) = [r for r in done.result.rows if r["kind"] == "score" and (r["way"], r["task"]) == ("even mix", task)]
        check(row, scores(searched, "even-mix", "expert", task))
        means = {name: np.mean([r["normalised"][name] for r in found if r["task"] == task]) for name in sorted(SKILLS)}
        extreme, how = (min, "least") if skill == "math" else (max, "most")  # math is the paper's exception
        (claim,) = [c for c in done.result.claims if c.text == f"the expert of the task's own theme contributes {how} on {skill}_unseen"]
        assert claim.holds == (extreme(means, key=means.get) == skill)  # type: ignore[arg-type]
        texts = {claim.text for claim in done.result.claims}
        assert f"few-shot scores higher than the even mix on {skill}_unseen" in texts
        assert f"the even mix scores higher than the base on {skill}_unseen" in texts
    even = load_library(config(searched, "even-mix")["experts"].replace("{seed}", "1"))
    shipped = [expert for expert in load_library(embedded_library_dir(1)) if expert.label != "dispatch"]
    for expert in even:
        for path, z in expert.z.items():
            assert torch.allclose(z, sum(each.z[path] for each in shipped) / 3)


def test_table8_trains_and_searches_on_the_same_draws(searched: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[ia3.Run] = []

    def train_all(runs: Sequence[ia3.Run], pool: Pool, log: Path) -> list[list[float]]:
        trained.extend(runs)
        for run in runs:
            for folder, steps in zip(run.folders, run.steps, strict=False):
                run.begin(Path(folder), steps)
                (Path(folder) / "adapter_config.json").touch()
        return [
            [0.5 + (run.rate == 5e-3) * 0.1 * (step == 40) + (run.rate == 5e-5) * 0.1 * (step == 10) for step in run.steps] for run in runs
        ]

    monkeypatch.setattr(ia3, "train_all", train_all)
    monkeypatch.setattr(shots, "Sizes", lambda: shots._QUICK)
    result = item("table8").run(searched)
    choice = [run for run in trained if not run.folders]
    assert {run.task for run in choice} == {"embedded_reasoning_seen"} and {run.split for run in choice} == {"train"}
    final = [run for run in trained if run.folders]
    wanted = {(n, draw, *each) for n in (3, 10) for draw in (0, 1) for each in ((5e-5, (10, 40)), (5e-3, (40,)))}  # 10 steps choose 5e-5
    assert {(run.shots, run.draw, run.rate, run.steps) for run in final} == wanted
    rows = {(row["way"], row["shots"]): row for row in result.rows}
    assert set(rows) == {("base", 0)} | {(way, n) for way in (*_IA3, "few-shot") for n in (3, 10)}
    for n in (3, 10):
        told = config(searched, f"shots-{n}")
        assert told["model_args"] == {"fewshot": {"shots": n}} and told["seeds"] == [0, 1] and told["experts"].endswith("library/seed-0")
        check(rows["few-shot", n], scores(searched, f"shots-{n}", "fewshot", REASONING))
        own = scores(searched, f"shots-{n}-ia3-40-steps-rate-0.005", "ia3", REASONING, seeds=(0, 1))
        check(rows["IA3, 40 steps, rate chosen on validation", n], own)
        folder = config(searched, f"shots-{n}-ia3-40-steps-rate-0.005")["baselines"]
        assert (Path(folder.replace("{seed}", "0").replace("{label}", "reasoning")) / "adapter_config.json").exists()
        assert config(searched, f"shots-{n}-ia3-10-steps-rate-5e-05")["seeds"] == [0, 1]
    assert "3 examples" in item("table8").ours(result)["few-shot"]
    for claim in result.claims:
        first, second, n = re.fullmatch(r"(.+) scores higher than (.+) with (\d+) examples", claim.text).groups()  # type: ignore[union-attr]
        sides = [rows[name, int(n)] if name != "the base" else rows["base", 0] for name in (first, second)]
        assert claim.difference == pytest.approx(sides[0]["score"] - sides[1]["score"]) and "draws" in str(claim.test)
    assert len(result.claims) == 8
    before = len(trained)
    item("table8").run(searched)
    assert len(trained) == before  # nothing is trained twice
    kept = json.loads((searched.output / "pieces" / "table8-rates.json").read_text())["key"]
    assert (kept["model"], kept["task"], kept["shots"], kept["draw"], kept["steps"]) == ("embedded", choice[0].task, 5, [0], [10, 40])
    assert kept["rate"] == [5e-5, 5e-3] and kept["validation"] == ia3.VALIDATION
    monkeypatch.setattr(shots, "Sizes", lambda: replace(shots._QUICK, choice_shots=6))
    with pytest.raises(UsageError, match="table8-rates.json was made with shots = 5, and this run has 6"):
        item("table8").run(searched)
    monkeypatch.setattr(shots, "Sizes", lambda: shots._QUICK)
    searched.preset = replace(searched.preset, unseen={**searched.preset.unseen, "reasoning": "embedded_math_unseen"})
    with pytest.raises(
        UsageError, match='reasoning was made with task = "embedded_reasoning_unseen", and this run has "embedded_math_unseen"'
    ):
        item("table8").run(searched)


def test_ia3_has_the_sizes_of_the_presets_recipe(tmp_path: Path) -> None:
    for name, *sizes in (("paper", "all", 8, 256), ("paper-llama3-70b", "half", 2, 16)):
        lab = Lab(tmp_path / name, preset(name), say=lambda _: None)
        run = shots._runs_of(lab)(task="t2_arc_easy", split="train", shots=3, draw=1, rate=5e-5, steps=(10,))
        recipe = lab.training("settings", "reasoning", 1, method="ia3", objective="supervised").config
        assert (run.layers, run.micro_batch, run.eval_batch_size) == (recipe.layers, recipe.micro_batch, recipe.eval_batch_size)
        assert [run.layers, run.micro_batch, run.eval_batch_size] == sizes
        assert run.chat and run.dtype == "bfloat16"


def test_ia3_is_finished_where_its_adapters_say_these_settings(tmp_path: Path) -> None:
    folders = tuple(str(tmp_path / name) for name in ("one", "three"))
    run = ia3.Run("embedded", REASONING, "adaptation", 3, 5, 1e-3, (1, 3), folders, device="cpu")
    for folder, steps in zip(folders, run.steps, strict=True):
        assert not run.finished
        run.begin(Path(folder), steps)
        assert not run.finished
        (Path(folder) / "adapter_config.json").touch()
    assert run.finished and replace(run, device="cuda", eval_batch_size=1).finished
    with pytest.raises(
        UsageError, match=r"one was made with rate = 0.001, and this run has 0.01. Choose another --output, or delete .*one"
    ):
        assert replace(run, rate=0.01).finished
    with pytest.raises(UsageError, match="three was made with steps = 3, and this run has 4"):
        assert replace(run, steps=(1, 4)).finished
    (tmp_path / "three" / "settings.json").unlink()
    assert not run.finished, "it does not say what it is"
    run.begin(tmp_path / "three", 3)
    assert not run.finished, "an old adapter beside new settings"


def test_ia3_keeps_no_base_once_all_runs_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(ia3._base.cache_info().currsize))
    monkeypatch.setattr(ia3, "VALIDATION", 4)
    run = ia3.Run("embedded", "embedded_reasoning_seen", "train", 2, 0, 5e-5, (1,), device="cpu")
    assert len(ia3.train_all([run, run], Pool(2), tmp_path / "log")) == 2
    assert emptied == [0]
    with pytest.raises(T2Error):
        ia3.train_all([replace(run, task="no_such_task")], Pool(1), tmp_path / "log")
    assert emptied == [0, 0]


def test_ia3_side_by_side_is_as_one_after_the_other(tmp_path: Path) -> None:
    def runs(place: str) -> list[ia3.Run]:
        shared = {"rate": 5e-3, "steps": (2,), "device": "cpu"}
        folder = tmp_path / place
        return [ia3.Run("embedded", REASONING, "adaptation", 2, draw, folders=(str(folder / str(draw)),), **shared) for draw in (0, 1)]

    assert ia3.train_all(runs("alone"), Pool(1), tmp_path / "log") == [[], []]
    with Pool(2) as pool:
        assert ia3.train_all(runs("beside"), pool, tmp_path / "log") == [[], []]
        assert len(pool.pids) == 2, "the lab's processes do it"
        with pytest.raises(T2Error, match="no_such_task"):
            ia3.train_all([replace(run, task="no_such_task", folders=()) for run in runs("x")], pool, tmp_path / "log")
    for draw in ("0", "1"):
        alone, beside = ((tmp_path / place / draw / "adapter_model.safetensors").read_bytes() for place in ("alone", "beside"))
        assert alone == beside


def test_ia3_trains_and_validates_in_passes_of_the_runs_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    from t2eval.training import scores as validation
    from t2eval.training import supervised

    seen: list[Any] = []
    plain, validate = supervised.pad, validation.validate
    monkeypatch.setattr(supervised, "pad", lambda rows, *args, **kwargs: (seen.append(len(rows)), plain(rows, *args, **kwargs))[1])
    monkeypatch.setattr(validation, "validate", lambda *args: (seen.append(args[4].eval_batch_size), validate(*args))[1])
    monkeypatch.setattr(ia3, "VALIDATION", 4)
    run = ia3.Run("embedded", "embedded_reasoning_seen", "train", 3, 0, 5e-5, (1,), device="cpu", micro_batch=2, eval_batch_size=3)
    ia3.train(run)
    assert seen == [2, 1, 3]
    ia3.train(replace(run, layers="0", folders=(str(tmp_path),)))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved and all(".layers.0." in name for name in saved)


_IA3 = ("IA3, 10 steps, the paper rate", "IA3, 40 steps, the paper rate", "IA3, 40 steps, rate chosen on validation")


def test_ia3_learns_from_the_very_examples(tmp_path: Path) -> None:
    """The first AdamW step moves each value by the rate against the sign of the gradient, here of transformers' own loss."""
    from peft import IA3Config, get_peft_model
    from safetensors.torch import load_file

    from t2eval.basemodel.load import load_base
    from t2eval.environment.environment import Environment

    folders = tuple(str(tmp_path / name) for name in ("one", "three"))
    run = ia3.Run("embedded", REASONING, "adaptation", 3, 5, 1e-3, (1, 3), folders, device="cpu")
    assert not run.finished and ia3.train(run) == [] and run.finished
    assert json.loads((tmp_path / "three" / "settings.json").read_text())["steps"] == 3
    model, tokenizer = load_base()
    targets = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    peft = get_peft_model(model, IA3Config(task_type="CAUSAL_LM", **targets))
    examples = Environment(REASONING).examples("adaptation", limit=3, seed=5)
    total, loss = 0, torch.zeros(())
    for example in examples:
        prompt = tokenizer(example.prompt)["input_ids"]
        answer = tokenizer(" " + example.doc["answer"] + "\n\n")["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = loss + peft(input_ids=torch.tensor([prompt + answer]), labels=labels).loss * len(answer)
        total += len(answer)
    (loss / total).backward()
    saved = load_file(tmp_path / "one" / "adapter_model.safetensors")
    later = load_file(tmp_path / "three" / "adapter_model.safetensors")
    compared = 0
    for name, parameter in peft.named_parameters():
        if not parameter.requires_grad:
            continue
        found = saved[name.replace(".default", "")].flatten()
        gradient = parameter.grad.flatten()  # type: ignore[union-attr]
        clear = gradient.abs() > 1e-4
        assert torch.allclose(found[clear], 1 - 1e-3 * gradient[clear].sign(), atol=2e-5)
        assert not torch.equal(found, later[name.replace(".default", "")].flatten())
        compared += int(clear.sum())
    assert compared > 500


def test_ia3_is_scored_on_validation_where_nothing_is_saved() -> None:
    run = ia3.Run("embedded", "embedded_reasoning_seen", "train", 2, 0, 5e-5, (1, 2), device="cpu")
    ia3.VALIDATION, kept = 8, ia3.VALIDATION
    try:
        found = ia3.train(run)
    finally:
        ia3.VALIDATION = kept
    assert len(found) == 2 and all(score * 8 == round(score * 8) for score in found)
