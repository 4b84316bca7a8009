"""The recipe of the embedded vision-language model, run for a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from t2eval.embedded import corpus, pictures, vision
from t2eval.embedded.pretrain_vlm import TOKENS, Lessons, new_model, new_processor, pretrain
from t2eval.embedded.problem import bucket
from t2eval.paths import experts_dir

BASE = experts_dir() / "base"


def _language(model: Any) -> dict[str, torch.Tensor]:
    """The language model's weights under the base's names, without the row of `<image>`."""
    weights: dict[str, torch.Tensor] = model.model.language_model.state_dict()
    return {name: weight[:-1] if name == "embed_tokens.weight" else weight for name, weight in weights.items()}


def same_as_the_base(model: Any) -> bool:
    """Whether the language model in it is the base, bit for bit."""
    base = AutoModelForCausalLM.from_pretrained(BASE).model.state_dict()
    found = _language(model)
    return found.keys() == base.keys() and all(torch.equal(found[name], base[name]) for name in base)


def test_the_lessons_say_what_the_pictures_say() -> None:
    processor = new_processor(BASE)
    lessons = Lessons(processor, 3)
    blank = processor.tokenizer.convert_tokens_to_ids(vision.IMAGE)
    rows = [("apple", "dog", "car"), ("●●● +", "■", "◆◆")]
    values, targets = lessons._pictures(rows)
    assert values.shape == (2, 3, pictures.SIZE, pictures.SIZE)
    said = [processor.tokenizer.decode(row[row != blank]) for row in targets]
    assert said == [" apple , dog , car", " 3 + 1 2"]


def test_a_batch_of_questions_has_its_pictures_and_answers() -> None:
    processor = new_processor(BASE)
    batch = next(Lessons(processor, 3).answering(4, pool=2))
    image = processor.tokenizer.convert_tokens_to_ids(vision.IMAGE)
    assert batch["targets"].shape == (4, TOKENS)
    assert (batch["input_ids"] == image).sum(1).tolist() == [TOKENS] * 4
    for tokens, labels, targets in zip(batch["input_ids"], batch["labels"], batch["targets"], strict=True):
        text = processor.tokenizer.decode(tokens).replace(vision.IMAGE, "")
        answer = processor.tokenizer.decode(labels[labels != -100])
        assert answer.endswith(corpus.END) and text.replace(corpus.END, "").endswith("A:" + answer.removesuffix(corpus.END))
        question = text.split("\nA:")[0].removeprefix("Q: ")
        twin = question + processor.tokenizer.decode(targets[targets != image])
        assert bucket(twin) < corpus.PRETRAINING


def test_the_recipe_is_reproducible_and_leaves_the_language_model_alone(tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        pretrain(BASE, tmp_path / name, reading=1, answering=1)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name, dtype="auto")
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert same_as_the_base(model)
    fresh = new_model(BASE, new_processor(BASE)).model.multi_modal_projector.linear_2.weight
    assert not torch.equal(fresh, model.model.multi_modal_projector.linear_2.weight)
