import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from t2eval.errors import UsageError
from t2eval.paper.item import item
from t2eval.paper.items import spectrum
from t2eval.paper.lab import Lab
from t2eval.paper.presets import preset
from tests.tiny import save_tiny, tiny_model


def test_shares_are_numpys():
    model = tiny_model()
    rows = spectrum.spectrum(model)
    assert len(rows) == 2 * 7 * len(spectrum.FRACTIONS)
    state = model.state_dict()
    for row in rows:
        weight = state[f"model.layers.{row['layer']}.{row['module']}.weight"].double().numpy()
        sigma = np.linalg.svd(weight, compute_uv=False)
        assert row["shape"] == list(weight.shape)
        assert row["r"] == max(1, 32 // row["fraction"])
        assert row["share"] == pytest.approx(sigma[: row["r"]].sum() / sigma.sum(), rel=1e-10)
    assert 0 < rows[0]["gaussian"] < 1


def test_the_share_of_a_matrix_of_rank_one_is_all():
    sigma = torch.linalg.svdvals(torch.outer(torch.arange(1.0, 5), torch.ones(3)).double())
    assert spectrum.share(sigma, 1) == pytest.approx(1)


def test_gpt2_and_its_fused_matrices_have_a_spectrum():
    rows = spectrum.spectrum(tiny_model("gpt2"))
    assert {row["module"] for row in rows} == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    assert len(spectrum.claims(rows)) == 3


def rows_with(attention, output, mlp):
    values = {"self_attn.q_proj": attention, "self_attn.o_proj": output, "mlp.up_proj": mlp}
    return [{"module": module, "layer": 0, "fraction": 16, "r": 8, "share": value, "gaussian": 0.1} for module, value in values.items()]


@pytest.mark.parametrize(
    ("shares", "holds"),
    [((0.4, 0.2, 0.1), [True, True, True]), ((0.9, 0.8, 0.3), [False, False, True]), ((0.3, 0.4, 0.1), [True, True, False])],
)
def test_claims_read_the_shares(shares, holds):
    assert [claim.holds for claim in spectrum.claims(rows_with(*shares))] == holds


def test_figures_10_and_11(tmp_path):
    first, second = (str(save_tiny(tmp_path / name, seed=seed)) for seed, name in enumerate(("first", "second")))
    lab = Lab(tmp_path / "out", replace(preset("embedded"), model=first, other=second), say=lambda _: None)
    ten, eleven = (item(name).run(lab) for name in ("figure10", "figure11"))
    assert ten.rows != eleven.rows
    columns = item("figure10").ours(ten)
    own = [row["share"] for row in ten.rows if (row["module"], row["fraction"]) == ("mlp.up_proj", 16)]
    assert columns["r=2 (hidden/16)"]["mlp.up_proj"] == f"{np.mean(own):.1%}"
    pieces = list((tmp_path / "out" / "pieces").rglob("*.json"))
    fractions = list(spectrum.FRACTIONS)
    assert sorted(json.loads(piece.read_text())["key"]["model"] for piece in pieces) == sorted([first, second])
    assert all(
        json.loads(piece.read_text())["key"] | {"model": 0} == {"model": 0, "dtype": "auto", "fractions": fractions} for piece in pieces
    )
    alone = Lab(tmp_path / "other", replace(preset("embedded"), other=None), say=lambda _: None)
    with pytest.raises(UsageError, match="has no second base model"):
        item("figure11").run(alone)
