"""The recipe of the embedded base, run for a few steps, and the shipped base that it made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from t2eval.basemodel.folders import embedded_base_dir, embedded_library_dir
from t2eval.basemodel.load import load_base
from t2eval.embedded import corpus
from t2eval.embedded.pretrain import QUESTION_WEIGHT, TokenBatches, pretrain, train_tokenizer
from t2eval.errors import T2Error
from t2eval.expert.expert import Expert
from t2eval.svf.attachment import attach


def test_batches_weigh_questions_less_and_padding_not_at_all() -> None:
    tokenizer = train_tokenizer(0, documents=500)
    batch = next(iter(TokenBatches(tokenizer, 1, 600, pool=64)))
    tokens, weights = batch["input_ids"], batch["weights"]
    assert tokens.shape == weights.shape
    assert tokens.numel() <= 600
    assert sorted(weights.unique().tolist()) == pytest.approx([0.0, QUESTION_WEIGHT, 1.0])
    row, weight = tokens[0], weights[0]
    answer = tokenizer.decode(row[weight == 1])
    question = tokenizer.decode(row[(weight > 0) & (weight < 1)])
    assert answer.endswith(corpus.END)
    assert question.startswith("Q: ")
    assert question.endswith(("\nA:", "\nskill:"))


def test_digits_are_tokens_of_their_own() -> None:
    tokenizer = train_tokenizer(0, documents=500)
    assert len(tokenizer.tokenize(" 12345")) == 5
    assert tokenizer.decode(tokenizer(" x = 12 ünï")["input_ids"]) == " x = 12 ünï"


def test_the_recipe_is_reproducible(tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        pretrain(tmp_path / name, steps=2, tokens=400)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert (tmp_path / "a" / "dispatch.json").is_file()


@pytest.mark.parametrize("name", ["embedded", "embedded-seed-1"])
def test_the_shipped_bases_are_small_and_what_the_recipe_says(name: str) -> None:
    folder = embedded_base_dir(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 768
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (128, 4)
    text = "Q: solve x + 5 = 12 for x\nA:"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_expert_of_the_one_base_is_refused_on_the_other_unless_by_name() -> None:
    expert = Expert.load(embedded_library_dir(0) / "math")
    adapted = attach(load_base("embedded-seed-1")[0], paths=list(expert.z))
    with pytest.raises(T2Error, match=r"singular basis of .* differs .*allow_basis_mismatch=true"):
        adapted.set_expert(expert)
    with pytest.warns(UserWarning, match="singular basis of"):
        adapted.set_expert(expert, allow_basis_mismatch=True)
