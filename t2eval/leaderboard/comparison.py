"""Comparison: one method against another, or against itself in another benchmark, on the examples that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from t2eval.errors import listed, unknown
from t2eval.leaderboard.cells import Group, Where, folders, groups_of, rows_of
from t2eval.stats.clusters import paired_clusters
from t2eval.stats.corrections import holm
from t2eval.stats.paired import Paired, paired, unpaired


@dataclass(frozen=True)
class Comparison:
    """Two methods on one task (or one method in two benchmarks); `gain` is the first over the second, `p` Holm-adjusted.

    `n` are the examples that both have, `clusters` the groups of dependent ones among them (None where they are independent), `left_out`
    the documents of the test split on which either side adapted, which count on neither. `smallest` is the smallest true difference that
    so many examples would show, four times in five, at 5% before the correction; None where none would show.
    """

    method: str
    task: str
    first: float | None
    second: float | None
    gain: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    test: str
    clusters: int | None = None
    smallest: float | None = None
    left_out: int = 0

    def __str__(self) -> str:
        if self.gain is None or self.p is None:
            return f"{self.method} on {self.task}: {self.test}"
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        clusters = "" if self.clusters is None else f" in {self.clusters} cluster{'' if self.clusters == 1 else 's'}"
        smallest = "no difference could show" if self.smallest is None else f"{self.smallest:.3f} could show"
        left_out = f"; {self.left_out} adaptation documents left out of both sides" if self.left_out else ""
        return (
            f"{self.method} on {self.task}: {self.first:.3f} against {self.second:.3f}, gain {self.gain:+.3f}{interval}, "
            f"n={self.n}{clusters}, p={self.p:.2g} ({self.test}); {smallest}{left_out}"
        )


def tested(first: Group, second: Group) -> Paired | None:
    """The test of one group over another, in the direction in which more is better: paired on shared examples, else from the two means.

    Returns:
        None where neither can be had.
    """
    a, b = first.examples, second.examples
    result = (_in_clusters(first, second) or paired(a, b)) if a and b else None
    if result is None:
        result = unpaired((first.score, first.stderr, first.n), (second.score, second.stderr, second.n))
    if result is None or first.rows[0].higher_is_better:
        return result
    low, high = (None, None) if result.low is None or result.high is None else (-result.high, -result.low)
    return replace(result, difference=-result.difference, low=low, high=high)


def _in_clusters(first: Group, second: Group) -> Paired | None:
    """The test over the clusters of the shared examples; None where a shared example has none on either side, or none is shared."""
    a, b = first.examples or {}, second.examples or {}
    known = {**second.clusters, **first.clusters}
    shared = a.keys() & b.keys()
    return paired_clusters(a, b, known) if shared and shared <= known.keys() else None


def adjusted(found: Sequence[tuple[str, str, Group, Group]]) -> list[Comparison]:
    """Comparisons whose p-values are corrected together.

    Args:
        found: (method, task, first, second); those that cannot be tested are left out.
    """
    tests = [(method, task, first, second, result) for method, task, first, second in found if (result := tested(first, second))]
    values = holm([result.p for *_, result in tests])
    return [
        Comparison(
            method,
            task,
            first.score,
            second.score,
            result.difference,
            result.low,
            result.high,
            result.n,
            p,
            result.test,
            result.clusters,
            result.smallest,
            len({*first.adapted, *second.adapted}),
        )
        for (method, task, first, second, result), p in zip(tests, values, strict=True)
    ]


def compare(where: Where, first: str, second: str) -> list[Comparison]:
    """Test one method against another on every task that both have.

    Args:
        where: the benchmark's folder, or several.
        first: a method.
        second: another.

    Returns:
        One comparison a task, p-values adjusted over the tasks.

    Raises:
        UsageError: a method that the benchmark does not have.
    """
    groups = groups_of(where, rows_of(where))
    present = {method for method, _ in groups}
    for method in (first, second):
        if method not in present:
            raise unknown(f"method in {listed(map(str, folders(where)))}", method, present)
    tasks = sorted(task for method, task in groups if method == first and (second, task) in groups)
    return adjusted([(f"{first} against {second}", task, groups[first, task], groups[second, task]) for task in tasks])
