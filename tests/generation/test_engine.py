"""The engine against lm-eval's own HFLM on the same model: answers, likelihoods, token ids, and what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from t2eval.environment.environment import Environment
from t2eval.errors import T2Error, UsageError
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.generation.usage import Usage
from t2eval.svf.attachment import attach
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["one and two", "a", "what is it that we want to know here?", "short", "a b c d"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2", "mistral"])
def lm(request: pytest.FixtureRequest) -> HFLM:
    return HFLM(pretrained=tiny_model(request.param), tokenizer=tiny_tokenizer(), batch_size=1)


def _engine(lm: HFLM, batch_size: int = 4, **named: Any) -> Engine:
    return Engine(lm.model, lm.tokenizer, batch_size=batch_size, **named)


def _said(lm: HFLM, settings: dict[str, Any]) -> list[str]:
    requests = [Instance("generate_until", {}, (prompt, dict(settings)), 0, ("t", 0, 1)) for prompt in PROMPTS]
    return list(lm.generate_until(requests, disable_tqdm=True))


# ---------------------------------------------------------------------- answers
@pytest.mark.parametrize("static", [False, True])
def test_greedy_answers_equal_lm_evals(lm: HFLM, static: bool) -> None:
    free = [completion.text for completion in _engine(lm).complete([lm.tok_encode(p) for p in PROMPTS], GenerationSettings(24))]
    stops = [free[0][3:5], free[1][6], "zz", ""]  # strings that do occur, one of two letters
    expected = _said(lm, {"until": stops[:3], "max_gen_toks": 24, "do_sample": False})
    for batch_size in (1, 3, 5):
        engine = _engine(lm, batch_size, static=static)
        made = engine.complete([lm.tok_encode(p) for p in PROMPTS], GenerationSettings(24, tuple(stops)))
        assert [completion.text for completion in made] == expected
        assert all(0 < len(completion.ids) == len(completion.log_probs) <= 24 for completion in made)
        assert all(value <= 0 for completion in made for value in completion.log_probs)
    assert "stop" in {completion.stopped for completion in made}
    assert len({len(completion.ids) for completion in made}) > 1, "the sequences should end at different steps"


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(60, 256))},
        {"begin_suppress_tokens": list(range(0, 200))},
        {"bad_words_ids": [[token] for token in range(0, 256, 2)]},
        {"min_new_tokens": 6, "eos_token_id": list(range(0, 250, 3))},
        {"min_length": 18, "eos_token_id": list(range(0, 250, 3))},
        {"forced_eos_token_id": 257},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"num_beams": 2},
        {"guidance_scale": 1.5},
        {"use_cache": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_of_generate_is_obeyed(lm: HFLM, options: dict[str, Any]) -> None:
    ids = [lm.tok_encode(prompt) for prompt in PROMPTS]
    wanted = []
    with torch.no_grad():
        for prompt in ids:
            one = torch.tensor([prompt])
            out = lm.model.generate(one, attention_mask=torch.ones_like(one), max_new_tokens=12, do_sample=False, **options)
            wanted.append(out[0, len(prompt) :].tolist())
    plain = [completion.ids for completion in _engine(lm).complete(ids, GenerationSettings(12))]
    for batch_size, static in ((1, False), (5, False), (5, True)):
        made = _engine(lm, batch_size, static=static).complete(ids, GenerationSettings(12, options=options))
        assert [completion.ids for completion in made] == wanted
    assert wanted != plain or "use_cache" in options or "num_beams" in options, "the option should change an answer"


def test_the_model_s_generation_config_is_obeyed_and_the_policy_itself_is_not_changed_by_it() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    plain = [c.ids for c in Engine(model, tokenizer, batch_size=5).complete(ids, GenerationSettings(12))]
    settings = GenerationSettings(12).from_the_model_itself(0.8)
    drawn = Engine(model, tokenizer, batch_size=5).complete(ids, settings, seed=1)
    model.generation_config.update(repetition_penalty=2.0, top_k=2, top_p=0.5, do_sample=True, temperature=0.3, suppress_tokens=[5, 6])
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    made = Engine(model, tokenizer, batch_size=5).complete(ids, GenerationSettings(12))
    assert [c.text for c in made] == _said(lm, {"until": [], "max_gen_toks": 12, "do_sample": False})
    assert [c.ids for c in made] != plain
    assert [c.ids for c in Engine(model, tokenizer, batch_size=5).complete(ids, settings, seed=1)] == [c.ids for c in drawn]


def test_an_unknown_option_is_named(lm: HFLM) -> None:
    with pytest.raises(T2Error, match="nonsense"):
        _engine(lm).complete([[1, 2]], GenerationSettings(4, options={"nonsense": 3}))


def test_several_end_tokens_end_an_answer_and_are_part_of_it(lm: HFLM) -> None:
    ids = lm.tok_encode(PROMPTS[0])
    free = _engine(lm).complete([ids], GenerationSettings(12))[0]
    made = _engine(lm).complete([ids], GenerationSettings(12, options={"eos_token_id": [free.ids[4], 3]}))[0]
    assert made.ids == free.ids[: free.ids.index(free.ids[4]) + 1] and made.stopped == "end"


# ---------------------------------------------------------------------- likelihoods
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_likelihoods_equal_lm_evals(lm: HFLM, batch_size: int) -> None:
    free = [completion.text for completion in _engine(lm).complete([lm.tok_encode(p) for p in PROMPTS], GenerationSettings(2))]
    continuations = [" x", " yes", " or", " 1234"]
    requests = [
        Instance("loglikelihood", {}, (p, c), 0, ("t", 0, 1)) for p, f in zip(PROMPTS, free, strict=True) for c in [*continuations, f]
    ]
    expected = lm.loglikelihood(requests, disable_tqdm=True)
    pairs = [[lm._encode_pair(p, c) for c in [*continuations, f]] for p, f in zip(PROMPTS, free, strict=True)]
    usage = Usage()
    found = _engine(lm, batch_size, usage=usage).loglikelihoods([each[0][0] for each in pairs], [[c for _, c in each] for each in pairs])
    flat = [each for row in found for each in row]
    assert [each.value for each in flat] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert [each.greedy for each in flat] == [bool(greedy) for _, greedy in expected]
    assert any(each.greedy for each in flat) and not all(each.greedy for each in flat)
    assert [each.tokens for each in flat] == [len(c) for each in pairs for _, c in each]
    assert usage.tokens == sum(len(each[0][0]) + sum(len(c) - 1 for _, c in each) for each in pairs)  # a prompt is read once


def test_a_shared_prefix_changes_nothing_but_the_tokens_read(lm: HFLM) -> None:
    shared = "All of the questions begin with these instructions. "
    prompts = [*(lm.tok_encode(shared + prompt) for prompt in PROMPTS), lm.tok_encode("another beginning")]
    labels = [[lm.tok_encode(" math"), lm.tok_encode(" q")] for _ in prompts]
    plain, reuse = Usage(), Usage()
    whole = _engine(lm, usage=plain).loglikelihoods(prompts, labels)
    behind = _engine(lm, usage=reuse).loglikelihoods(prompts, labels, prefix=lm.tok_encode(shared))
    assert [v.value for row in behind for v in row] == pytest.approx([v.value for row in whole for v in row], abs=1e-3)
    assert reuse.tokens == plain.tokens - (len(PROMPTS) - 1) * len(lm.tok_encode(shared))


def test_long_contexts_are_cut_as_lm_eval_cuts_them(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_model(max_position_embeddings=32), tiny_tokenizer()
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    contexts = ["x" + "long " * 20, "short", "another long one " * 3]
    requests = [Instance("loglikelihood", {}, (context, word), 0, ("t", 0, 1)) for context in contexts for word in (" a", " bcdefg")]
    expected = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    caplog.clear()
    engine = Engine(model, tokenizer, batch_size=2)
    pairs = [[engine.encode_pair(context, word) for word in (" a", " bcdefg")] for context in contexts]
    found = engine.loglikelihoods([each[0][0] for each in pairs], [[word for _, word in each] for each in pairs])
    assert [each.value for row in found for each in row] == pytest.approx(expected, abs=1e-3)
    engine.loglikelihoods([each[0][0] for each in pairs], [[word for _, word in each] for each in pairs])
    ours = [record.message for record in caplog.records if record.name.startswith("t2eval")]
    assert len(ours) == 1 and "4 of 6 contexts are too long" in ours[0]
    with pytest.raises(T2Error, match="has 33 tokens; the model can judge 1 to 32"):
        engine.loglikelihoods([[1]], [[[2] * 33]])


def test_choice_likelihoods_are_lm_evals(letters: Callable[[str], Environment]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    examples = letters("letters_choice").examples("validation", limit=5)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    engine = Engine(model, tokenizer, batch_size=7)
    pairs = [[engine.encode_pair(*request) for request in example.requests] for example in examples]
    found = engine.loglikelihoods([each[0][0] for each in pairs], [[c for _, c in each] for each in pairs])
    requests = [Instance("loglikelihood", {}, pair, 0) for example in examples for pair in example.requests]
    expected = lm.loglikelihood(requests, disable_tqdm=True)
    assert [one.value for each in found for one in each] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [one.greedy for each in found for one in each] == [bool(flag) for _, flag in expected]


# ---------------------------------------------------------------------- token ids
@pytest.mark.parametrize(
    ("context", "continuation"), [("q: ", "a"), ("q:", " a"), ("", "ab"), ("<bos>q", "a"), ("", "<bos>ab"), ("a\n\n", "b")]
)
def test_pairs_are_split_as_lm_eval_splits_them(context: str, continuation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    lm = HFLM(pretrained=tiny_model(), tokenizer=tokenizer, batch_size=1)
    seen: list[Any] = []
    monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda requests, **_named: seen.extend(requests) or [])
    lm.loglikelihood([Instance("loglikelihood", {}, (context, continuation), 0)], disable_tqdm=True)
    assert _engine(lm).encode_pair(context, continuation) == (seen[0][1], seen[0][2])


def test_no_room_for_a_prompt_is_refused_before_any_work_and_long_prompts_are_cut_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = tiny_model(max_position_embeddings=32), tiny_tokenizer()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    engine = Engine(model, tokenizer, batch_size=2)
    for tokens in (32, 80):
        with pytest.raises(T2Error, match=f"An answer may have {tokens} tokens, and the model's longest sequence has 32"):
            engine.complete([[1, 2, 3]], GenerationSettings(tokens))
    assert not calls
    long = "0123456789" * 5
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    wanted = lm.generate_until([Instance("generate_until", {}, (long, {"until": [], "max_gen_toks": 8}), 0)], disable_tqdm=True)
    caplog.clear()
    for _ in range(2):
        made = engine.complete([engine.encode(long), engine.encode("ab")], GenerationSettings(8))
    assert made[0].text == wanted[0] and made[0].prompt == engine.encode(long)[-24:] and made[1].prompt == engine.encode("ab")
    assert [record.message for record in caplog.records if "1 of 2 prompts are longer than the 24 tokens" in record.message] == [
        record.message for record in caplog.records if record.name.startswith("t2eval")
    ]
    assert "1 of 2 prompts" in caplog.text


# ---------------------------------------------------------------------- batches
def test_no_batch_is_larger_than_the_limit(lm: HFLM) -> None:
    seen: list[int] = []
    hook = lm.model.register_forward_pre_hook(lambda _m, _a, named: seen.append(len(named["input_ids"])), with_kwargs=True)
    for batch_size in (1, 2, 3):
        for static in (False, True):
            engine = _engine(lm, batch_size, static=static)
            ids = [engine.encode(prompt) for prompt in PROMPTS]
            seen.clear()
            engine.complete(ids, GenerationSettings(4).from_the_model_itself(), samples=4, seed=0)
            engine.loglikelihoods(ids, [[[1, 2], [3, 4], [5], [6, 7, 8]]] * len(ids), prefix=ids[0][:1])
            assert max(seen) == batch_size
    hook.remove()
    with pytest.raises(T2Error, match="batch_size is 0"):
        _engine(lm, 0)


def test_scope_names_the_sequences_that_run(lm: HFLM) -> None:
    seen: list[list[int]] = []

    @contextlib.contextmanager
    def scope(sequences: list[int]) -> Iterator[None]:
        seen.append(list(sequences))
        yield

    for static in (False, True):
        seen.clear()
        engine = _engine(lm, 3, static=static)
        engine.complete([engine.encode(prompt) for prompt in PROMPTS], GenerationSettings(8, ("e",)), scope=scope)
        assert sorted(seen[0]) == [0, 2, 4] and all(len(sequences) <= 3 for sequences in seen)
        assert {sequence for sequences in seen for sequence in sequences} == set(range(5))


@pytest.mark.parametrize("static", [False, True])
def test_each_sequence_has_its_own_z(static: bool, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    adapted = attach(model, cache_dir=tmp_path)
    adapted.set_z(None)
    generator = torch.Generator().manual_seed(0)
    each = [{path: 1 + 0.4 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()} for _ in PROMPTS]
    engine = Engine(model, tokenizer, batch_size=4, static=static)
    ids = [engine.encode(prompt) for prompt in PROMPTS]

    def scope(sequences: list[int]) -> Any:
        return adapted.per_sequence({path: torch.stack([each[sequence][path] for sequence in sequences]) for path in each[0]})

    together = engine.complete(ids, GenerationSettings(10, ("e",)), scope=scope)
    scored = engine.loglikelihoods(ids, [[[1, 2, 3], [4]]] * len(ids), scope=scope)
    for prompt, z, made, values in zip(ids, each, together, scored, strict=True):
        with adapted.merged(z):
            alone = engine.complete([prompt], GenerationSettings(10, ("e",)))[0]
            likely = engine.loglikelihoods([prompt], [[[1, 2, 3], [4]]])[0]
        assert made.ids == alone.ids and made.log_probs == pytest.approx(alone.log_probs, abs=1e-3)
        assert [one.value for one in values] == pytest.approx([one.value for one in likely], abs=1e-3)


def test_settings_are_read_as_lm_eval_reads_them() -> None:
    read = GenerationSettings.from_gen_kwargs
    assert read({}, 256) == GenerationSettings(256)
    assert read({"until": "x", "max_tokens": 7, "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}, 256) == GenerationSettings(
        5, ("x",)
    )
    assert read({"until": ["x", "y"], "temperature": 0.5, "top_k": 3}, 9) == GenerationSettings(
        9, ("x", "y"), do_sample=True, temperature=0.5, options={"top_k": 3}
    )
    assert read({"do_sample": False, "temperature": 0.5}, 9) == GenerationSettings(9)
    assert read({}, 9, "257").think_end_token == 257 and read({}, 9, "</think>").think_end_token == "</think>"
    with pytest.raises(UsageError, match="do_sample=true with temperature=0"):
        read({"do_sample": True}, 9)
    with pytest.raises(UsageError, match="max_length=50 counts the prompt too"):
        read({"max_length": 50}, 9)
    with pytest.raises(UsageError, match="at least 1 token"):
        read({"max_gen_toks": 0}, 9)
