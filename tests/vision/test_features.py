"""Prompts with images: ids and features against the model's own path with pixels, for three families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from t2eval.errors import T2Error, UsageError
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.vision import features as reading
from t2eval.vision.features import Features, Reader, image_arguments, within
from t2eval.vision.images import structured, text_tokenizer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_vlm import FAMILIES, picture, tiny_processor, tiny_vlm

TEXT = "Q: <image> what is it?\nA:"


def _plain(model: Any, processor: Any, texts: list[str], images: list[list[Any]]) -> Any:
    nested: Any = [image for each in images for image in each] if model.config.model_type == "llava" else images
    return processor(text=texts, images=nested, return_tensors="pt", padding=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_give_the_logits_that_pixels_give(family: str) -> None:
    model, processor = tiny_vlm(family), tiny_processor(family)
    reader = Reader(model, processor)
    images = [[picture(3)], [picture(90)]]
    texts = [TEXT, "What colour? <image>"]
    read = [reader.read(text, lambda each=each: each, number) for number, (text, each) in enumerate(zip(texts, images, strict=True))]  # type: ignore[misc]
    wanted = _plain(model, processor, texts, images)
    assert [ids for ids, _ in read] == [
        row[keep.bool()].tolist() for row, keep in zip(wanted["input_ids"], wanted["attention_mask"], strict=True)
    ]
    engine = Engine(model, processor.tokenizer, batch_size=2)
    first = [[[token] for token in range(0, 250, 7)]] * 2
    found = engine.loglikelihoods([ids for ids, _ in read], first, features=[features for _, features in read])
    with torch.no_grad():
        alone = [model(**_plain(model, processor, [text], [each])).logits[0, -1] for text, each in zip(texts, images, strict=True)]
        other = model(**_plain(model, processor, [TEXT], [[picture(200)]])).logits[0, -1]
    for values, logits in zip(found, alone, strict=True):
        assert [each.value for each in values] == pytest.approx(logits.log_softmax(-1)[0:250:7].tolist(), abs=1e-4)
    assert not torch.allclose(alone[0], other, atol=1e-2), "the fixture's images do not matter"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_answers_as_generate_does_with_pixels(family: str) -> None:
    model, processor = tiny_vlm(family), tiny_processor(family)
    tokenizer, reader = processor.tokenizer, Reader(model, processor)
    images = [[picture(shade)] for shade in (3, 90, 150)]
    read = [reader.read(TEXT, lambda each=each: each, place) for place, each in enumerate(images)]  # type: ignore[misc]
    prompts, features = [ids for ids, _ in read], [seen for _, seen in read]
    plain = _plain(model, processor, [TEXT] * 3, images)
    made = model.generate(**plain, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    wanted = [tokenizer.decode(row[plain["input_ids"].shape[1] :], skip_special_tokens=True) for row in made]
    assert len(set(wanted)) > 1
    for static in (False, True):
        engine = Engine(model, tokenizer, batch_size=2, static=static)
        made = engine.complete(prompts, GenerationSettings(6), samples=2, features=features)
        assert [completion.text for completion in made] == [text for text in wanted for _ in range(2)]
        assert [completion.features for completion in made] == [each for each in features for _ in range(2)]


def test_sequences_with_and_without_images_share_a_batch() -> None:
    model, processor = tiny_vlm(), tiny_processor()
    ids, features = Reader(model, processor).read(TEXT, lambda: [picture(3)], 0)
    words = processor.tokenizer("Only text.")["input_ids"]
    engine = Engine(model, processor.tokenizer, batch_size=4)
    together = engine.loglikelihoods([words, ids], [[[70, 71]], [[70, 71], [72]]], features=[None, features])
    apart = engine.loglikelihoods([words], [[[70, 71]]]) + engine.loglikelihoods([ids], [[[70, 71], [72]]], features=[features])
    assert [one.value for each in together for one in each] == pytest.approx([one.value for each in apart for one in each], abs=1e-4)


def test_several_images_stand_in_their_own_places() -> None:
    model, processor = tiny_vlm(), tiny_processor()
    images = [picture(3), picture(200)]
    ids, features = Reader(model, processor).read("<image> or <image>?", lambda: images, 0)
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), **image_arguments([features])).logits
        wanted = model(**_plain(model, processor, ["<image> or <image>?"], [images])).logits
        swapped = model(**_plain(model, processor, ["<image> or <image>?"], [images[::-1]])).logits
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(found, swapped, atol=1e-2)


def test_each_image_is_encoded_once_and_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_vlm()
    runs = []
    model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    reader = Reader(model, tiny_processor())
    first = reader.read(TEXT, lambda: [picture(3)], "a")
    assert reader.read(TEXT, lambda: pytest.fail("decoded again"), "a")[1] is first[1] and len(runs) == 1
    monkeypatch.setattr(reading, "_KEPT_BYTES", 2 * 16 * 32 * 4)
    for key in "bcd":
        reader.read(TEXT, lambda: [picture(9)], key)
    assert len(reader._kept) == 2
    reader.read(TEXT, lambda: [picture(3)], "a")
    assert len(runs) == 5


def test_a_wrong_number_of_places_is_named() -> None:
    reader = Reader(tiny_vlm(), tiny_processor())
    with pytest.raises(T2Error, match=r"\('test', 4\) has 0 places for images \(<image>\) and 1 images"):
        reader.read("no place", lambda: [picture(1)], ("test", 4))


def test_a_prompt_with_images_is_never_cut() -> None:
    assert within([1, 2, 3], None, 2) == [2, 3]
    with pytest.raises(T2Error, match="has 3 tokens, and the model has room for 2"):
        within([1, 2, 3], Features(torch.zeros(1, 4)), 2)
    model, processor = tiny_vlm(max_position_embeddings=24), tiny_processor()
    ids, features = Reader(model, processor).read(TEXT, lambda: [picture(3)], 0)
    with pytest.raises(T2Error, match="cannot be shortened"):
        Engine(model, processor.tokenizer, batch_size=1).complete([ids], GenerationSettings(4), features=[features])


def test_a_family_that_cannot_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="LlamaForCausalLM does not take images.*t2-expert-vlm works"):
        Reader(tiny_model(), tiny_processor())._encode  # noqa: B018
    model = tiny_vlm()
    model.config.text_config.rope_parameters = {**model.config.text_config.rope_parameters, "mrope_section": [2, 1, 1]}
    with pytest.raises(UsageError, match="positions in several dimensions"):
        Reader(model, tiny_processor())._encode  # noqa: B018


def test_features_go_in_the_container_of_the_family() -> None:
    assert image_arguments([None, None]) == {} == image_arguments([])
    rows = torch.arange(6.0).view(3, 2)
    one = image_arguments([Features(rows), None, Features(rows + 1)])["mm_encoder_outputs"]["image"].pooler_output
    assert isinstance(one, list) and torch.equal(one[0], torch.cat([rows, rows + 1]))
    stacked = image_arguments([Features(rows, stacked=True)])["mm_encoder_outputs"]["image"].pooler_output
    assert stacked.shape == (1, 3, 2)


def test_a_chat_is_structured_as_lm_eval_structures_it() -> None:
    from lm_eval.models.hf_vlms import HFMultimodalLM

    class Stub:
        interleave, max_images, chat_applied = True, 99, False
        processor = tiny_processor()

    history = [{"role": "user", "content": "<image>\nWhat? <image>"}, {"role": "assistant", "content": "a dog"}]
    wanted = HFMultimodalLM.apply_chat_template(Stub(), [dict(message) for message in history])
    rendered = Stub.processor.apply_chat_template(structured(history), tokenize=False, add_generation_prompt=True)
    assert rendered == wanted == "user: <image>\nWhat? <image>\nassistant: a dog\nassistant:"
    assert text_tokenizer(Stub.processor) is Stub.processor.tokenizer and text_tokenizer(tokenizer := tiny_tokenizer()) is tokenizer


def test_the_cache_of_a_vision_language_model_is_its_backbones() -> None:
    assert len(DynamicCache(config=tiny_vlm(num_hidden_layers=3).config).layers) == 3
