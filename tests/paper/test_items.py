"""Each item on cells and trainings from a formula: its numbers against the same numbers computed from the files, another way."""

import gzip
import json
import re

import numpy as np
import pytest
from scipy import stats

from t2eval.paper.claims import judge
from t2eval.paper.item import item
from t2eval.paper.items import ablation, confusion
from t2eval.paper.report import run_item
from tests.paper.conftest import EXAMPLES, STEPS, fake_validations

SKILLS = ("math", "code", "reasoning")


def seed_scores(lab, study, method, task, seed):
    """Scores by example, read from the file itself."""
    path = lab.output / "cells" / study / "samples" / f"embedded__{method}__{task}__seed{seed}.jsonl.gz"
    with gzip.open(path, "rt") as file:
        return np.array([json.loads(line)["score"] for line in file])


def averaged(lab, study, method, task):
    return np.mean([seed_scores(lab, study, method, task, seed) for seed in ((0,) if method == "base" else (0, 1))], axis=0)


def found(result, label, task):
    (row,) = [row for row in result.rows if (row["label"], row["task"]) == (label, task)]
    return row


def check(row, scores):
    assert row["score"] == pytest.approx(scores.mean())
    assert row["stderr"] == pytest.approx(stats.sem(scores))
    assert row["n"] == len(scores) == EXAMPLES


def check_claims(result, texts):
    """Each of the claims on test examples has the difference of the rows that its sentence names, in the order of the paper's figures.

    texts: a name in a claim → the row's label.
    """
    checked = 0
    for claim in result.claims:
        said = re.fullmatch(r"(.+) scores higher than (.+) on (\w+)", claim.text)
        if said is None:
            continue
        first, second = (found(result, texts.get(said[side], said[side]), f"embedded_{said[3]}") for side in (1, 2))
        assert claim.difference == pytest.approx(first["score"] - second["score"]), claim.text
        assert claim.reported is None or claim.reported[0] >= claim.reported[1], claim.text
        checked += 1
    return checked


def lora_studies(lab, task, cross):
    """Study → mean test score, of the LoRA adapters that may answer a task."""
    skill = next(skill for skill in SKILLS if skill in task)
    sources = SKILLS if cross else (skill,)
    studies = [f"lora-5e-04-{source}" for source in sources] + ["main" if source == skill else f"lora-2e-03-{source}" for source in sources]
    return {study: averaged(lab, study, "lora", task).mean() for study in studies}


def validations(lab, rate, skill):
    return np.mean([max(fake_validations(lab.training(f"lora-{rate:.0e}", skill, seed))) for seed in (0, 1)])


@pytest.fixture
def shipped(monkeypatch):
    """The shipped adapters' validation scores, from a formula too: they are files of the package."""
    from t2eval.paper import sweep

    read = sweep.Sweep.validation
    monkeypatch.setattr(
        sweep.Sweep, "validation", lambda self, rate, skill: 0.9 if rate == 2e-3 and skill == "math" else read(self, rate, skill)
    )


def test_table1(lab, shipped):
    result = item("table1").run(lab)
    sweep_scores = {skill: json.loads((lab_record(lab, skill)).read_text()) for skill in SKILLS}
    assert all(record["scores"]["after"]["validation"]["n"] == 64 for record in sweep_scores.values())
    for skill in SKILLS:
        task = f"embedded_{skill}_seen"
        check(found(result, "base", task), averaged(lab, "main", "base", task))
        check(found(result, "SVF", task), averaged(lab, "main", "expert", task))
        studies = lora_studies(lab, task, cross=False)
        best = max(studies, key=studies.get)
        check(found(result, "LoRA, best by test", task), averaged(lab, best, "lora", task))
        assert found(result, "LoRA, best by test", task)["score"] >= found(result, "LoRA", task)["score"]
    assert found(result, "LoRA", "embedded_math_seen")["learning_rate"] == 2e-3
    check(found(result, "LoRA", "embedded_math_seen"), averaged(lab, "main", "lora", "embedded_math_seen"))
    svf, base = (averaged(lab, "main", method, "embedded_math_seen") for method in ("expert", "base"))
    assert result.claims[0].text == "SVF scores higher than the base on math_seen"
    assert result.claims[0].difference == pytest.approx((svf - base).mean())
    assert result.claims[-1].holds is False  # 850 of 550 parameters
    assert check_claims(result, {"the base": "base"}) == 6
    assert [claim.text for claim in result.claims if "LoRA" in claim.text][:3] == [
        "SVF scores higher than LoRA on math_seen",
        "LoRA scores higher than SVF on code_seen",  # 67.68 and 66.67 in the paper
        "SVF scores higher than LoRA on reasoning_seen",
    ]
    assert judge([claim for claim in result.claims if claim.p is not None]) == tuple(c for c in result.claims if c.p is not None)


