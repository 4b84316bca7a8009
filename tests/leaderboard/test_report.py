import json

import pytest

from t2eval.bench.plan import Cell
from t2eval.bench.rows import Row, Sample, append, write_samples
from t2eval.errors import UsageError
from t2eval.leaderboard.comparison import compare
from t2eval.leaderboard.gate import fail_on_regression
from t2eval.leaderboard.report import LATENT_SKILL, leaderboard
from t2eval.stats.clusters import clustered_stderr
from t2eval.stats.corrections import holm
from t2eval.stats.means import stdev
from t2eval.stats.paired import mcnemar
from t2eval.stats.power import smallest_difference


def put(folder, method, scores, task="t", seed=0, model="m", **changes):
    """A finished row with given scores by example."""
    folder.mkdir(exist_ok=True)
    cell = Cell(model, method, task, seed)
    clusters = changes.pop("in_clusters", None) or [None] * len(scores)
    samples = [
        Sample(doc_id=i, doc_hash=f"{task}{i}", score=float(score), response="", cluster=cluster)
        for i, (score, cluster) in enumerate(zip(scores, clusters, strict=True))
    ]
    fields = {
        "status": "ok", "score": sum(scores) / len(scores), "stderr": 0.01, "n": len(scores), "metric": "acc", "seconds": 2.0,
        "trainable_parameters": 1200, "samples": write_samples(folder, cell.key, samples),
    }  # fmt: skip
    append(folder, Row(cell=cell.key, model=model, method=method, task=task, seed=seed, **{**fields, **changes}))


def ones(n, total=100):
    return [1] * n + [0] * (total - n)


def test_bold_only_for_a_significant_gain(tmp_path):
    put(tmp_path, "base", ones(50))
    put(tmp_path, "prompt", ones(80))
    put(tmp_path, "cls", ones(53))
    put(tmp_path, "fewshot", ones(20))
    board = leaderboard(tmp_path)
    raw = [mcnemar(ones(n), ones(50)) for n in (80, 53, 20)]
    assert [board.entry(method, "t").p for method in ("prompt", "cls", "fewshot")] == pytest.approx(holm(raw))
    text = board.to_markdown()
    assert "| prompt | **0.800** ± 0.040 (n=100) | 0.800 | 2.0 | 1,200 |" in text
    assert "| cls | 0.530 ± 0.050 (n=100)" in text
    assert "| fewshot | 0.200 ±" in text
    assert "Significantly worse than the base: fewshot on t." in text
    assert "McNemar exact" in text
    assert "3 comparisons" in text
    assert LATENT_SKILL not in text


def test_clustered_examples_are_tested_by_their_clusters_and_said(tmp_path):
    # Twelve pictures of ten questions. Seven pictures are gained whole, none lost: by questions p is 2/2^70, by pictures 2/2^7.
    pictures = [f"picture {i // 10}" for i in range(120)]
    for folder, clusters in ((tmp_path / "clusters", pictures), (tmp_path / "plain", None)):
        put(folder, "base", ones(30, 120), in_clusters=clusters)
        put(folder, "cls", ones(100, 120), in_clusters=clusters)
    entry, plain = (leaderboard(tmp_path / name).entry("cls", "t") for name in ("clusters", "plain"))
    assert (entry.clusters, plain.clusters, entry.gain) == (12, None, plain.gain)
    assert entry.p == pytest.approx(2 / 2**7) and plain.p < 1e-9
    assert entry.test == "paired sign flips of 12 clusters" and plain.test == "McNemar exact"
    assert entry.stderr == pytest.approx(clustered_stderr(ones(100, 120), pictures))
    assert entry.stderr > 2.5 * plain.stderr and entry.smallest > 2.5 * plain.smallest
    board = leaderboard(tmp_path / "clusters")
    assert "(n=120 in 12)" in board.to_markdown()
    assert "errors and tests are over their clusters: t (120 examples in 12)." in board.to_markdown()
    assert json.loads(board.to_json())["entries"][1]["clusters"] == 12
    (comparison,) = compare(tmp_path / "clusters", "cls", "base")
    assert (comparison.clusters, comparison.p) == (12, entry.p) and "n=120 in 12 clusters" in str(comparison)
    put(tmp_path / "main", "cls", ones(100, 120), in_clusters=pictures)
    put(tmp_path / "change", "cls", ones(30, 120), in_clusters=pictures)
    (worse,) = fail_on_regression(tmp_path / "change", tmp_path / "main").worse
    assert (worse.clusters, worse.p) == (12, pytest.approx(2 / 2**7))


