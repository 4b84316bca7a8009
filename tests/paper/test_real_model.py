"""The preset of the real model: one skill, fewer seeds for baselines, what it does not carry by name, and how often the base is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t2eval.errors import UsageError
from t2eval.paper import report
from t2eval.paper.item import item
from t2eval.paper.items import limits
from t2eval.paper.lab import Lab
from t2eval.paper.presets import preset


@pytest.fixture
def real(tmp_path: Path, fakes: None) -> Lab:
    """The preset `smollm2`, on fakes."""
    return Lab(tmp_path / "out", preset("smollm2"), say=lambda _: None)


def test_one_skill_gives_its_tables(real: Lab) -> None:
    table1 = item("table1").run(real)
    seeds = {row["label"]: row["seeds"] for row in table1.rows}
    assert seeds == {"base": [0], "SVF": [0, 1, 2], "LoRA": [0, 1, 2]}  # one rate: there is no other LoRA that the test items could choose
    assert {row["task"] for row in table1.rows} == {"arc_easy"}
    table2 = item("table2").run(real)
    assert {row["label"] for row in table2.rows} == {"base", "SVF", "few-shot", "LoRA"} and {row["task"] for row in table2.rows} == {
        "arc_challenge"
    }
    assert [claim.text for claim in table2.claims if claim.p is not None] == [
        "SVF scores higher than the base on arc_challenge",
        "few-shot scores higher than the base on arc_challenge",
        "SVF scores higher than LoRA chosen by validation on arc_challenge",
        "few-shot scores higher than LoRA chosen by validation on arc_challenge",
    ]
    assert "'few-shot' is t2eval's default, iterations 1, with a free α of its one expert. One skill was trained" in table2.notes[-1]
    table7 = item("table7").run(real)
    trained = ("expert", "fewshot", "ia3", "dora")
    assert {row["method"]: row["seeds"] for row in table7.rows} == {"base": [0], **dict.fromkeys(trained, [0, 1, 2])}
    assert [claim.text for claim in table7.claims] == [f"SVF scores higher than {other} on arc_easy" for other in ("IA3", "DoRA")]
    assert {row["task"] for row in table7.rows if row["method"] in ("ia3", "dora")} == {"arc_easy"}
    assert "reasoning trainings here, not swept" in item("table6").ours(item("table6").run(real))
    report.run_item(item("figure4"), real)  # one panel
    assert (real.output / "figure4" / "figure.png").is_file()


def test_what_is_not_carried_is_named_in_the_report(real: Lab) -> None:
    done = report.run_all(real, [item("table4"), item("figure6")])
    assert not any(entry.error for entry in done)
    text = (real.output / "REPORT.md").read_text()
    assert "Left out: table4: table4 is not carried by the preset 'smollm2': its seven variants" in text
    assert "Left out: figure6: figure6 is not carried by the preset 'smollm2': with one skill there is nothing to dispatch to." in text


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
    real.preset = replace(real.preset, rewarded={"math": "t2_gsm8k"}, samples=2000)
    first = item("limits").run(real)
    assert first.rows == ({"skill": "math", "task": "t2_gsm8k", "samples": 150, "right": 38, "cut": 3},)
    assert first.claims[0].holds and first.claims[0].seen == "38 of 150 samples"
    assert item("limits").run(real) == first and FakeSampler.made == ["t2_gsm8k"]


def test_who_counts_more_samples_goes_on(real: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "Sampler", FakeSampler)
    monkeypatch.setattr(FakeSampler, "made", [])
    for samples, made in ((64, 1), (64, 1), (128, 2), (100, 3)):  # 100 ends within a part
        real.preset = replace(real.preset, rewarded={"math": "t2_gsm8k"}, samples=samples)
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