def lab_record(lab, skill):
    return lab.training("lora-5e-04", skill, 0).output / "training.json"


def test_lora_by_validation_takes_the_better_rate(lab, monkeypatch):
    from t2eval.paper import sweep

    monkeypatch.setattr(sweep.Sweep, "validation", lambda self, rate, skill: {5e-4: 0.7, 2e-3: 0.6}[rate])
    result = item("table1").run(lab)
    for skill in SKILLS:
        assert found(result, "LoRA", f"embedded_{skill}_seen")["learning_rate"] == 5e-4
    swept = sweep.Sweep(lab)
    monkeypatch.undo()
    assert swept.validation(5e-4, "code") == pytest.approx(validations(lab, 5e-4, "code"))
    shipped = [json.loads((swept.adapter(2e-3, "code", seed) / "training.json").read_text()) for seed in (0, 1)]
    assert swept.validation(2e-3, "code") == pytest.approx(np.mean([r["scores"]["after"]["validation"]["score"] for r in shipped]))


def test_table2(lab, shipped):
    result = item("table2").run(lab)
    for skill in SKILLS:
        task = f"embedded_{skill}_unseen"
        for method, label in (("base", "base"), ("prompt", "prompt"), ("cls", "cls"), ("fewshot", "few-shot")):
            check(found(result, label, task), averaged(lab, "main", method, task))
        studies = lora_studies(lab, task, cross=True)
        assert len(studies) == 6
        assert found(result, "LoRA, best by test", task)["score"] == pytest.approx(max(studies.values()))
    names = {"the base": "base", "LoRA chosen by validation": "LoRA", "the LoRA that is best by test": "LoRA, best by test"}
    assert check_claims(result, names) == 21
    assert {claim.text for claim in result.claims} >= {  # as the figures of Llama-3-8B are
        "prompt scores higher than cls on math_unseen",
        "cls scores higher than prompt on code_unseen",
        "prompt scores higher than cls on reasoning_unseen",
    }
    for task in lab.preset.unseen.values():
        check(found(result, "few-shot, the paper's search", task), averaged(lab, "budget-10-shots-100", "fewshot", task))
    columns = item("table2").ours(result)
    assert list(columns) == [f"{skill}_unseen (n={EXAMPLES})" for skill in SKILLS]
    assert columns["math_unseen (n=40)"]["base"].startswith(f"{averaged(lab, 'main', 'base', 'embedded_math_unseen').mean():.3f} ± ")


def test_table7(lab):
    result = item("table7").run(lab)
    for label, method in (("IA3", "ia3"), ("DoRA", "dora"), ("base", "base")):
        for task in lab.preset.tasks:
            check(found(result, label, task), averaged(lab, "main", method, task))
    claim = next(claim for claim in result.claims if claim.text == "few-shot scores higher than DoRA on code_unseen")
    ours, theirs = (averaged(lab, "main", method, "embedded_code_unseen") for method in ("fewshot", "dora"))
    assert claim.difference == pytest.approx((ours - theirs).mean())
    assert check_claims(result, {}) == 12


def test_table3(lab):
    result = item("table3").run(lab)
    assert len(result.rows) == 6
    for row in result.rows:
        study = "main" if row["dispatch"] == "score" else "dispatch-generate"
        lines = [json.loads(line) for line in (lab.output / "cells" / study / "rows.jsonl").read_text().splitlines()]
        passes = [line["t2"] for line in lines if line["task"] == row["task"] and line["method"] == "prompt"]
        first, second = (np.mean([each[name]["seconds"] for each in passes]) for name in ("first_pass", "second_pass"))
        assert (row["first_seconds"], row["second_seconds"], row["ratio"]) == pytest.approx((first, second, first / second))
        assert row["first_tokens"] == np.mean([each["first_pass"]["tokens"] for each in passes])
    config = json.loads((lab.output / "cells" / "dispatch-generate" / "config.json").read_text())
    assert config["model_args"] == {"prompt": {"dispatch": "generate"}}
    assert [claim.holds for claim in result.claims] == [row["ratio"] < 1 for row in result.rows]