def test_one_cluster_says_nothing_of_others(tmp_path):
    for method, right in (("base", 20), ("cls", 90)):
        put(tmp_path, method, ones(right), in_clusters=["algebra"] * 100)
    entry = leaderboard(tmp_path).entry("cls", "t")
    assert (entry.stderr, entry.low, entry.p, entry.smallest, entry.better) == (None, None, 1.0, None, False)
    text = leaderboard(tmp_path).to_markdown()
    assert "0.900 ± N/A (n=100 in 1)" in text and "| cls | t | +0.700 | N/A | 1 | nothing |" in text


def test_beside_each_comparison_stands_what_so_many_examples_could_show(tmp_path):
    put(tmp_path, "base", ones(50))
    put(tmp_path, "prompt", ones(80))
    put(tmp_path, "cls", ones(50))
    board = leaderboard(tmp_path)
    spread = stdev([0.0] * 50 + [1.0] * 30 + [0.0] * 20)
    assert board.entry("prompt", "t").smallest == pytest.approx(smallest_difference(spread, 100))
    assert board.entry("cls", "t").smallest is None, "no difference was seen, so that the spread is not known"
    assert "| prompt | t | **+0.300** | +0.209 to +0.391 | 3.7e-09 | 0.130 |" in board.to_markdown()
    assert "| cls | t | +0.000 | N/A | 1 | nothing |" in board.to_markdown()
    assert "Could show: the smallest true difference" in board.to_markdown()
    (comparison,) = compare(tmp_path, "prompt", "base")
    assert str(comparison).endswith("; 0.130 could show")
    put(tmp_path / "few", "base", ones(0, 5))
    put(tmp_path / "few", "cls", ones(4, 5))
    assert leaderboard(tmp_path / "few").entry("cls", "t").smallest is None


def test_holm_spans_the_whole_table(tmp_path):
    # 6 discordant pairs of 6: p = 0.031 alone, but not after correction for 2.
    for task in ("a", "b"):
        put(tmp_path, "base", ones(50), task=task)
        put(tmp_path, "cls", ones(56), task=task)
    board = leaderboard(tmp_path)
    assert board.entry("cls", "a").p == pytest.approx(2 * 2 / 2**6)
    assert "**" not in board.to_markdown()


def test_seeds_are_averaged_and_counted(tmp_path):
    put(tmp_path, "base", ones(50), model="embedded")
    for seed, n in enumerate((60, 70, 80)):
        put(tmp_path, "cls", ones(n), seed=seed, model="embedded")
    entry = leaderboard(tmp_path).entry("cls", "t")
    assert entry.score == pytest.approx(0.7)
    assert entry.seeds == (0, 1, 2)
    assert entry.seed_std == pytest.approx(0.1)
    assert entry.n == 100
    assert entry.test == "paired sign flips"
    assert entry.gain == pytest.approx(0.2)
    text = leaderboard(tmp_path).to_markdown()
    assert "3 seeds" in text
    assert "between seeds is at most 0.100" in text
    assert LATENT_SKILL in text


def test_json_has_everything(tmp_path):
    put(tmp_path, "base", ones(50))
    put(tmp_path, "cls", ones(90))
    content = json.loads(leaderboard(tmp_path).to_json())
    assert content["model"] == "m"
    entry = content["entries"][1]
    assert (entry["method"], entry["significant"], entry["n"]) == ("cls", True, 100)
    assert content["failures"] == []


def test_a_missing_task_leaves_no_mean(tmp_path):
    put(tmp_path, "base", ones(50), task="a")
    put(tmp_path, "base", ones(50), task="b")
    put(tmp_path, "cls", ones(50), task="a")
    line = next(line for line in leaderboard(tmp_path).to_markdown().splitlines() if line.startswith("| cls"))
    assert line == "| cls | 0.500 ± 0.050 (n=100) | – | – | 2.0 | 1,200 |"


def test_lower_is_better_turns_the_gain(tmp_path):
    put(tmp_path, "base", [2.0 + i % 7 for i in range(60)], higher_is_better=False)
    put(tmp_path, "cls", [1.0 + i % 7 for i in range(60)], higher_is_better=False)
    entry = leaderboard(tmp_path).entry("cls", "t")
    assert (entry.gain, entry.better) == (1.0, True)


