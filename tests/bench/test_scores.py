"""Scores of a cell: the error that its examples allow."""

import math
from types import SimpleNamespace

import pytest

from t2eval.bench.rows import Row, read_samples
from t2eval.bench.scores import scored
from t2eval.errors import T2Error


def test_a_cells_error_is_over_the_clusters_that_its_task_names(tmp_path):
    task = SimpleNamespace(config=SimpleNamespace(task="vqa", metadata={"t2": {"cluster": "picture"}}, metric_list=[{"metric": "acc"}]))
    task._metric_fn_list = {"acc": None}
    logged = [
        {"doc_id": i, "doc_hash": f"d{i}", "prompt_hash": "p", "target_hash": "t", "target": "", "arguments": {}, "resps": [["x"]],
         "filter": "none", "acc": value, "metrics": ["acc"], "filtered_resps": ["x"], "doc": {"picture": picture}}
        for i, (value, picture) in enumerate(zip([1, 1, 0, 0, 1, 0], "aabbcc", strict=True))
    ]  # fmt: skip
    outcome = {"results": {"vqa": {"acc,none": 0.5}}, "samples": {"vqa": logged}, "higher_is_better": {"vqa": {"acc": True}}}
    fields = scored(tmp_path, "cell", task, outcome, {})
    assert (fields["score"], fields["n"], fields["clusters"]) == (0.5, 6, 3)
    assert fields["stderr"] == pytest.approx(math.sqrt(0.05 + 0.5 / 36)), "Miller's formula, by hand"
    row = Row(cell="cell", model="m", method="base", task="vqa", seed=0, status="ok", **fields)
    assert [sample.cluster for sample in read_samples(tmp_path, row)] == list("aabbcc")
    logged[3]["doc"] = {"image": "b"}
    with pytest.raises(T2Error, match="metadata.t2.cluster names 'picture'"):
        scored(tmp_path, "cell", task, outcome, {})
