"""Few-shot: α by search on a task's adaptation examples (the paper's section 3.2, third strategy).

A candidate α is scored by the task's own main metric over the adaptation examples, answered greedily with z' = Σ α_k z_k. Ties are
broken by the likelihood of the answers that the tied candidates gave.

Deviations from the paper:
1. Ties compare the mean log-likelihood, per token, over the examples that *all* tied candidates got right. The implementation
   compares different subsets, and ranks a candidate without a right answer above any other. `ties=reference` takes the likelihood
   of the reference answers instead.
2. The α that is used at the end is the mean of the last elites (the paper's "end of optimisation") or the best candidate seen,
   whichever scores better on the adaptation examples; the mean is evaluated as one more candidate. `choose=mean` is the paper's.
3. A search stops early when it has converged and its elites tie.
4. α is divided by its sum unless `normalize=False`, which the paper has: on validation tasks the search then finds as good a mix with
   fewer candidates (docs/notes.md). `paper()` is free.

How a vector of coefficients becomes z' is in `alpha.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from t2eval.environment.environment import Environment, Example
from t2eval.generation.completion import Likelihood
from t2eval.generation.engine import Engine, SequenceScope, everywhere
from t2eval.generation.settings import GenerationSettings
from t2eval.strategies.alpha import Coefficients, Form, Granularity
from t2eval.strategies.search import Array, SearchConfig, start_search
from t2eval.svf.cost import Work, together_is_cheaper
from t2eval.svf.hooks import SequencesUnseen
from t2eval.vision.features import Features

_SAME = 9
"""Decimals to which two scores are the same."""


class FewshotConfig(BaseModel):
    """What the few-shot strategy needs to know besides the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: int = Field(default=10, ge=1)
    granularity: Granularity = "task"
    normalize: bool = True
    hierarchy: bool = False
    ties: Literal["own", "reference"] = "own"
    choose: Literal["auto", "mean", "best"] = "auto"
    form: Form = "paper"
    search: SearchConfig = SearchConfig()

    @classmethod
    def paper(cls, seed: int = 0) -> FewshotConfig:
        """Ten examples, one free α an expert, the cross-entropy method with the paper's budget, and the mean of its end."""
        return cls(shots=10, granularity="task", normalize=False, form="paper", choose="mean", search=SearchConfig.paper(seed))


@dataclass(frozen=True)
class Outcome:
    """How one candidate did: a score an example (higher is better), its own answers' and the reference answers' log-likelihoods."""

    scores: tuple[float, ...]
    own: tuple[float, ...]
    reference: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


Evaluate = Callable[[Sequence[Array]], list[Outcome]]


def rank(outcomes: Sequence[Outcome], ties: Literal["own", "reference"] = "own") -> list[int]:
    """The candidates from best to worst.

    Args:
        outcomes: one a candidate, over the same examples.
        ties: `own` compares the likelihood of the tied candidates' own answers over the examples that all of them got right;
            `reference` that of the reference answers over all examples.

    Returns:
        Indices into `outcomes`; candidates that are still equal keep their order.
    """
    groups: dict[float, list[int]] = {}
    for index, outcome in enumerate(outcomes):
        groups.setdefault(round(outcome.score, _SAME), []).append(index)
    order: list[int] = []
    for score in sorted(groups, reverse=True):
        group = groups[score]
        if ties == "reference":
            keys = {index: math.fsum(outcomes[index].reference) for index in group}
        else:
            common = [s for s in range(len(outcomes[group[0]].scores)) if all(outcomes[index].scores[s] > 0 for index in group)]
            keys = {index: math.fsum(outcomes[index].own[s] for s in common) for index in group}
        order.extend(sorted(group, key=lambda index: -keys[index]))
    return order


@dataclass
class Ranks:
    """The processes that share a search: `gather` gives every rank the list of all ranks' objects."""

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = field(default=lambda thing: [thing])


@dataclass(frozen=True)
class Adaptation:
    """The result of a search: α, and what led to it."""

    alphas: list[float] | list[list[float]]
    z: dict[str, Tensor]
    score: float
    evaluations: int
    iterations: int
    converged: bool
    chosen: Literal["mean", "best"]
    history: list[float]


