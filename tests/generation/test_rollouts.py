"""Rollouts: the lean loop says what lm-eval's HFLM says, and the likelihoods are its too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from t2eval.environment.environment import Environment
from t2eval.generation.rollouts import Sampler, answer_logits, choice_likelihoods, encode, encode_pair, pad_rows, token_log_probs
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["ab", "a longer prompt:", "xyz 12", "q", "two\nlines", "0123456789"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_greedy_answers_are_lm_eval_s(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    free = Sampler(model, tokenizer, [], 12)
    seen = [rollout.text for rollout in free.generate([encode(tokenizer, prompt) for prompt in PROMPTS], batch_size=6)]
    stops = [seen[0][3:5], seen[1][6]]  # strings that do occur, one of two letters
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    until = {"until": stops, "max_gen_toks": 12, "do_sample": False}
    expected = lm.generate_until([Instance("generate_until", {}, (prompt, dict(until)), 0) for prompt in PROMPTS], disable_tqdm=True)
    for batch_size in (1, 4, 6):
        ours = Sampler(model, tokenizer, stops, 12).generate([encode(tokenizer, prompt) for prompt in PROMPTS], batch_size=batch_size)
        assert [rollout.text for rollout in ours] == expected
    assert len({len(rollout.answer) for rollout in ours}) > 1, "the rows should end at different steps"


def test_an_answer_s_tokens_end_with_its_stop_string() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = encode(tokenizer, PROMPTS[0])
    whole = Sampler(model, tokenizer, [], 12).generate([prompt], batch_size=1)[0]
    stop = tokenizer.decode(whole.answer[4:6])
    cut = Sampler(model, tokenizer, [stop], 12).generate([prompt], batch_size=1)[0]
    assert cut.answer == whole.answer[: len(cut.answer)] and len(cut.answer) <= 6
    assert tokenizer.decode(cut.answer).endswith(stop) and stop not in cut.text


def test_sampling_is_seeded_and_follows_the_distribution() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = encode(tokenizer, "ab")
    sampler = Sampler(model, tokenizer, [], 1)

    def draw(seed: int, temperature: float = 1.0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [r.answer[0] for r in sampler.generate([prompt] * 2000, batch_size=2000, generator=generator, temperature=temperature)]

    assert draw(0) == draw(0) != draw(1)
    with torch.no_grad():
        probabilities = (model(torch.tensor([prompt])).logits[0, -1] / 2).softmax(-1)
    counts = torch.bincount(torch.tensor(draw(2, 2.0)), minlength=len(probabilities)) / 2000
    assert (counts - probabilities).abs().max() < 5 * (0.25 / 2000) ** 0.5


def test_log_probs_are_those_of_the_plain_model() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    pairs = [([1, 2, 3], [4, 5]), ([9], [8, 7, 6, 5]), ([10, 11, 12, 13, 14], [15])]
    rows = pad_rows(pairs, "cpu", tokenizer.pad_token_id)
    found = token_log_probs(answer_logits(model, rows), rows)
    for row, (prompt, answer) in enumerate(pairs):
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = [logits[len(prompt) - 1 + place, token] for place, token in enumerate(answer)]
        torch.testing.assert_close(found[row, : len(answer)], torch.stack(expected), atol=1e-4, rtol=1e-4)
        assert (found[row, len(answer) :] == 0).all()


def test_choice_likelihoods_are_lm_eval_s(letters: Callable[[str], Environment]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    examples = letters("letters_choice").examples("validation", limit=5)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    found = choice_likelihoods(model, tokenizer, examples, device="cpu", batch_size=7)
    requests = [Instance("loglikelihood", {}, pair, 0) for example in examples for pair in example.requests]
    expected = lm.loglikelihood(requests, disable_tqdm=True)
    flat: list[Any] = [item for row in found for item in row]
    torch.testing.assert_close(torch.tensor([v for v, _ in flat]), torch.tensor([v for v, _ in expected]), atol=1e-4, rtol=1e-4)
    assert [flag for _, flag in flat] == [flag for _, flag in expected]


@pytest.mark.parametrize(("context", "continuation"), [("q: ", "a"), ("q:", " a"), ("", "ab"), ("<bos>q", "a")])
def test_pairs_are_split_as_lm_eval_splits_them(context: str, continuation: str) -> None:
    tokenizer = tiny_tokenizer()
    lm = HFLM(pretrained=tiny_model(), tokenizer=tokenizer, batch_size=1)
    expected = lm._encode_pair(context, continuation) if context else ([256], tokenizer(continuation)["input_ids"])
    assert encode_pair(tokenizer, context, continuation) == expected
