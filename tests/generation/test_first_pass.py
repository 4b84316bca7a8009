"""The batched primitives against lm-eval's own answers on the same model."""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from t2eval.generation.first_pass import Meter, Runner
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["one and two", "a", "what is it that we want to know here?", "short", "a b c d"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def lm(request: pytest.FixtureRequest) -> HFLM:
    return HFLM(pretrained=tiny_model(request.param), tokenizer=tiny_tokenizer(), batch_size=1)


def _runner(lm: HFLM, rows: int) -> Runner:
    return Runner(lm.model, lm.tokenizer, Meter(), rows)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_likelihoods_equal_lm_evals(lm: HFLM, rows: int) -> None:
    continuations = [" x", " yes", " or", " 1234"]
    requests = [Instance("loglikelihood", {}, (p, c), 0, ("t", 0, 1)) for p in PROMPTS for c in continuations]
    expected = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    ids = [[lm._encode_pair(p, c)[1] for c in continuations] for p in PROMPTS]
    found = _runner(lm, rows).loglikelihoods([lm.tok_encode(p) for p in PROMPTS], ids)
    assert [value for row in found for value in row] == pytest.approx(expected, abs=1e-3)


def test_a_cached_prefix_changes_nothing_but_the_tokens_read(lm: HFLM) -> None:
    shared = "All of the questions begin with these instructions. "
    prompts = [lm.tok_encode(shared + p) for p in PROMPTS]
    labels = [[lm.tok_encode(" math"), lm.tok_encode(" q")] for _ in PROMPTS]
    plain, reuse = _runner(lm, 4), _runner(lm, 4)
    whole = plain.loglikelihoods(prompts, labels)
    behind = reuse.after_prefix(reuse.prefix(lm.tok_encode(shared)), prompts, labels)
    assert [v for row in behind for v in row] == pytest.approx([v for row in whole for v in row], abs=1e-3)
    assert reuse.meter.tokens == plain.meter.tokens - (len(PROMPTS) - 1) * len(lm.tok_encode(shared))


def test_greedy_answers_equal_lm_evals(lm: HFLM) -> None:
    settings = {"until": ["e", "zz"], "max_gen_toks": 24, "do_sample": False}
    requests = [Instance("generate_until", {}, (p, dict(settings)), 0, ("t", 0, 1)) for p in PROMPTS]
    expected = lm.generate_until(requests, disable_tqdm=True)
    answers = _runner(lm, 4).generate([lm.tok_encode(p) for p in PROMPTS], ["e", "zz"], 24)
    assert [answer.text for answer in answers] == expected
    assert all(0 < answer.tokens <= 24 and answer.loglikelihood < 0 for answer in answers)


def test_scope_is_told_which_rows_run(lm: HFLM) -> None:
    import contextlib

    seen: list[list[int]] = []

    @contextlib.contextmanager
    def scope(rows: list[int]):  # type: ignore[no-untyped-def]
        seen.append(list(rows))
        yield

    _runner(lm, 3).generate([lm.tok_encode(p) for p in PROMPTS], ["e"], 8, scope)
    assert sorted(seen[0]) == [0, 2, 4] and all(len(rows) <= 3 for rows in seen)
    assert {row for rows in seen for row in rows} == set(range(5))
