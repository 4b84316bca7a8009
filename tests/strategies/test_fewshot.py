"""Few-shot: ties, coefficients, the search's end, and candidates evaluated together as they would be one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from t2eval.environment.environment import Example
from t2eval.errors import T2Error, UsageError
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.models.options import FewshotOptions
from t2eval.strategies import fewshot
from t2eval.strategies.alpha import Coefficients
from t2eval.strategies.fewshot import Candidates, FewshotConfig, Outcome, Ranks, adapt, rank
from t2eval.strategies.search import SearchConfig
from t2eval.strategies.search.registry import search_class
from t2eval.svf.attachment import attach
from tests.tiny import tiny_model, tiny_tokenizer


def test_ties_compare_only_what_all_tied_candidates_got_right() -> None:
    easy_only = Outcome((1, 0, 1), own=(-0.1, -9.0, -5.0), reference=(-9.0, -9.0, -9.0))
    other = Outcome((1, 1, 0), own=(-0.2, -0.01, -0.01), reference=(-1.0, -1.0, -1.0))
    better = Outcome((1, 1, 1), own=(-50.0, -50.0, -50.0), reference=(-99.0,) * 3)
    nothing = Outcome((0, 0, 0), own=(-0.0, -0.0, -0.0), reference=(0.0,) * 3)
    assert rank([nothing, other, easy_only, better]) == [3, 2, 1, 0]
    assert rank([nothing, other, easy_only, better], "reference") == [3, 1, 2, 0]
    assert rank([nothing, nothing, nothing]) == [0, 1, 2]


def _scales() -> list[dict[str, torch.Tensor]]:
    random = np.random.default_rng(0)
    paths = ["model.layers.0.q", "model.layers.1.q", "model.layers.1.up"]
    return [{path: torch.tensor(random.uniform(0.5, 1.5, 4), dtype=torch.float32) for path in paths} for _ in range(2)]


def test_coefficients_mean_what_the_paper_says() -> None:
    one, two = _scales()
    path = "model.layers.1.up"
    task = Coefficients([one, two])
    assert task.dimensions == 2 and torch.allclose(task.z(np.array([0.3, 0.9]))[path], 0.3 * one[path] + 0.9 * two[path])
    norm = Coefficients([one, two], normalize=True)
    assert torch.allclose(norm.z(np.array([0.3, 0.9]))[path], 0.25 * one[path] + 0.75 * two[path])
    assert norm.alphas(np.zeros(2)).tolist() == [0.5, 0.5]
    layer = Coefficients([one, two], "layer", form="offset")
    z = layer.z(np.array([1.0, 0.0, 0.0, 0.5]))
    assert layer.dimensions == 4 and torch.allclose(z["model.layers.0.q"], one["model.layers.0.q"])
    assert torch.allclose(z[path], 1 + 0.5 * (two[path] - 1)) and layer.groups == ["0", "1"]
    matrix = Coefficients([one, two], "matrix")
    vector = np.array([1.0, 0.0, 0.5, 0.5, 0.2, 0.7])
    assert matrix.groups == matrix.paths == sorted(one) and matrix.dimensions == 6 and matrix.alphas(vector).shape == (3, 2)
    for row, path in enumerate(matrix.groups):
        a, b = vector[2 * row : 2 * row + 2]
        assert torch.allclose(matrix.z(vector)[path], a * one[path] + b * two[path])
    assert np.allclose(Coefficients([one, two], "matrix", normalize=True).alphas(vector).sum(axis=1), 1)


def _peak(vectors: Sequence[np.ndarray]) -> list[Outcome]:
    """Right where α is near (0.9, 0.2): one example asks for it loosely, one tightly."""
    found = []
    for vector in vectors:
        distance = float(np.abs(vector - np.array([0.9, 0.2])).max())
        found.append(Outcome((float(distance < 0.4), float(distance < 0.15)), (-distance, -distance)))
    return found


def test_search_ends_at_the_peak_and_counts_each_candidate_once() -> None:
    seen: list[bytes] = []

    def evaluate(vectors: Sequence[np.ndarray]) -> list[Outcome]:
        seen.extend(vector.tobytes() for vector in vectors)
        return _peak(vectors)

    found = adapt(Coefficients(_scales()), evaluate, FewshotConfig(search=SearchConfig.paper(seed=1)))
    assert found.score == 1.0 and np.abs(np.array(found.alphas) - [0.9, 0.2]).max() < 0.1
    assert found.evaluations == len(seen) == len(set(seen))
    assert found.converged and found.iterations < 100 and found.history == sorted(found.history)


def test_the_end_takes_the_better_of_mean_and_best() -> None:
    def ridge(vectors: Sequence[np.ndarray]) -> list[Outcome]:
        return [Outcome((float(min(abs(v[0] - 0.1), abs(v[0] - 0.9)) < 0.1),), (0.0,)) for v in vectors]  # the mean falls between

    search = SearchConfig(population=16, elites=8, iterations=1, seed=0)
    chosen = {
        choose: adapt(Coefficients(_scales()), ridge, FewshotConfig(search=search, choose=choose)) for choose in ("auto", "mean", "best")
    }
    assert chosen["mean"].score == 0.0 and chosen["best"].score == 1.0
    assert chosen["auto"].chosen == "best" and chosen["auto"].score == 1.0


def test_ranks_divide_the_population_and_agree() -> None:
    """Two ranks in lockstep: each evaluates its half, both end with what one alone finds."""
    import threading

    config = FewshotConfig(search=SearchConfig(population=9, iterations=6, seed=3))
    alone = adapt(Coefficients(_scales()), _peak, config)
    barrier, shared, results, counts = threading.Barrier(2), [None, None], [None, None], [0, 0]

    def run(rank_: int) -> None:
        def gather(thing: Any) -> list[Any]:
            shared[rank_] = thing
            barrier.wait()
            both = list(shared)
            barrier.wait()
            return both

        def evaluate(vectors: Sequence[np.ndarray]) -> list[Outcome]:
            counts[rank_] += len(vectors)
            return _peak(vectors)

        results[rank_] = adapt(Coefficients(_scales()), evaluate, config, Ranks(rank_, 2, gather))  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert results[0].alphas == results[1].alphas == alone.alphas  # type: ignore[attr-defined]
    assert sum(counts) == alone.evaluations and min(counts) > 0.3 * alone.evaluations


class _Exact:
    """An environment whose right answers are given."""

    higher_is_better, generation_kwargs, max_new_tokens = True, {"until": ["\n"]}, 5

    def __init__(self, kind: str, targets: dict[str, str]) -> None:
        self.kind, self.targets, self.scored = kind, targets, 0

    def score_many(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        self.scored += len(pairs)
        return [float(self.targets[example.key] == text) for example, text in pairs]

    def score_choice(self, example: Example, values: Sequence[float], greedy: Sequence[bool]) -> float:
        return float(int(np.argmax(values)) == example.gold)


def _examples(choices: bool) -> list[Example]:
    texts = ["one plus two is", "q", "who can fly? a bird or a stone"]
    found = []
    for index, text in enumerate(texts):
        key = hashlib.sha256(text.encode()).hexdigest()
        requests = ((text, " yes"), (text, " no")) if choices else ()
        named = ("yes", "no") if choices else None
        found.append(Example("t", "v", index, {}, text, "yes", named, 0 if choices else None, key, " yes", requests))
    return found


@pytest.mark.parametrize("kind", ["generate", "choice"])
@pytest.mark.parametrize("ties", ["own", "reference"])
def test_candidates_together_equal_candidates_one_by_one(kind: str, ties: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    lm = HFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), batch_size=1)
    adapted = attach(lm.model, cache_dir=tmp_path)
    adapted.set_z(None)
    generator = torch.Generator().manual_seed(0)
    scales = [{path: 1 + 0.4 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()} for _ in range(2)]
    examples = _examples(kind == "choice")
    engine = Engine(lm.model, lm.tokenizer, batch_size=4)
    with adapted.merged(scales[0]):
        answers = engine.complete([lm.tok_encode(example.prompt) for example in examples], GenerationSettings(5, ("\n",)))
    environment = _Exact(kind, {example.key: answer.text for example, answer in zip(examples, answers, strict=True)})
    vectors = [np.array(each) for each in ([1.0, 0.0], [0.0, 1.0], [0.4, 0.6], [0.0, 0.0], [0.9999, 0.0])]
    found = {}
    for merged in (True, False):
        monkeypatch.setattr(fewshot, "together_is_cheaper", lambda *_a, merged=merged, **_k: not merged)
        candidates = Candidates(adapted, engine, environment, examples, Coefficients(scales), None, ties)  # type: ignore[arg-type]
        found[merged] = candidates(vectors)
    for one, other in zip(found[True], found[False], strict=True):
        assert one.scores == other.scores
        assert one.own == pytest.approx(other.own, abs=1e-3) and one.reference == pytest.approx(other.reference, abs=1e-3)
        assert len(one.reference) == (3 if ties == "reference" else 0)
    if kind == "generate":
        assert found[True][0].score == 1.0 and found[True][1].score < 1.0
        assert environment.scored < 2 * 5 * 3  # the same answer to the same example is scored once


def _graded(settings: GenerationSettings, tmp_path: Path, **changes: Any) -> list[str]:
    """What is graded of the answers of one candidate, z' = 1."""
    model = tiny_model(**changes)
    adapted = attach(model, cache_dir=tmp_path)
    adapted.set_z(None)
    seen: dict[str, str] = {}

    class Grading(_Exact):
        def score_many(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
            seen.update((example.key, text) for example, text in pairs)
            return super().score_many(pairs)

    examples = _examples(choices=False)
    environment = Grading("generate", {example.key: "" for example in examples})
    ones = {path: torch.ones(basis.rank) for path, basis in adapted.bases.items()}
    engine = Engine(model, tiny_tokenizer(), batch_size=2)
    Candidates(adapted, engine, environment, examples, Coefficients([ones]), settings)([np.ones(1)])  # type: ignore[arg-type]
    return [seen[example.key] for example in examples]


def test_candidates_answer_by_the_settings_that_lm_eval_was_given_and_without_thoughts(tmp_path: Path) -> None:
    plain = _graded(GenerationSettings(12), tmp_path)
    lm = HFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), batch_size=1, think_end_token=plain[0][3:5])
    options = {"repetition_penalty": 1.8, "max_gen_toks": 12, "until": [plain[1][6]], "do_sample": False}
    requests = [Instance("generate_until", {}, (example.prompt, dict(options)), 0) for example in _examples(choices=False)]
    settings = GenerationSettings.from_gen_kwargs(options, 256, plain[0][3:5])
    assert _graded(settings, tmp_path) == lm.generate_until(requests, disable_tqdm=True) != plain


def test_a_search_without_room_for_its_prompts_is_refused_before_any_candidate(tmp_path: Path) -> None:
    with pytest.raises(T2Error, match="no room is left for the prompt"):
        _graded(GenerationSettings(16), tmp_path, max_position_embeddings=16)


@pytest.mark.parametrize("search", ["cem", "cmaes", "random"])
def test_the_options_of_few_shot_refuse_a_population_that_the_search_cannot_use(search: str) -> None:
    smallest = search_class(search).smallest_population
    assert FewshotOptions(search=search, population=smallest).config(2).search.population == smallest
    with pytest.raises((UsageError, ValueError), match="too small|greater than or equal to 2"):
        FewshotOptions(search=search, population=smallest - 1).config(2)


def test_config_refuses_unknown_keys() -> None:
    with pytest.raises(ValueError, match="extra"):
        FewshotConfig(shot=3)  # type: ignore[call-arg]
    assert SimpleNamespace(**FewshotConfig().model_dump()).shots == 10
