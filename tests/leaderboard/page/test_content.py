import base64
import gzip
import json
import re

import pytest

from t2eval.leaderboard.comparison import compare
from t2eval.leaderboard.page.content import content
from t2eval.leaderboard.page.document import document, pack, write_page
from t2eval.leaderboard.report import leaderboard
from tests.leaderboard.page.runs import HOSTILE, benchmark, put


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark(tmp_path_factory.mktemp("page") / "run")


def test_the_numbers_are_those_of_the_table_and_of_compare(folder):
    [run] = content(folder).summary["runs"]
    printed = json.loads(leaderboard(folder).to_json())
    assert {key: json.loads(json.dumps(run[key])) for key in printed} == printed
    found = [each for each in run["comparisons"] if (each["a"], each["b"]) == ("base", "cls")]
    assert [(each["task"], each["gain"], each["p"]) for each in found] == [
        (each.task, each.gain, each.p) for each in compare(folder, "base", "cls")
    ]
    row = next(line for line in leaderboard(folder).to_markdown().split("\n") if line.startswith("| cls"))
    assert row.endswith(f"{run['totals']['cls'][0]} | {run['totals']['cls'][1]} | {run['totals']['cls'][2]} |")


def test_chunks_hold_each_cell_and_each_tasks_documents_once(folder):
    found = content(folder)
    assert sorted(name[0] for name in found.chunks) == ["d"] * 2 + ["s"] * 14
    cell = next(cell for cell in found.summary["runs"][0]["cells"] if cell["method"] == "cls")
    samples, documents = found.chunks[cell["samples"]](), found.chunks[cell["documents"]]()
    assert samples["doc"] == documents["doc_id"] == list(range(16))
    assert samples["probabilities"][3] == {"math": 0.75, "code": 0.2, "others": 0.05}
    assert samples["why"][2] == "error: ZeroDivisionError" and "metrics" not in samples


def test_nothing_that_a_model_wrote_stands_in_the_page_as_html(folder, tmp_path):
    write_page(tmp_path / "page.html", folder)
    text = (tmp_path / "page.html").read_text()
    assert "owned" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)
    assert "<script>document.title" not in text and "\u2028" not in text and "\x00" not in text
    assert text.count("<script>") == 1 and text.count("</script>") == text.count("<script")
    assert not re.search(r"(?:src|href)=\"(?!#|data:,)", text), "no address of anything else"


def test_packed_data_is_what_was_given():
    value = {"a": [1.5, None, HOSTILE]}
    assert json.loads(gzip.decompress(base64.b64decode(pack(value)))) == value
    assert re.fullmatch("[A-Za-z0-9+/=]*", pack(value))


def test_history_is_tested_and_parts_are_merged(folder, tmp_path):
    newer = tmp_path / "newer"
    put(newer, "base", "sums_seen")
    put(newer, "cls", "sums_seen", seed=1)
    found = content(newer, earlier=(folder,))
    assert [run["name"] for run in found.summary["runs"]] == ["run", "newer"]
    assert {(each["method"], each["task"]) for each in found.summary["history"][0]["comparisons"]} == {
        ("base", "sums_seen"),
        ("cls", "sums_seen"),
    }
    part = tmp_path / "part"
    put(part, "expert", "sums_seen")
    merged = content([newer, part])
    assert {cell["method"] for cell in merged.summary["runs"][0]["cells"]} == {"base", "cls", "expert"}
    assert all(cell["documents"] for cell in merged.summary["runs"][0]["cells"]), "documents lie beside each part's answers"
    assert document(merged).startswith("<!doctype html>")


def test_learning_curves_are_read_from_logs_and_records(folder, tmp_path):
    run = benchmark(tmp_path / "trained")
    (run / "manifest.json").write_text(json.dumps({"config": {"seeds": [0]}, "inputs": {}, "cells": ["a", "b"]}))
    place = run / "experts" / "seed-0" / "math"
    place.mkdir(parents=True)
    lines = [{"step": step, "accuracy": step / 1000, **({"validation": 0.5} if step % 100 == 0 else {})} for step in range(1, 1001)]
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [found] = content(run).summary["runs"][0]["learning"]
    assert (found["name"], found["seed"], found["finished"]) == ("math", 0, False)
    assert len(found["validations"]) == 10 and 200 < len(found["batches"]["accuracy"]) <= 500
    with (place / "log.jsonl").open("a") as log:
        log.write('{"step": 1001, "accu')  # a training that goes on while the page is made
    assert content(run).summary["runs"][0]["learning"] == [found]
    assert content(folder).summary["runs"][0]["learning"] == []