def test_table4(lab):
    result = item("table4").run(lab)
    tasks = ("embedded_math_seen", "embedded_math_unseen")
    rates = {1: (None, 1.6e-2), 4: (None, 4e-2), 5: (5e-4, 2e-2), 7: (None, 8e-3)}
    best = {}
    for number, each in rates.items():
        variant = ablation.VARIANTS[number - 1]
        scores = {rate: np.mean([max(fake_validations(run)) for run in ablation._trainings(lab, variant, rate)]) for rate in each}
        best[number] = max(scores, key=scores.get)
    assert set(best.values()) - {None}, "some row's choice is not the recipe's"
    studies = {"0 base": ("main", "base")}
    for number, rate in best.items():
        study = f"ablation-{number}" + ("" if rate is None else f"-{rate:.0e}")
        studies[ablation.VARIANTS[number - 1].label] = (study, "expert" if number < 5 else "lora")
    for label, (study, method) in studies.items():
        for task in tasks:
            check(found(result, label, task), averaged(lab, study, method, task))
    rate = best[5]
    assert found(result, "5 LoRA, policy gradient, attention", tasks[0])["rate"] == rate
    settings = lab.training("ablation-4", "math", 0, **ablation.VARIANTS[3].settings).config
    assert (settings.method, settings.objective, settings.modules) == ("svf", "supervised", "q_proj,v_proj")
    assert len({row["label"] for row in result.rows}) == 8
    names = {"the base": "base", **{f"row {v.number} ({v.label[2:]})": v.label for v in ablation.VARIANTS}}
    assert check_claims(result, {name: "0 base" if label == "base" else label for name, label in names.items()}) == 13
    assert any(claim.text.startswith("the base scores higher than row 5 ") for claim in result.claims)
    assert set(item("table4").reported.columns["GSM8K"]) == {row["label"] for row in result.rows}


def test_table6(lab):
    result = item("table6").run(lab)
    assert all(claim.holds for claim in result.claims) and len(result.claims) == 11
    columns = item("table6").ours(result)
    assert columns["math trainings here, not swept"]["LoRA: learning rate"] == "0.002"
    assert columns["math trainings here, not swept"]["SVF: batch size"] == "64"
    reported = item("table6").reported.columns["value"]
    assert reported["SVF: KL coefficient λ"] == columns["preset=paper"]["SVF: KL coefficient λ"] == "0, 0.1, 0.2, 0.3"
    assert not lab.folder("settings", 0).exists()


def test_a_preset_that_strays_from_table6_is_seen(lab, monkeypatch):
    from t2eval.training.methods import METHODS

    monkeypatch.setitem(METHODS["svf"].paper, "lr", 1e-3)
    wrong = [claim.text for claim in item("table6").run(lab).claims if not claim.holds]
    assert wrong == ["preset=paper has Table 6's SVF: learning rate"]


def test_figure9(lab):
    result = item("figure9").run(lab)
    assert len(result.rows) == 2 * 2 * (1 + len(STEPS))
    columns = item("figure9").ours(result)
    told = [(rate, place) for rate in (5e-4, 2e-2) for place in (0, -1)]
    for (rate, place), claim in zip(told, result.claims, strict=True):
        curves = [fake_validations(run) for run in ablation._trainings(lab, ablation._POLICY_LORA, rate)]
        ends = [curve[place] for curve in curves]
        assert claim.difference == pytest.approx(0.5 - np.mean(ends))
        assert (f"after {STEPS[0]} steps" in claim.text) == (place == 0)
        assert columns["last step's mean (n=64)"][f"lr {rate:g}"] == f"{np.mean(curves, axis=0)[-1]:.3f}"
        assert columns["lowest step's mean (n=64)"][f"lr {rate:g}"] == f"{np.mean(curves, axis=0).min():.3f}"
        errors = [np.std([1.0] * round(64 * end) + [0.0] * round(64 * (1 - end)), ddof=1) / 8 for end in ends]
        welch = stats.ttest_ind_from_stats(0.5, 0.0625 * 8, 64, np.mean(ends), max(errors) * 8, 64, equal_var=False)
        assert claim.p == pytest.approx(welch.pvalue)


