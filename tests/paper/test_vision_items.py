"""Figure 5 on cells from a formula: its numbers against the files', read another way, what is run, and what the paper's preset trains."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from t2eval.basemodel.folders import embedded_library_dir
from t2eval.expert.library import load_library
from t2eval.paper import lab as lab_module
from t2eval.paper.item import Unavailable, item
from t2eval.paper.items.vision import BOTH
from t2eval.paper.lab import Lab
from t2eval.paper.presets import preset
from t2eval.paper.report import run_item
from t2eval.stats.corrections import holm
from t2eval.stats.paired import paired

SEEN, UNSEEN = "embedded_vqa_seen", "embedded_vqa_unseen"
STRATEGIES = (("prompt", "prompt"), ("cls", "cls"), ("fewshot", "few-shot"))


def stand_in(folder: Path, seed: int) -> None:
    """A vision expert: another one under its name."""
    expert = next(expert for expert in load_library(embedded_library_dir(seed)) if expert.label == "math")
    card = expert.card.model_copy(update={"name": "vision", "label": "vision"})
    replace(expert, card=card).save(folder)


@pytest.fixture
def seeing(lab: Lab, tmp_path: Path) -> Lab:
    """The lab with vision experts that stand in for the shipped ones."""
    for seed in (0, 1):
        stand_in(tmp_path / "vlm-library" / f"seed-{seed}" / "vision", seed)
    assert lab.preset.vision is not None
    vision = replace(lab.preset.vision, experts=str(tmp_path / "vlm-library" / "seed-{seed}"))
    lab.preset = replace(lab.preset, vision=vision)
    return lab


def scores(lab: Lab, study: str, method: str, task: str) -> dict[int, float]:
    """Example → score, averaged over seeds, read from the files themselves."""
    read = []
    for seed in (0,) if method == "base" else (0, 1):
        path = lab.output / "cells" / study / "samples" / f"embedded-vlm__{method}__{task}__seed{seed}.jsonl.gz"
        with gzip.open(path, "rt") as file:
            read.append([json.loads(line)["score"] for line in file])
    return dict(enumerate(np.mean(read, axis=0)))


def config(lab: Lab, study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.output / "cells" / study / "config.json").read_text())
    return found


def test_figure5(seeing: Lab) -> None:
    done = run_item(item("figure5"), seeing)
    rows = {(row["label"], row["task"]): row for row in done.result.rows}
    seen = {"base": "base", "SVF": "expert", "LoRA": "lora", "IA3": "ia3", "DoRA": "dora"}
    expected = {(label, SEEN): scores(seeing, "vision", method, SEEN) for label, method in seen.items()}
    expected |= {(label, UNSEEN): scores(seeing, "vision", seen[label], UNSEEN) for label in ("base", "LoRA")}
    expected |= {(label, UNSEEN): scores(seeing, "vision-language", method, UNSEEN) for method, label in STRATEGIES}
    expected[BOTH, UNSEEN] = scores(seeing, "vision-both", "fewshot", UNSEEN)
    assert set(rows) == set(expected)
    for key, found in expected.items():
        values = np.array(list(found.values()))
        assert rows[key]["score"] == pytest.approx(values.mean()) and rows[key]["stderr"] == pytest.approx(stats.sem(values))
    pairs = [
        ("SVF", "base", SEEN),
        ("SVF", "LoRA", SEEN),
        *((label, "base", UNSEEN) for _, label in STRATEGIES),
        ("few-shot", "LoRA", UNSEEN),
    ]
    tests = [paired(expected[first, task], expected[second, task]) for first, second, task in pairs]
    for claim, test, p in zip(done.result.claims, tests, holm([test.p for test in tests if test]), strict=True):
        assert test is not None and claim.difference == pytest.approx(test.difference)
        assert claim.adjusted == pytest.approx(p)
    assert done.result.claims[0].text == "SVF scores higher than the base on vqa_seen"
    assert done.result.claims[4].text == "few-shot over language experts scores higher than the base on vqa_unseen"
    columns = item("figure5").ours(done.result)
    gain = rows["SVF", SEEN]["score"] / rows["base", SEEN]["score"] - 1
    assert columns["vqa_seen, change from the base"]["SVF"] == f"{gain:+.0%}"
    assert columns["vqa_seen (n=40)"]["base"].startswith(f"{rows['base', SEEN]['score']:.3f} ± ")
    assert "more than 39%" in done.markdown and "embedded-vlm" in done.markdown
    assert (seeing.output / "figure5" / "figure.png").stat().st_size > 10_000


def test_the_strategies_have_language_experts_alone_and_the_control_both(seeing: Lab) -> None:
    item("figure5").run(seeing)
    assert {config(seeing, study)["model"] for study in ("vision", "vision-language", "vision-both")} == {"embedded-vlm"}
    assert config(seeing, "vision-language")["experts"] == seeing.library((0, 1))
    assert config(seeing, "vision")["experts"].endswith("vlm-library/seed-{seed}")
    assert config(seeing, "vision")["baselines"].endswith("vlm-baselines/seed-{seed}/{method}-{label}")
    assert config(seeing, "vision")["labels"] == {SEEN: "vision", UNSEEN: "vision"}
    both = load_library(config(seeing, "vision-both")["experts"].replace("{seed}", "1"))
    assert sorted(expert.label for expert in both) == ["code", "math", "reasoning", "vision"]


def test_the_papers_preset_trains_on_textvqa_and_passes_the_basis_check_by_name(
    tmp_path: Path, fakes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []

    def train(trainings: Any, workers: int, say: Any, log: Any) -> None:
        for training in trainings:
            trained.append(training.config)
            if training.config.label == "vision":
                stand_in(training.output, 0)
                (training.output / "training.json").touch()
            else:
                shutil.copytree(embedded_library_dir(0) / training.config.label, training.output)

    monkeypatch.setattr(lab_module, "train", train)
    lab = Lab(tmp_path / "out", replace(preset("paper"), limit=40), say=lambda _: None)
    result = item("figure5").run(lab)
    vision = [settings for settings in trained if settings.label == "vision"]
    assert [(each.method, each.objective) for each in vision] == [
        ("svf", "reinforce"), *((method, "supervised") for method in ("lora", "ia3", "dora"))
    ]  # fmt: skip
    for settings in vision:
        assert (settings.model, settings.task) == ("llava-hf/llama3-llava-next-8b-hf", "t2_textvqa")
        assert (settings.layers, settings.wrong_reward, settings.preset) == ("half", -0.1, "paper")
    language = [settings for settings in trained if settings.label != "vision"]
    assert {settings.label for settings in language} == {"math", "code", "reasoning", "dispatch"}
    assert {settings.model for settings in language} == {"meta-llama/Meta-Llama-3-8B-Instruct"}
    for study, methods in (("vision-language", ("prompt", "cls", "fewshot")), ("vision-both", ("fewshot",))):
        arguments = config(lab, study)["model_args"]
        assert all(arguments[method]["allow_basis_mismatch"] for method in methods)
        assert arguments["fewshot"]["preset"] == "paper"
    assert {row["task"] for row in result.rows} == {"t2_textvqa", "t2_okvqa"}
    before = len(trained)
    item("figure5").run(lab)
    assert len(trained) == before  # nothing is trained twice


def test_a_preset_without_a_vision_language_model_says_so(lab: Lab) -> None:
    lab.preset = replace(lab.preset, vision=None)
    with pytest.raises(Unavailable, match="The preset 'embedded' has no vision-language model"):
        item("figure5").run(lab)
    assert preset("paper-mistral-7b").vision is None
