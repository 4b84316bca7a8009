"""Continuations of one prompt side by side behind its cache: the likelihoods of sequences of their own, and which models take it."""

from __future__ import annotations

import pytest

from t2eval.generation import likelihoods
from t2eval.generation.engine import Engine
from tests.generation.architectures import architecture
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(("name", "side_by_side"), [("llama", True), ("gpt2", True), ("bloom", False), ("gpt_neo-local", False)])
def test_continuations_stand_side_by_side_where_a_model_takes_the_mask(name: str, side_by_side: bool) -> None:
    """Contexts of unlike lengths; a continuation of one token beside longer ones; more of them than a batch has room for."""
    model = architecture(name)
    prompts = [[5, 6, 7], [40, 41, 42, 43, 44], [70, 71]]
    continuations = [[[9, 8, 7], [4], [9, 3, 2, 1]], [[11]], [[12, 13], [14, 15, 16]]]
    engine, spread = (Engine(model, tiny_tokenizer(), batch_size=3, max_length=128) for _ in range(2))
    assert engine.decoder.packs is side_by_side
    spread.decoder.packs = False
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        behind = engine.decoder.behind
        patch.setattr(engine.decoder, "behind", lambda *given: calls.append(len(given[0])) or behind(*given))
        found = engine.loglikelihoods(prompts, continuations)
    assert calls == ([3] if side_by_side else [3, 1])  # three prompts once; or four continuations by threes
    for one, other in zip(found, spread.loglikelihoods(prompts, continuations), strict=True):
        assert [each.value for each in one] == pytest.approx([each.value for each in other], abs=1e-4)
        assert [(each.greedy, each.tokens) for each in one] == [(each.greedy, each.tokens) for each in other]


def test_few_continuations_side_by_side_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many tokens stand side by side, a part of the prompts is read at a time."""
    monkeypatch.setattr(likelihoods, "_WIDTH", 2)
    model = architecture("llama")
    engine, spread = (Engine(model, tiny_tokenizer(), batch_size=3, max_length=128) for _ in range(2))
    spread.decoder.packs = False
    prompts, continuations = [[5, 6, 7], [40, 41, 42], [70, 71]], [[[9, 8, 7], [4, 5, 6]], [[11], [12]], [[12, 13], [14, 15, 16]]]
    one, other = (each.loglikelihoods(prompts, continuations) for each in (engine, spread))
    assert [v.value for row in one for v in row] == pytest.approx([v.value for row in other for v in row], abs=1e-4)


def test_a_prompt_that_fills_the_window_beside_one_with_longer_continuations() -> None:
    """Learned positions end with the window: the cells behind the full prompt, which only fill the batch, are not beyond it."""
    model = architecture("gpt2")
    window = int(model.config.max_position_embeddings)
    prompts = [[5 + place % 40 for place in range(length)] for length in (window, window - 4, window - 4)]
    continuations = [[[9], [8]], [[7, 6, 5], [4, 3]], [[2, 3], [4, 5, 6, 7]]]
    engine, spread = (Engine(model, tiny_tokenizer(), batch_size=3, max_length=window) for _ in range(2))
    assert engine.decoder.packs
    spread.decoder.packs = False
    one, other = (each.loglikelihoods(prompts, continuations) for each in (engine, spread))
    assert [v.value for row in one for v in row] == pytest.approx([v.value for row in other for v in row], abs=1e-4)