def test_figure4(lab):
    result = item("figure4").run(lab)
    for skill in SKILLS:
        task = f"embedded_{skill}_seen"
        curve = [row for row in result.rows if row["kind"] == "validation" and row["task"] == task]
        assert [row["score"] for row in curve if row["seed"] == 1] == [0.5, *fake_validations(lab.training("svf", skill, 1))]
        (after,) = [row for row in result.rows if row["kind"] == "test" and row["task"] == task and row["method"] == "expert"]
        check(after, averaged(lab, "svf", "expert", task))
    chosen = item("figure4").ours(result)["chosen steps"]["math_seen"].split(", ")
    bests = [fake_validations(lab.training("svf", "math", seed)) for seed in (0, 1)]
    assert chosen == [str(STEPS[int(np.argmax(scores))]) for scores in bests]


def test_figure6(lab):
    result = item("figure6").run(lab)
    labels = [*SKILLS, "others"]
    for row in result.rows:
        counts = np.zeros(4)
        for seed in (0, 1):
            path = lab.output / "cells" / "main" / "samples" / f"embedded__{row['method']}__{row['task']}__seed{seed}.jsonl.gz"
            with gzip.open(path, "rt") as file:
                np.add.at(counts, [labels.index(json.loads(line)["dispatch"]) for line in file], 1)
        assert [row[label] for label in labels] == pytest.approx(list(counts / counts.sum()))
        assert sum(row[label] for label in labels) == pytest.approx(1)
    claim = result.claims[0]
    cls, prompt = (next(row["math"] for row in result.rows if (row["method"], row["skill"]) == (m, "math")) for m in ("cls", "prompt"))
    assert claim.difference == pytest.approx(cls - prompt)
    holding = {claim.text: claim.holds for claim in result.claims if claim.holds is not None}
    assert len(holding) == 6


def test_confusion_counts_each_row_to_one():
    shares = confusion.confusion(["math", "math", "code", "math"], ["math", "others", "code", "code"])
    assert shares["math"] == pytest.approx({"math": 1 / 3, "code": 1 / 3, "reasoning": 0, "others": 1 / 3})
    assert shares["code"]["code"] == 1


@pytest.mark.parametrize("name", ["table1", "table3", "table4", "figure4", "figure6", "figure9"])
def test_an_items_files(lab, name):
    done = run_item(item(name), lab)
    folder = lab.output / name
    assert [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()] == json.loads(json.dumps(list(done.result.rows)))
    assert len(json.loads((folder / "claims.json").read_text())) == len(done.result.claims)
    assert (folder / "table.md").read_text() == done.markdown
    assert (folder / "figure.png").exists() == (item(name).draw is not None)
    if item(name).draw:
        assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    again = run_item(item(name), lab)
    assert again.markdown == done.markdown


def test_figure8_counts_the_tokens_of_the_prompt_and_of_the_solution(lab):
    from transformers import AutoTokenizer

    from t2eval.basemodel.folders import embedded_base_dir
    from t2eval.environment.environment import Environment

    done = run_item(item("figure8"), lab)
    key = json.loads((lab.output / "pieces" / "supervision.json").read_text())["key"]
    assert (key["model"], key["examples"], key["code"]["task"], key["code"]["mask_prompt"]) == ("embedded", 64, "embedded_code_seen", True)
    tokenizer = AutoTokenizer.from_pretrained(str(embedded_base_dir("embedded")))
    for skill in SKILLS:
        task = f"embedded_{skill}_seen"
        own = {row["index"]: row for row in done.result.rows if row["task"] == task}
        read = solutions = 0
        for example in Environment(task).examples("train", limit=64):
            prompt = f"Q: {example.doc['question']}\nA:"
            before, whole = (len(tokenizer(text)["input_ids"]) for text in (prompt, f"{prompt} {example.doc['answer']}\n\n"))
            row = own[example.index]
            assert (len(row["tokens_without_loss"]), len(row["tokens_with_loss"])) == (before, whole - before)
            assert "".join(row["tokens_with_loss"]) == f" {example.doc['answer']}\n\n"
            read, solutions = read + before, solutions + whole - before
        column = item("figure8").ours(done.result)[f"{skill}_seen (n=64)"]
        assert column["solution tokens, with loss"] == f"{solutions / 64:.1f}"
        assert column["share with loss"] == f"{solutions / (read + solutions):.0%}"
    assert all(claim.holds for claim in done.result.claims)


def test_figure8_sees_a_prompt_that_carries_loss(lab, monkeypatch):
    from t2eval.training.supervised import Supervised

    plain = Supervised.encoded
    monkeypatch.setattr(Supervised, "encoded", lambda self, example, config: ([0], sum(plain(self, example, config), [])))
    assert not any(claim.holds for claim in item("figure8").run(lab).claims)
