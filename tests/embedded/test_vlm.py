"""The shipped vision-language model: small, the base inside it unchanged, and it looks at the picture."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from t2eval.embedded import corpus, pictures, vision
from t2eval.paths import experts_dir
from tests.embedded.test_pretrain_vlm import same_as_the_base

BASE, SHIPPED = experts_dir() / "base", experts_dir() / "vlm"


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(SHIPPED, dtype="auto").eval(), AutoProcessor.from_pretrained(SHIPPED)


def test_the_shipped_model_is_small_and_has_the_base_in_it(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 4 * 2**20
    assert same_as_the_base(model)
    assert model.dtype == torch.float32
    row = model.get_input_embeddings().weight[model.config.image_token_id]
    assert row.abs().max() == 0
    assert processor.tokenizer(" a b")["input_ids"] == AutoTokenizer.from_pretrained(BASE)(" a b")["input_ids"]


def test_without_a_picture_it_answers_as_the_base(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    base, tokenizer = AutoModelForCausalLM.from_pretrained(BASE).eval(), AutoTokenizer.from_pretrained(BASE)
    for problem in corpus.problems("reasoning", "seen")["test"][:8]:
        inputs = tokenizer(corpus.prompt(problem.question), return_tensors="pt")
        ids = inputs["input_ids"]
        mask = torch.ones_like(ids)
        with torch.no_grad():
            ours = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
            theirs = base.generate(input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
        assert torch.equal(ours, theirs)


def _answers(shipped: tuple[Any, Any], rows: list[dict[str, Any]], images: list[Image.Image]) -> list[str]:
    model, processor = shipped
    inputs = processor(text=[corpus.prompt(row["asked"]) for row in rows], images=images, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    texts = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    found = [re.search(r"#### (\S+)", text) for text in texts]
    return [match.group(1) if match else "" for match in found]


@pytest.mark.parametrize("level", ["seen", "unseen"])
def test_it_uses_the_picture(shipped: tuple[Any, Any], level: str) -> None:
    """Well over chance with its own picture, and at chance with another item's: chance is what the best constant answer scores."""
    rows = vision.documents(level)["test"][:160]
    images = [pictures.draw(row["picture"], row["seed"]) for row in rows]
    right, wrong = (
        sum(answer == row["target"] for answer, row in zip(_answers(shipped, rows, shown), rows, strict=True)) / len(rows)
        for shown in (images, images[1:] + images[:1])
    )
    chance = max(Counter(row["target"] for row in rows).values()) / len(rows)
    margin = 3 * math.sqrt(chance * (1 - chance) / len(rows))
    assert right > 0.3
    assert right > chance + 4 * margin
    assert wrong <= chance + margin
