"""The watch over the base's weights: it names what a test changed, whatever way the test went, and lets good tests pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from t2eval.svf.attachment import attach
from tests import weights
from tests.tiny import tiny_model

TESTS = """
import pytest
import torch
from t2eval.svf.attachment import attach
from tests.tiny import tiny_model

@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    attach(model, layers="0")
    return model

def test_good(model):
    adapted = attach(tiny_model(), layers="0", keep_base="host")
    z = {path: 2 * torch.ones(basis.rank) for path, basis in adapted.bases.items()}
    with pytest.raises(KeyboardInterrupt), adapted.merged(z):
        raise KeyboardInterrupt
    adapted.merge(z)  # and left merged: the base waits in the host's memory

def test_bad(model):
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model.model.norm.weight.view(-1)[3] += 1e-6
        raise KeyboardInterrupt

def test_past_the_version_counter_and_let_go():
    passing = tiny_model()
    attach(passing, layers="0")
    passing.lm_head.weight.data[0, 0] = 7

@pytest.mark.unwatched
def test_its_subject(model):
    model.model.norm.weight.data.zero_()

def test_after(model):
    pass
"""


def test_a_test_that_changes_a_weight_fails_and_the_weight_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_inner.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    before = os.getcwd()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--noconftest", "-c", str(tmp_path / "pytest.ini"), str(tmp_path)], [weights])
    said = capsys.readouterr().out
    assert os.getcwd() == before
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert "2 failed, 3 passed" in said, said
    assert "test_bad" in said and "left a base model with other weights: model.norm.weight." in said
    assert "test_past_the_version_counter_and_let_go" in said and "other weights: lm_head.weight." in said


def test_one_bit_and_a_not_a_number_are_seen() -> None:
    watch = weights.Watch()
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    adapted = attach(model, layers="0")
    watch.see(model, adapted._state)
    assert watch.changed() == []
    bits = model.model.norm.weight.data.view(torch.int32)
    bits[0] ^= 1  # a NaN still
    assert watch.changed() == ["model.norm.weight"]
    assert watch.changed() == []
    bits[0] ^= 1
    assert watch.changed() == ["model.norm.weight"]
    weights.WATCH.changed()  # the suite's own watch has seen this model too, and is to take it as it is