def adapt(
    coefficients: Coefficients,
    evaluate: Evaluate,
    config: FewshotConfig,
    ranks: Ranks | None = None,
    progress: Callable[[int, float], None] = lambda _iteration, _score: None,
) -> Adaptation:
    """Search α.

    Args:
        coefficients: what a candidate means.
        evaluate: outcomes of candidates, each over the same adaptation examples.
        config: search settings, ties, and which α is taken at the end.
        ranks: the processes among which each population is divided; all end with the same α.
        progress: called after each iteration with its number and the best score so far.
    """
    search = start_search(coefficients.dimensions, len(coefficients.scales), config.search)
    judge = _Judge(evaluate, ranks or Ranks())
    history: list[float] = []
    best: Array | None = None
    tied = False
    for iteration in range(config.search.iterations):
        population = search.ask()
        outcomes = judge(list(population))
        order = rank(outcomes, config.ties)
        if best is None or rank([judge([best])[0], outcomes[order[0]]], config.ties)[0] == 1:
            best = population[order[0]].copy()
        search.tell(population, order)
        history.append(round(judge([best])[0].score, 6))
        progress(iteration + 1, history[-1])
        elites = [outcomes[row].score for row in order[: max(2, len(order) // 4)]]
        tied = round(max(elites) - min(elites), _SAME) == 0
        if search.converged and tied:
            break
    assert best is not None
    pair = [search.mean, best]
    found = judge(pair)
    winner = {"mean": 0, "best": 1}.get(config.choose, rank(found, config.ties)[0])
    return Adaptation(
        alphas=[np.round(row, 6).tolist() for row in coefficients.alphas(pair[winner])],
        z=coefficients.z(pair[winner]),
        score=found[winner].score,
        evaluations=judge.evaluations,
        iterations=len(history),
        converged=search.converged and tied,
        chosen="mean" if winner == 0 else "best",
        history=history,
    )


class _Judge:
    """Outcomes of candidates: each distinct candidate is evaluated once, on one rank."""

    def __init__(self, evaluate: Evaluate, ranks: Ranks) -> None:
        self._evaluate, self._ranks = evaluate, ranks
        self._known: dict[bytes, Outcome] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def __call__(self, candidates: Sequence[Array]) -> list[Outcome]:
        keys = [np.round(candidate, 12).tobytes() for candidate in candidates]
        new = {key: candidate for key, candidate in zip(keys, candidates, strict=True) if key not in self._known}
        mine = list(new.items())[self._ranks.rank :: self._ranks.size]
        if new:
            found = self._evaluate([candidate for _, candidate in mine]) if mine else []
            for part in self._ranks.gather([(key, outcome) for (key, _), outcome in zip(mine, found, strict=True)]):
                self._known.update(part)
        return [self._known[key] for key in keys]


# ---------------------------------------------------------------------- candidates on a model
class Candidates:
    """Evaluates candidates of one task on a model: many at once in a batch, each sequence under its own z', or one after the other merged.

    Args:
        adapted: the model with its adapted matrices (`t2eval.svf.adapted.Adapted`).
        engine: the same model, for batches.
        environment: the task.
        examples: the adaptation examples.
        coefficients: what a candidate means.
        settings: how generated answers are made; None: as the environment's task has it.
        ties: whether reference answers' likelihoods are wanted.
        mergeable: False where weights cannot be replaced (quantised ones).
        together: False where candidates cannot share a batch (mixes of PEFT adapters): one after the other, through `adapted.fast`.
    """

    def __init__(
        self,
        adapted: Any,
        engine: Engine,
        environment: Environment,
        examples: Sequence[Example],
        coefficients: Coefficients,
        settings: GenerationSettings | None = None,
        ties: Literal["own", "reference"] = "own",
        *,
        mergeable: bool = True,
        together: bool = True,
    ) -> None:
        self._adapted, self._engine, self._environment = adapted, engine, environment
        self._examples, self._coefficients, self._ties, self._mergeable = list(examples), coefficients, ties, mergeable
        self._together = together
        self._scores: dict[tuple[str, str], float] = {}
        self._sign = 1.0 if environment.higher_is_better else -1.0
        self._chooses = environment.kind == "choice"
        self._settings = settings
        if settings is None and not self._chooses:
            self._settings = GenerationSettings.from_gen_kwargs(environment.generation_kwargs, environment.max_new_tokens)
        read = [self._read(example.prompt, example) for example in self._examples]
        self._prompts, self._features = [ids for ids, _ in read], [features for _, features in read]
        if self._settings is not None:
            self._prompts = engine.fit(self._prompts, self._settings, self._features)  # refuses before any work
        wanted = [list(example.requests) if self._chooses else [(example.prompt, example.answer or " ")] for example in self._examples]
        self._pairs = [[engine.encode_pair(context, text) for context, text in each] for each in wanted]

    def _read(self, text: str, example: Example) -> tuple[list[int], Features | None]:
        """A prompt, and its images' features: computed here, once for all candidates."""
        if self._engine.reader is None or not self._environment.images:
            return self._engine.encode(text), None
        return self._engine.reader.read(text, lambda: self._environment.images_of(example), (example.split, example.index))

    def __call__(self, vectors: Sequence[Array]) -> list[Outcome]:
        scales = [self._coefficients.z(vector) for vector in vectors]
        examples = len(self._examples)
        if self._together and self._cheaper_together(len(scales)):
            stacked = {path: torch.stack([z[path] for z in scales]) for path in scales[0]}  # (candidates, r) by path
            try:
                return self._outcomes(len(scales), lambda sequences: self._under(stacked, [sequence // examples for sequence in sequences]))
            except SequencesUnseen:  # a mixture of experts whose maps see some of the tokens
                self._together = False
        outcomes = []
        for z in scales:
            with self._adapted.fast(z):
                outcomes.extend(self._outcomes(1, everywhere))
        return outcomes

    def _cheaper_together(self, candidates: int) -> bool:
        examples, new = len(self._examples), self._settings.max_new_tokens if self._settings else 0
        work = Work(sum(map(len, self._prompts)) / examples, new, self._engine.batch_size)
        return together_is_cheaper(self._adapted.shapes, [examples] * candidates, work, self._adapted.device_type, merges=self._mergeable)

    def _under(self, stacked: Mapping[str, Tensor], candidates: list[int]) -> Any:
        index = torch.tensor(candidates, dtype=torch.long)  # (sequences,)
        return self._adapted.per_sequence({path: z[index] for path, z in stacked.items()})

    def _outcomes(self, candidates: int, scope: SequenceScope) -> list[Outcome]:
        """Outcomes of `candidates` whose sequences come one candidate after the other."""
        if self._settings is None or self._chooses:
            return self._choice(candidates, scope)
        made = self._engine.complete(
            self._prompts * candidates,
            self._settings,
            seed=0,
            first=list(range(len(self._prompts))) * candidates,  # every candidate has the same draws
            scope=scope,
            features=self._features * candidates,
        )
        examples = self._examples * candidates
        missing = {(e.key, c.text): (e, c.text) for e, c in zip(examples, made, strict=True) if (e.key, c.text) not in self._scores}
        self._scores.update(zip(missing, self._environment.score_many(list(missing.values())), strict=True))
        scores = [self._sign * self._scores[e.key, c.text] for e, c in zip(examples, made, strict=True)]
        own = [math.fsum(completion.log_probs) / len(completion.ids) for completion in made]
        reference = self._reference(candidates, scope) if self._ties == "reference" else []
        return _split(candidates, scores, own, reference)

    def _reference(self, candidates: int, scope: SequenceScope) -> list[float]:
        prompts, targets = [each[0][0] for each in self._pairs], [[each[0][1]] for each in self._pairs]
        for place, example in enumerate(self._examples):
            if self._features[place] is not None:  # the same images, before the same tokens without the spaces that end a prompt
                prompts[place], _ = self._read(example.prompt.rstrip(), example)
        found = self._engine.loglikelihoods(prompts * candidates, targets * candidates, scope=scope, features=self._features * candidates)
        return [each[0].value / each[0].tokens for each in found]

    def _choice(self, candidates: int, scope: SequenceScope) -> list[Outcome]:
        """Each distinct context of an example is one prompt, read once for all continuations behind it."""
        examples = len(self._examples)
        prompts: list[list[int]] = []
        continuations: list[list[list[int]]] = []
        owners: list[tuple[int, list[int]]] = []
        for sequence, pairs in enumerate(self._pairs * candidates):
            by_context: dict[tuple[int, ...], list[int]] = {}
            for index, (context, _) in enumerate(pairs):
                by_context.setdefault(tuple(context), []).append(index)
            for shared, indices in by_context.items():
                prompts.append(list(shared))
                continuations.append([pairs[index][1] for index in indices])
                owners.append((sequence, indices))
        found = self._engine.loglikelihoods(prompts, continuations, scope=lambda rows: scope([owners[row][0] for row in rows]))
        values: list[dict[int, Likelihood]] = [{} for _ in range(examples * candidates)]
        for (sequence, indices), part in zip(owners, found, strict=True):
            values[sequence].update(zip(indices, part, strict=True))
        scores, own = [], []
        for sequence, each in enumerate(values):
            example = self._examples[sequence % examples]
            likelihoods = [each[index].value for index in range(len(each))]
            greedy = [each[index].greedy for index in range(len(each))]
            scores.append(self._sign * self._environment.score_choice(example, likelihoods, greedy))
            known = likelihoods[: len(example.choices or ())]
            own.append(known[example.gold or 0] - float(np.logaddexp.reduce(known)))
        return _split(candidates, scores, own, own if self._ties == "reference" else [])


def _split(candidates: int, scores: list[float], own: list[float], reference: list[float]) -> list[Outcome]:
    size = len(scores) // candidates
    parts = [slice(index * size, (index + 1) * size) for index in range(candidates)]
    return [Outcome(tuple(scores[part]), tuple(own[part]), tuple(reference[part])) for part in parts]