def test_compare_two_methods(tmp_path):
    put(tmp_path, "prompt", ones(80))
    put(tmp_path, "lora", ones(60))
    (result,) = compare(tmp_path, "prompt", "lora")
    assert result.gain == pytest.approx(0.2)
    assert result.p == pytest.approx(mcnemar(ones(80), ones(60)))
    assert "prompt against lora on t: 0.800 against 0.600, gain +0.200" in str(result)
    with pytest.raises(UsageError, match="Did you mean 'prompt'"):
        compare(tmp_path, "promt", "lora")


def test_regression_gate(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for method, before, now in (("base", 50, 50), ("cls", 90, 60), ("prompt", 60, 58), ("lora", 50, 80)):
        put(old, method, ones(before))
        put(new, method, ones(now))
    assert [item.method for item in fail_on_regression(new, old).worse] == ["cls"]
    assert fail_on_regression(old, old).worse == ()
    (item,) = fail_on_regression(old, new).worse
    assert item.method == "lora"


def test_a_cell_that_fails_now_is_a_regression(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    put(old, "cls", ones(50))
    put(new, "base", ones(50))
    append(new, Row(cell="c", model="m", method="cls", task="t", seed=0, status="failed", error="boom"))
    (item,) = fail_on_regression(new, old).worse
    assert "failed now: boom" in str(item)


def test_regression_without_shared_examples_is_tested_unpaired(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    put(old, "cls", ones(90), samples=None, stderr=0.03)
    put(new, "cls", ones(60), samples=None, stderr=0.05)
    (item,) = fail_on_regression(new, old).worse
    assert item.test == "Welch (unpaired)"
    with pytest.raises(UsageError, match="share no cell"):
        put(tmp_path / "other", "cls", ones(5), task="u")
        fail_on_regression(new, tmp_path / "other")


def test_an_empty_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="holds no finished cells"):
        leaderboard(tmp_path)


def test_one_example_has_no_error_and_is_never_bold(tmp_path):
    put(tmp_path, "base", [0.0])
    put(tmp_path, "expert", [1.0])
    board = leaderboard(tmp_path)
    assert board.entry("base", "t").stderr is None
    assert board.entry("expert", "t").p == 1.0 and not board.entry("expert", "t").better
    assert "| 1.000 ± N/A (n=1) |" in board.to_markdown() and "± 0.000" not in board.to_markdown()
    (comparison,) = compare(tmp_path, "expert", "base")
    assert "gain +1.000, n=1, p=1 (" in str(comparison)


def test_the_benchmarks_name_is_the_title(tmp_path):
    put(tmp_path, "base", ones(50))
    assert leaderboard(tmp_path).to_markdown().startswith("# Leaderboard: m\n\nBase model: m\n")
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "spring", "config": {}}))
    board = leaderboard(tmp_path)
    assert board.to_markdown().startswith("# spring\n\nBase model: m\n") and json.loads(board.to_json())["title"] == "spring"


def test_what_is_not_a_number_is_left_out_on_both_sides_and_never_bold(tmp_path):
    put(tmp_path, "base", ones(10))
    put(tmp_path, "cls", ones(90, 98), undefined=[98, 99])
    folder = tmp_path
    cell = Cell("m", "cls", "t", 0)
    samples = [Sample(doc_id=i, doc_hash=f"t{i}", score=float(i < 90), response="") for i in range(98)]
    samples += [Sample(doc_id=i, doc_hash=f"t{i}", score=None, undefined=True, response="") for i in (98, 99)]
    write_samples(folder, cell.key, samples)
    board = leaderboard(folder)
    entry = board.entry("cls", "t")
    assert (entry.n, entry.undefined, entry.significant, entry.better) == (98, (98, 99), True, False)
    assert entry.gain == pytest.approx(80 / 98)
    text = board.to_markdown()
    assert "**" not in text
    assert "cls on t: the metric 'acc' is not a number (NaN or infinite) for documents 98, 99, left out of the score" in text
    json.loads(board.to_json(), parse_constant=lambda name: pytest.fail(name))


