"""The preset of the real model: few skills and seeds, what it does not carry by name, and how often the base is right."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t2eval.bench.plan import load_plan
from t2eval.bench.training import run_config
from t2eval.errors import UsageError
from t2eval.expert import library
from t2eval.paper import derived, report
from t2eval.paper.item import item
from t2eval.paper.items import ablation, budgets, limits
from t2eval.paper.lab import Lab
from t2eval.paper.presets import preset
from tests.paper.conftest import STEPS

SEEDS = load_plan("smollm2-strategies").config.seeds
"""The training seeds of the library that strategies choose among or mix."""


class FakeExpert:
    """One folder of a library of fakes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.label = folder, folder.name


@pytest.fixture
def real(tmp_path: Path, fakes: None, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The preset `smollm2`, on fakes."""

    def written(folder: Path, experts: Any) -> None:
        for expert in experts():
            (folder / expert.label).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(derived, "write_library", written)
    monkeypatch.setattr(library, "load_library", lambda folder: [FakeExpert(path) for path in sorted(Path(folder).iterdir())])
    return Lab(tmp_path / "out", preset("smollm2"), say=lambda _: None)


def test_one_skill_gives_its_tables(real: Lab) -> None:
    table1 = item("table1").run(real)
    seeds = {row["label"]: row["seeds"] for row in table1.rows}
    assert seeds == {"base": [0], "SVF": [0, 1, 2], "LoRA": [0, 1, 2]}  # one rate: there is no other LoRA that the test items could choose
    assert {row["task"] for row in table1.rows} == {"arc_easy"}
    table2 = item("table2").run(real)
    alone = "few-shot, the task's own expert alone"
    assert {row["label"]: row["seeds"] for row in table2.rows} == {
        "base": [0],
        **dict.fromkeys(("SVF", "LoRA", alone), [0, 1, 2]),
        **dict.fromkeys(("prompt", "cls", "few-shot"), list(SEEDS)),
    }
    assert {row["task"] for row in table2.rows} == {"arc_challenge"}
    base, lora, own = "the base", "LoRA chosen by validation", "few-shot over the task's own expert alone"
    pairs = [
        *((name, base) for name in ("SVF", "prompt", "cls", "few-shot", own)),
        ("SVF", lora),
        ("prompt", "cls"),
        ("few-shot", "cls"),
    ]  # as the paper has them
    assert [claim.text for claim in table2.claims if claim.p is not None] == [
        f"{first} scores higher than {second} on arc_challenge" for first, second in (*pairs, ("few-shot", own), ("few-shot", lora))
    ]
    assert "'few-shot' is t2eval's default, with α divided by its sum." in table2.notes[-3]
    assert re.search(r"the experts reasoning, math, code, dispatch of training seeds? [0-9, ]+\. math, code, d", table2.notes[-2])
    assert re.search(r"before and after: math, seed 0 0.500 and 0.\d+ \(n=64\); code, seed 0", table2.notes[-2])
    assert table2.notes[-1] == f"{alone!r} searches a free α of one expert, iterations 1."
    table7 = item("table7").run(real)
    seeds = {"base": [0], **dict.fromkeys(("expert", "ia3", "dora"), [0, 1, 2]), **dict.fromkeys(("prompt", "cls", "fewshot"), list(SEEDS))}
    assert {row["method"]: row["seeds"] for row in table7.rows} == seeds
    assert [claim.text for claim in table7.claims] == [f"SVF scores higher than {other} on arc_easy" for other in ("IA3", "DoRA")]
    assert {row["task"] for row in table7.rows if row["method"] in ("ia3", "dora")} == {"arc_easy"}
    assert "reasoning trainings here, not swept" in item("table6").ours(item("table6").run(real))


def test_the_generated_form_has_a_curve_beside_the_choices(real: Lab) -> None:
    report.run_item(item("figure4"), real)
    rows = [json.loads(line) for line in (real.output / "figure4" / "rows.jsonl").read_text().splitlines()]
    heads = {"arc_easy": ("arc_easy", [0, 1, 2]), "arc_easy, generated": ("t2_arc_easy", [0])}
    for head, (task, seeds) in heads.items():
        own = [row for row in rows if row["head"] == head]
        assert {row["task"] for row in own} == {task} and sorted({row["seed"] for row in own if row["kind"] == "validation"}) == seeds
    assert [(row["head"], row["method"]) for row in rows if row["kind"] == "test"] == [
        (head, method) for head in heads for method in ("base", "expert")
    ]
    settings = {study: json.loads((real.output / "cells" / study / "config.json").read_text()) for study in ("main", "generated")}
    assert {study: each["apply_chat_template"] for study, each in settings.items()} == {"main": False, "generated": True}
    assert {study: each["limit"] for study, each in settings.items()} == {"main": 200, "generated": 64}
    assert settings["generated"]["experts"].endswith("training/generated/seed-{seed}")
    result = item("figure4").run(real)
    assert [claim.text for claim in result.claims] == [f"SVF's chosen checkpoint scores higher than the base on {head}" for head in heads]
    assert result.notes[1:] == (
        "arc_easy, generated, seed 0: of the answers that a step sampled 25.0% right, 50.0% cut off, 40 tokens long in step 1; "
        f"25.0% right, 50.0% cut off, 12 tokens long in step {STEPS[-1]}.",
    )
    assert (real.output / "figure4" / "figure.png").is_file()
    config = real.training_by(load_plan("smollm2-generated").config, "generated", "reasoning", 0).config
    assert config.apply_chat_template and config.objective == "reinforce" and config.max_new_tokens == 128
    own = real.training("svf", "reasoning", 0).config
    assert (config.kl, config.baseline) == (own.kl, own.baseline) and not own.apply_chat_template


def test_strategies_have_a_library_of_several_experts(real: Lab) -> None:
    real.strategies(["prompt"], ["arc_challenge"])
    made = {str(path.parent.relative_to(real.output / "training")) for path in real.output.glob("training/*/*/*/training.json")}
    more = ("math", "code", "dispatch")
    assert made == {
        *(f"svf/seed-{seed}/reasoning" for seed in SEEDS),
        *(f"strategies/seed-{seed}/{label}" for seed in SEEDS for label in more),
    }
    for seed in SEEDS:
        assert {path.name for path in (real.output / "derived" / "strategies" / f"seed-{seed}").iterdir()} == {"reasoning", *more}
    settings = json.loads((real.output / "cells" / "strategies" / "config.json").read_text())
    assert tuple(settings["seeds"]) == SEEDS and settings["experts"].endswith("derived/strategies/seed-{seed}")
    assert not settings["model_args"], "the one expert's search has few iterations, this has t2eval's default"
    assert [training.config.objective for training in real.mixed_trainings()] == ["supervised"] * len(SEEDS) * len(more)


def test_the_reasoning_expert_is_the_same_in_both_benchmark_files() -> None:
    one, several = (load_plan(name).config.train for name in ("smollm2", "smollm2-strategies"))
    assert one is not None and several is not None
    decided = {"output": Path("out"), "model": "smollm2"}
    assert run_config(one, "svf", "reasoning", 0, decided) == run_config(several, "svf", "reasoning", 0, decided)


def test_the_items_of_strategies_run(real: Lab) -> None:
    table3 = item("table3").run(real)
    assert {row["runs"] for row in table3.rows} == {1}
    for budget in budgets._budgets(real):
        assert [row.seed for row in budgets._cells(real, budget, ["arc_challenge"]).rows] == [0]
    assert {row["dispatch"] for row in table3.rows} == {"score", "generate"} and "ends after 64 tokens" in table3.notes[1]
    settings = json.loads((real.output / "cells" / "dispatch-generate" / "config.json").read_text())
    assert settings["model_args"] == {"prompt": {"dispatch": "generate", "dispatch_tokens": 64}}
    decided = [(row["method"], row["decisions"]) for row in item("figure6").run(real).rows]
    assert decided == [(method, len(SEEDS) * 200) for method in ("prompt", "cls")]


def test_the_ablation_is_of_the_one_skill_with_a_recipe_an_objective(real: Lab) -> None:
    table4 = item("table4").run(real)
    assert {row["task"] for row in table4.rows} == {"arc_easy", "arc_challenge"}
    assert {row["label"]: row["seeds"] for row in table4.rows} == {row["label"]: [0] for row in table4.rows} and len(table4.rows) == 16
    assert all(claim.reported is None for claim in table4.claims), "the paper has them of math alone"
    runs = {number: ablation._trainings(real, variant)[0].config for number, variant in enumerate(ablation.VARIANTS, start=1)}
    sampled, written = (512, 16, "leave_one_out", 4), (32, 1, "batch_mean", 12)
    recipes = {number: (run.batch_size, run.rollouts, run.baseline, run.validate_every) for number, run in runs.items()}
    assert {number: (run.method, run.objective, recipes[number]) for number, run in runs.items()} == {
        **dict.fromkeys((1, 2, 3), ("svf", "reinforce", sampled)),
        4: ("svf", "supervised", written),
        5: ("lora", "reinforce", sampled),
        **dict.fromkeys((6, 7), ("lora", "supervised", written)),
    }
    assert [run.lr for number, run in runs.items() if number != 5] == [2e-2] * 4 + [2e-3] * 2
    figure9 = item("figure9").run(real)
    assert {(row["rate"], row["seed"]) for row in figure9.rows} == {(2e-3, 0), (2e-2, 0)}


def test_what_is_not_carried_is_named_in_the_report(real: Lab) -> None:
    done = report.run_all(real, [item("table5"), item("table8")])
    assert not any(entry.error for entry in done)
    text = (real.output / "REPORT.md").read_text()
    assert "Left out: table5: table5 is not carried by the preset 'smollm2': there is no second base model." in text
    assert "Left out: table8: table8 is not carried by the preset 'smollm2': its forty searches" in text


class FakeSampler:
    """Every fourth sample is right, and the task has 150 training examples."""

    made: list[str] = []

    def __init__(self, lab: Lab, task: str) -> None:
        self.made.append(task)

    def count(self, start: int, end: int) -> dict[str, int]:
        places = range(start, min(end, 150))
        return {"samples": len(places), "right": sum(place % 4 == 0 for place in places), "cut": 1}


def test_right_samples_are_counted_once(real: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "Sampler", FakeSampler)
    monkeypatch.setattr(FakeSampler, "made", [])
    real.preset = replace(real.preset, rewarded={"math": "t2_gsm8k"}, samples={})
    first = item("limits").run(real)
    assert first.rows == ({"skill": "math", "task": "t2_gsm8k", "samples": 150, "right": 38, "cut": 3},)
    assert first.claims[0].holds and first.claims[0].seen == "38 of 150 samples"
    assert item("limits").run(real) == first and FakeSampler.made == ["t2_gsm8k"]


def test_who_counts_more_samples_goes_on(real: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "Sampler", FakeSampler)
    monkeypatch.setattr(FakeSampler, "made", [])
    for samples, made in ((64, 1), (64, 1), (128, 2), (100, 3)):  # 100 ends within a part
        real.preset = replace(real.preset, rewarded={"math": "t2_gsm8k"}, samples={"math": samples})
        if samples == 100:
            with pytest.raises(UsageError, match="t2_gsm8k-64"):
                item("limits").run(real)
            continue
        assert item("limits").run(real).rows[0]["samples"] == samples
        assert len(FakeSampler.made) == made


def test_a_part_of_the_samples_is_graded_as_the_task_grades(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    sampler = object.__new__(limits.Sampler)
    sampler.examples = [SimpleNamespace(prompt=str(place)) for place in range(40)]  # type: ignore[misc]
    sampler.settings = "settings"  # type: ignore[assignment]
    written = [SimpleNamespace(text="right" if place % 2 else "wrong", stopped="length") for place in range(8)]
    sampler.engine = SimpleNamespace(  # type: ignore[assignment]
        encode=lambda prompt: [int(prompt)], complete=lambda prompts, settings, **named: asked.append((prompts, settings, named)) or written
    )
    sampler.environment = SimpleNamespace(score_many=lambda pairs: [float(answer == "right") for _, answer in pairs])  # type: ignore[assignment]
    assert sampler.count(32, 96) == {"samples": 8, "right": 4, "cut": 8}
    assert asked == [([[place] for place in range(32, 40)], "settings", {"seed": 0, "first": 32})]
