"""Claims: what the paper says, held against our data, and the sentence that says which of it is supported.

A claim is worded as the paper makes it, and its difference is positive where the data agree. Where the paper has figures for both sides,
their order is the claim (its text may say more than its figures). The claims of one item are one family: their p-values are corrected by
Holm's method together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from t2eval.stats.corrections import LEVEL, holm
from t2eval.stats.paired import Paired, paired, paired_draws


class Claim(BaseModel):
    """One claim.

    Attributes:
        text: what is claimed, without a full stop: "SVF scores higher than LoRA on math_seen".
        difference, low, high: the effect in the claim's direction and its 95% interval, in the scores' unit.
        n: examples (or what else was resampled).
        p: two-sided, uncorrected. adjusted: after Holm's correction over the item's claims (`judge` fills it in).
        test: its name.
        clusters: groups of dependent examples, None where they are independent. smallest: the smallest true difference that such a test
            finds four times in five at 5%, uncorrected; None where it finds none.
        holds: for a claim that is measured without sampling (a count, a sum): whether it is so. Then there is no test.
        seen: what was measured, in words, for a claim with `holds`.
        reported: the paper's figures for the two sides, in the order of the text; None: it has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    adjusted: float | None = None
    test: str | None = None
    clusters: int | None = None
    smallest: float | None = None
    holds: bool | None = None
    seen: str = ""
    reported: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """`supported`, `contradicted`, or `not supported` (the data do not tell the two apart)."""
        if self.holds is not None:
            return "supported" if self.holds else "contradicted"
        significant = self.adjusted is not None and self.adjusted < LEVEL
        if not significant or not self.difference:
            return "not supported"
        return "supported" if self.difference > 0 else "contradicted"

    def __str__(self) -> str:
        if self.holds is not None:
            return f"{self.text} ({self.seen})" if self.seen else self.text
        if self.difference is None or self.p is None:
            return f"{self.text} (no test: the two share no examples)"
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        paper = "" if self.reported is None else "; paper: {:g} and {:g}".format(*self.reported)
        return f"{self.text} ({self.difference:+.3f}{interval}, n={self.n}, p={_p(self.adjusted)}{paper})"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def tested(text: str, result: Paired | None, reported: tuple[float, float] | None = None) -> Claim:
    """A claim from a test whose positive difference agrees with it; None: nothing could be compared. `reported`: the paper's figures."""
    found = {} if result is None else dataclasses.asdict(result)
    return Claim(text=text, reported=reported, **found)


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: in words, in the singular.
        scores: example → score (of several seeds: averaged over them), or one such mapping a draw (`better`).
        paper: the paper's figure; None: it has none.
    """

    name: str
    scores: Mapping[str, float] | Sequence[Mapping[str, float]]
    paper: float | None = None


def better(first: Side, second: Side, where: str) -> Claim:
    """The claim that one side scores higher than the other, in the order of the paper's figures, or as given where it has not both.

    Args:
        first: what the paper's text puts first.
        second: the other one.
        where: ends the sentence: "on math_seen".

    Returns:
        The claim, tested on the examples that both have; where a side has one mapping a draw, over draws and examples.
    """
    reported = None
    if first.paper is not None and second.paper is not None:
        reported = max(first.paper, second.paper), min(first.paper, second.paper)
        if first.paper < second.paper:
            first, second = second, first
    text = f"{first.name} scores higher than {second.name} {where}"
    if isinstance(first.scores, Mapping) and isinstance(second.scores, Mapping):
        result = paired(first.scores, second.scores)
    else:
        runs = [[side.scores] if isinstance(side.scores, Mapping) else side.scores for side in (first, second)]
        result = paired_draws(runs[0], runs[1])
    return tested(text, result, reported)


def judge(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims with p-values corrected together."""
    adjusted = iter(holm([claim.p for claim in claims if claim.p is not None]))
    return tuple(claim if claim.p is None else claim.model_copy(update={"adjusted": next(adjusted)}) for claim in claims)


_HEADS = {
    "supported": "Supported",
    "contradicted": "Contradicted, the opposite is the case",
    "not supported": "Not supported, the data do not tell the two apart",
}


def sentence(claims: Sequence[Claim]) -> str:
    """What is and is not supported, in words: a sentence with the counts and the tests, and a list of the claims by verdict.

    Args:
        claims: from `judge`.

    Returns:
        Markdown.
    """
    if not claims:
        return "Nothing is claimed here that a test could support."
    by = {verdict: [str(claim) for claim in claims if claim.verdict == verdict] for verdict in _HEADS}
    counts = ", ".join(f"{len(chosen)} {verdict}" for verdict, chosen in by.items())
    head = f"Of {len(claims)} {'claim' if len(claims) == 1 else 'claims'}: {counts}{_tests(claims)}."
    lists = [line for verdict, chosen in by.items() if chosen for line in (f"- {_HEADS[verdict]}:", *(f"  - {claim}" for claim in chosen))]
    return "\n".join([head, "", *lists])


def _tests(claims: Sequence[Claim]) -> str:
    """How the claims were tested, in brackets."""
    number = sum(claim.p is not None for claim in claims)
    if not number:
        return " (measured, without a test)"
    names = ", ".join(sorted({claim.test for claim in claims if claim.test}))
    family = "one comparison" if number == 1 else f"Holm's correction over {number} comparisons"
    return f" ({names}; two-sided, {family}, p < {LEVEL})"
