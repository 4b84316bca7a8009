"""Sampling: draws that depend on seed, sequence and position alone, from the right distribution, and what crosses to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2eval.errors import T2Error
from t2eval.generation import static as static_decoding
from t2eval.generation.draws import drawn, uniforms
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.generation.usage import Usage
from tests.generation.architectures import architecture
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45, 46], [70, 71, 72], [90]]
ITSELF = GenerationSettings(9).from_the_model_itself()


def _engine(model: Any = None, batch_size: int = 4, **named: Any) -> Engine:
    return Engine(model or tiny_model(), tiny_tokenizer(), batch_size=batch_size, **named)


def test_uniforms_are_known_by_seed_sequence_and_position() -> None:
    whole = uniforms(3, range(500), 200)
    assert whole.dtype == torch.float64 and whole.shape == (500, 200)
    assert torch.equal(uniforms(3, [7, 490], 50), whole[[7, 490], :50])
    assert not torch.equal(uniforms(4, range(500), 200), whole)
    assert whole.min() >= 0 and whole.max() < 1 and len(np.unique(whole)) == whole.numel()
    counts = torch.histc(whole.float(), 20, 0, 1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi squared, 19 degrees of freedom: p = .0007
    for one, other in ((whole[:, :-1], whole[:, 1:]), (whole[:-1], whole[1:]), (uniforms(4, range(500), 200), whole)):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.015


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**40), spread=st.floats(0, 60), uniform=st.sampled_from([0.0, 0.3, 0.999999, 1 - 2**-53]))
def test_a_token_without_probability_is_never_drawn(seed: int, spread: float, uniform: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, 40, generator=generator) * spread
    scores[:, torch.randint(0, 40, (15,), generator=generator)] = -torch.inf
    scores[0, -3:], scores[1, :3], scores[1, 20] = -torch.inf, -torch.inf, 0.0
    log_probs = scores.log_softmax(-1)
    token = drawn(log_probs, torch.full((5,), uniform, dtype=torch.float64))
    assert (log_probs.gather(1, token[:, None]).exp() > 0).all()
    below = torch.stack([log_probs[row, : token[row]].double().exp().sum() for row in range(5)])
    upto = torch.stack([log_probs[row, : token[row] + 1].double().exp().sum() for row in range(5)])
    assert (below <= uniform + 1e-6).all() and (upto >= uniform - 1e-6).all()


@pytest.mark.parametrize(
    ("name", "static"),
    [*((name, False) for name in ("llama", "gpt2", "mistral-window", "mamba", "rwkv", "falcon")), ("llama", True), ("gpt2", True)],
)
def test_draws_are_the_same_in_any_batch_and_by_any_way(name: str, static: bool) -> None:
    model = architecture(name)
    one = _engine(model, 1).complete(PROMPTS, ITSELF, samples=3, seed=7)
    assert len({tuple(completion.ids) for completion in one[3:6]}) == 3, "samples of one prompt should differ"
    assert [completion.prompt for completion in one] == [prompt for prompt in PROMPTS for _ in range(3)]
    for batch_size in (2, 5, 12):
        engine = _engine(model, batch_size, static=static)
        many = engine.complete(PROMPTS, ITSELF, samples=3, seed=7)
        assert [completion.ids for completion in many] == [completion.ids for completion in one]
        for first, other in zip(one, many, strict=True):
            assert first.log_probs == pytest.approx(other.log_probs, abs=1e-4) and first.stopped == other.stopped
        part = engine.complete(PROMPTS[2:], ITSELF, samples=3, seed=7, first=2)
        assert [completion.ids for completion in part] == [completion.ids for completion in one[6:]]
        turned = engine.complete(PROMPTS[::-1], ITSELF, samples=3, seed=7, first=[3, 2, 1, 0])
        assert sorted(completion.ids for completion in turned) == sorted(completion.ids for completion in one)
    assert [c.ids for c in _engine(model, 5).complete(PROMPTS, ITSELF, samples=3, seed=8)] != [c.ids for c in one]


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 3}, {"top_p": 0.6, "top_k": 0}, {"min_p": 0.2, "top_k": 0}, {"repetition_penalty": 1.5, "top_k": 0}],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("static", [False, True])
def test_sampling_follows_the_distribution_that_generate_would_draw_from(options: dict[str, Any], static: bool) -> None:
    model = tiny_model()
    settings = GenerationSettings(1, do_sample=True, temperature=2.0, options=options)
    made = _engine(model, 2000, static=static).complete([PROMPTS[1]], settings, samples=2000, seed=0)
    with torch.no_grad():
        out = model.generate(
            torch.tensor([PROMPTS[1]]),
            attention_mask=torch.ones(1, len(PROMPTS[1])),
            max_new_tokens=1,
            do_sample=True,
            temperature=2.0,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    wanted = out.scores[0][0].softmax(-1)
    counts = torch.bincount(torch.tensor([completion.ids[0] for completion in made]), minlength=len(wanted)) / 2000
    assert (counts - wanted).abs().max() < 5 * (0.25 / 2000) ** 0.5 and not counts[wanted == 0].any()
    assert (counts > 0).sum() > 2
    for completion in made[:20]:
        assert completion.log_probs[0] == pytest.approx(wanted[completion.ids[0]].log().item(), abs=1e-4)


def test_log_probs_are_of_the_distribution_that_was_drawn_from() -> None:
    model = tiny_model()
    made = _engine(model).complete(PROMPTS, GenerationSettings(9).from_the_model_itself(0.7), seed=3)
    for completion in made:
        with torch.no_grad():
            logits = model(torch.tensor([completion.prompt + completion.ids])).logits[0, len(completion.prompt) - 1 : -1] / 0.7
        wanted = logits.log_softmax(-1)[range(len(completion.ids)), completion.ids]
        assert completion.log_probs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_samples_of_a_prompt_share_its_prefill() -> None:
    model, shapes, usage = tiny_model(), [], Usage()
    model.register_forward_pre_hook(lambda _m, _a, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True)
    made = _engine(model, 12, usage=usage).complete(PROMPTS, ITSELF, samples=3, seed=7)
    assert shapes[0] == (4, 7) and all(width == 1 for _, width in shapes[1:]) and shapes[1][0] > 8
    assert usage.tokens == sum(map(len, PROMPTS)) + sum(len(completion.ids) for completion in made)


@pytest.mark.parametrize("static", [False, True])
def test_nothing_of_the_vocabulary_s_size_goes_to_the_host(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    for name in ("tolist", "numpy", "item"):
        plain = getattr(torch.Tensor, name)

        def spy(self: torch.Tensor, *rest: Any, plain: Any = plain, **named: Any) -> Any:
            sizes.append(self.numel())
            return plain(self, *rest, **named)

        monkeypatch.setattr(torch.Tensor, name, spy)
    _engine(batch_size=4, static=static).complete(PROMPTS, ITSELF, seed=7)
    assert sizes and max(sizes) <= 2 * 4 * 4  # ids and log-probabilities of four sequences, in static buffers of four steps
    steps = [size for size in sizes if size > 1]
    assert len(steps) <= ITSELF.max_new_tokens + 2


def test_sampling_needs_a_seed_and_finite_logits() -> None:
    with pytest.raises(T2Error, match="needs a seed"):
        _engine().complete(PROMPTS, ITSELF)
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    for static in (False, True):
        with pytest.raises(T2Error, match="logits that are not finite"):
            _engine(model, static=static).complete(PROMPTS, ITSELF, seed=1)


def test_static_windows_widen_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wanted = tiny_model(), GenerationSettings(40, do_sample=True)
    expected = _engine(model, static=False).complete(PROMPTS, wanted, seed=3)
    widths: set[int] = set()
    step = static_decoding._Steps.step

    def noted(steps: static_decoding._Steps) -> None:
        widths.add(steps.window)
        step(steps)

    monkeypatch.setattr(static_decoding, "_WINDOW", 8)
    monkeypatch.setattr(static_decoding._Steps, "step", noted)
    found = _engine(model, static=True).complete(PROMPTS, wanted, seed=3)
    assert len(widths) > 3
    assert [each.ids for each in found] == [each.ids for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
