"""The engine answers as `model.generate` and scores as one plain forward pass does, whatever the architecture and the batch."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from t2eval.generation import static
from t2eval.generation.choosing import Choosing
from t2eval.generation.decoder import Decoder
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from tests.generation.architectures import ARCHITECTURES, architecture
from tests.tiny import tiny_tokenizer

PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52], [70, 71, 72], [90, 91]]
"""One is longer than the windows of 8."""
NEW = 10


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_and_likelihoods_are_the_model_s(name: str) -> None:
    model = architecture(name)
    settings = GenerationSettings(NEW)
    with torch.no_grad():
        expected = [
            model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=NEW, do_sample=False)[0]
            for prompt in PROMPTS
        ]
    wanted = [row[len(prompt) :].tolist() for row, prompt in zip(expected, PROMPTS, strict=True)]
    assert len({token for ids in wanted for token in ids}) > 4, "the answers should vary"
    for batch_size, still in ((1, False), (4, True), (4, False)):
        made = Engine(model, tiny_tokenizer(), batch_size=batch_size, max_length=128, static=still).complete(PROMPTS, settings)
        assert [completion.ids for completion in made] == wanted
    engine = Engine(model, tiny_tokenizer(), batch_size=4, max_length=128)
    continuations = [[ids[:1], ids[:4], [9, 8, 7]] for ids in wanted]
    found = engine.loglikelihoods(PROMPTS, continuations)
    for prompt, each, values, completion in zip(PROMPTS, continuations, found, made, strict=True):
        for tokens, value in zip(each, values, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0].float().log_softmax(-1)
            plain = sum(logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(tokens))
            assert value.value == pytest.approx(plain, abs=1e-3)
        assert sum(completion.log_probs[:4]) == pytest.approx(values[1].value, abs=1e-3)
        assert values[0].greedy and values[1].greedy and not values[2].greedy


SERVED = {
    "static": "llama llama-grouped-bias qwen2 gpt2 phi olmo2 granite gpt_neox",
    "loop": "phi3 mamba jamba mistral-window gemma2 bloom mpt falcon mixtral zamba2",
    "generate": "rwkv recurrent_gemma minimax openai-gpt llama-dynamic-rope",
}
"""Some of each: which way a model goes is a rule, and not the first one that raises no error."""


@pytest.mark.parametrize("way", SERVED)
def test_each_model_goes_the_way_that_the_rule_says(way: str) -> None:
    for name in SERVED[way].split():
        decoder = Decoder(architecture(name))
        choosing = Choosing(decoder, GenerationSettings(NEW), 257)
        found = "generate" if decoder.reason else "loop" if static.reason(decoder, choosing, 30) else "static"
        assert found == way, (name, decoder.reason or static.reason(decoder, choosing, 30))


@pytest.mark.parametrize("decoder", [False, True])
def test_an_encoder_that_is_loaded_as_a_language_model_answers_as_its_generate_does(decoder: bool) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 258}
    model = BertLMHeadModel(BertConfig(**sizes, is_decoder=decoder)).eval()
    with torch.no_grad():
        made = [
            model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)[0, len(prompt) :].tolist() for prompt in PROMPTS
        ]
    engine = Engine(model, tiny_tokenizer(), batch_size=4)
    assert [completion.ids for completion in engine.complete(PROMPTS, GenerationSettings(NEW))] == made
    assert Decoder(model).reason is not None
    apart = [engine.loglikelihoods([prompt], [[[3, 4], [5]]])[0] for prompt in PROMPTS]
    assert engine.loglikelihoods(PROMPTS, [[[3, 4], [5]]] * 4) == apart