def test_adaptation_examples_that_were_test_items_are_left_out_of_both_sides(tmp_path):
    put(tmp_path, "base", [1, 1, 0, 0] * 25)
    adaptation = {"t": {"overlaps_test": True, "doc_ids": [2, 3, 6]}}
    put(tmp_path, "fewshot", [1] * 100, t2={"adaptation": adaptation})
    put(tmp_path, "cls", [1] * 100, t2={"adaptation": {"t": {"overlaps_test": False, "doc_ids": [2, 3, 6]}}})
    board = leaderboard(tmp_path)
    entry = board.entry("fewshot", "t")
    assert (entry.n, entry.adapted, entry.score) == (97, (2, 3, 6), 1.0)
    assert entry.gain == pytest.approx(47 / 97), "the base's side has them out too"
    assert entry.significant and not entry.better
    text = board.to_markdown()
    assert "| fewshot | 1.000 ± 0.000 (n=97)" in text and "| cls | **1.000** ± 0.000 (n=100)" in text
    assert "fewshot on t: adapted on documents 2, 3, 6 of the test split, left out of the score and of both sides" in text
    (comparison,) = compare(tmp_path, "fewshot", "cls")
    assert comparison.n == 97 and str(comparison).endswith("; 3 adaptation documents left out of both sides")
    put(tmp_path / "main", "fewshot", [1] * 100)
    put(tmp_path / "new", "fewshot", [0] * 100, t2={"adaptation": adaptation})
    (worse,) = fail_on_regression(tmp_path / "new", tmp_path / "main").worse
    assert (worse.n, worse.left_out) == (97, 3)


def test_rows_that_do_not_belong_together_are_refused(tmp_path):
    kinds = [
        ({"hashes": {"task": "a"}}, {"hashes": {"task": "b"}}, "two versions of the task t"),
        ({"hashes": {"prompts": "a"}}, {"hashes": {"prompts": "b"}}, "other prompts or documents of t"),
        ({"versions": {"torch": "1"}}, {"versions": {"torch": "2"}}, r"two versions of torch \(1 and 2\)"),
        ({"hashes": {"experts": {"math": "a"}}}, {"hashes": {"experts": {"math": "b"}}}, "two experts named math"),
    ]
    for place, (first, second, message) in enumerate(kinds):
        folder = tmp_path / str(place)
        put(folder, "prompt", ones(5), **first)
        put(folder, "cls", ones(5), **second)
        with pytest.raises(UsageError, match=message + ".*Remove the older one's line"):
            leaderboard(folder)
        put(folder, "cls", ones(5), **first)
        assert leaderboard(folder).entries


def manifest(folder, limit):
    (folder / "manifest.json").write_text(json.dumps({"config": {"limit": limit}, "inputs": {}, "cells": [], "name": "b"}))


def test_the_gate_says_in_what_the_runs_differ(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    put(old, "base", ones(50), versions={"torch": "1"}, hashes={"prompts": "of 100"})
    put(old, "cls", ones(50), versions={"torch": "1"}, hashes={"experts": {"math": "a" * 64}})
    put(new, "base", ones(50, 50), versions={"torch": "2"}, hashes={"prompts": "of 50"})
    for seed in (0, 1):
        put(new, "cls", ones(50, 50), seed=seed, versions={"torch": "2"}, hashes={"experts": {"math": "b" * 64}})
    manifest(new, 50)
    manifest(old, None)
    gate = fail_on_regression(new, old)
    assert gate.worse == ()
    limit, numbers, seeds, others = gate.notes
    assert limit == "The runs differ in their limit: limit 50 here, all examples there."
    assert numbers == "The runs differ in n: base on t 50 here, 100 there; cls on t 50 here, 100 there."
    assert seeds == "The runs differ in seeds: cls on t 0, 1 here, 0 there."
    assert others == "The runs were made with two versions of torch (2 and 1); two experts named math (seed 0) (here and there)."
    assert fail_on_regression(new, new).notes == ()


@pytest.mark.parametrize("kind, words", [("task", "two versions of the task t"), ("prompts", "other prompts or documents of t")])
def test_the_gate_refuses_a_task_that_was_another_one(tmp_path, kind, words):
    new, old = tmp_path / "new", tmp_path / "old"
    for folder, digest, right in ((old, "a" * 64, 90), (new, "b" * 64, 20)):
        put(folder, "base", ones(right), hashes={kind: digest})
        put(folder, "base", ones(right), task="u", hashes={kind: "same"})
    with pytest.raises(UsageError, match=rf"new cannot be held against .*old: they were made with {words}\. What.*--leave-out-changed"):
        fail_on_regression(new, old)
    gate = fail_on_regression(new, old, leave_out_changed=True)
    assert [item.task for item in gate.worse] == ["u"]
    assert gate.notes == (f"Not judged, as {new} and {old} were made with {words}.",)


def test_the_first_run_passes_with_a_note(tmp_path):
    put(tmp_path / "new", "base", ones(5))
    gate = fail_on_regression(tmp_path / "new", tmp_path / "main")
    assert gate.worse == ()
    assert gate.notes[0].startswith("No baseline: ")
