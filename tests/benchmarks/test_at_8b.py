"""`benchmarks/at_8b.py` runs whole on a CPU, with small sizes, and measures what it says."""

from __future__ import annotations

import json

import at_8b
import pytest

WHATS = {
    "model",
    "attach",
    "plain forward",
    "hooked forward",
    "merge + unmerge",
    "merged forward",
    "reference compose, all matrices",
    "plain forward + backward",
    "svf step (next token, no KL)",
    "svf step from merged weights, without the merge",
    "learn micro batch with KL",
    "first pass / second pass",
    "rollouts, sampled",
    "rollouts, greedy",
    "transformers generate, sampled",
    "16 sequences, 4 experts: mixed / merges",
    "decompose",
    "svd float32",
    "end",
}


def test_every_item_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--hidden", "64", "--layers", "1", "--vocab", "64", "--scale", "0.008"]
    monkeypatch.setattr("sys.argv", ["at_8b.py", "--device", "cpu", *sizes])
    at_8b.main()
    head, *items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert head["device"] == "cpu" and head["torch"] and head["date"]
    assert {item["what"] for item in items} == WHATS and items[-1]["what"] == "end"
    learnt = [(item["micro_batch"], item["weights"], item["checkpointed"]) for item in items if item["what"].startswith("learn")]
    assert len(learnt) == len(set(learnt)) == 8 and not any("error" in item for item in items)
    assert all(item["seconds"] >= 0 for item in items if "seconds" in item)
    assert all(item["new_tok_s"] > 0 for item in items if "new_tok_s" in item)
