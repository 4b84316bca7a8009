"""Power: the smallest difference that a benchmark's examples could show, said before it is run.

It is counted for scores of 0 and 1 of one seed: both sides score `assume.score`, and their scores correlate over the examples as
`assume.agreement` says. So it takes no account of what the finished cells say: the leaderboard does, beside each comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2eval.bench.config import BenchConfig
from t2eval.forecast.facts import TaskFacts
from t2eval.forecast.figures import Figure, figure, limited
from t2eval.stats.corrections import LEVEL
from t2eval.stats.power import could_show, spread_of_differences


@dataclass(frozen=True)
class Detectable:
    """The smallest difference to the base that one task's examples show four times in five.

    Attributes:
        task: its name. examples: of the test, as many as are scored.
        alone: the difference at 5%. corrected: at 5% over `comparisons`, as Holm's correction asks of the first of them. Unknown where the
            examples are, or where so few examples show no difference at all (the note says which).
        comparisons: of the whole table with the base.
        cluster: the field that documents share (`metadata.t2.cluster`); fewer pictures than questions show less than this.
    """

    task: str
    examples: Figure
    alone: Figure
    corrected: Figure
    comparisons: int
    cluster: str | None


def detectable(config: BenchConfig, facts: Mapping[str, TaskFacts]) -> tuple[Detectable, ...]:
    """What the tasks of a benchmark could show; nothing where it has no base, or nothing but the base.

    Args:
        config: the benchmark's.
        facts: of each of its tasks.
    """
    methods = [method for method in config.methods if method != "base"]
    if "base" not in config.methods or not methods:
        return ()
    comparisons = len(methods) * len(config.tasks)
    found = []
    for name in config.tasks:
        task = facts[name]
        examples = limited(task.examples.get("test", Figure(None, "unknown")), config.limit)
        alone, corrected = (_smallest(config.assume, examples, level) for level in (LEVEL, LEVEL / comparisons))
        found.append(Detectable(name, examples, alone, corrected, comparisons, task.cluster))
    return tuple(found)


def _smallest(assume: Any, examples: Figure, level: float) -> Figure:
    if examples.value is None:
        return Figure(None, "unknown", "the number of examples is not known")
    n = int(examples.value)
    found = could_show(spread_of_differences(assume.score, assume.agreement) / n**0.5, n, level=level)
    if found is None:
        return Figure(None, "unknown", f"{n} examples show no difference")
    return figure(found, examples.source, "assumed")
