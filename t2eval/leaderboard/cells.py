"""Cells: the rows of a benchmark's folder by method and task, with the examples that may be compared."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from t2eval.bench.merge import Merged, merged, parts_of
from t2eval.bench.rows import ROWS, Row, Sample, by_key, read, read_samples, scores_by_example
from t2eval.errors import UsageError, listed
from t2eval.stats.clusters import clustered_stderr
from t2eval.stats.means import average_seeds, mean_stderr

Where = str | Path | Sequence[str | Path]
"""A benchmark's folder (with the folders of its shards in it), or the several folders in which its parts lie."""


def folders(where: Where) -> list[Path]:
    """The folders that are meant."""
    return [Path(where)] if isinstance(where, str | Path) else [Path(folder) for folder in where]


def merged_rows(where: Where) -> Merged:
    """The rows of a benchmark.

    Raises:
        UsageError: no finished cells, cells of several base models, rows that do not belong beside each other, or a cell with two results.
        T2Error: damaged rows.
    """
    places = folders(where)
    for place in places if len(places) > 1 else ():  # a folder that is named in vain is a slip, and its rows would be missed
        if not any(read(folder) for folder in parts_of(place)):
            raise _nothing_in(place)
    found = merged(places)
    named = listed(map(str, places))
    if not found.rows:
        raise _nothing_in(places[0])
    models = sorted({row.model for row in found.rows})
    if len(models) > 1:
        raise UsageError(f"{named} mixes base models ({', '.join(models)}): a leaderboard is of one.")
    return found


def _nothing_in(place: Path) -> UsageError:
    if place.is_file():
        return UsageError(f"{place} is a file. Give the folder that it is in: the --output of `t2 bench`.")
    return UsageError(f"{place} holds no finished cells (no {ROWS}). Run `t2 bench FILE.yaml --output {place}`.")


def rows_of(where: Where) -> list[Row]:
    """The rows alone. Raises as `merged_rows`."""
    return list(merged_rows(where).rows)


@dataclass(frozen=True)
class Group:
    """The finished rows of one method on one task, seeds in order.

    Attributes:
        rows: at least one.
        scores: of each seed: example → score, without the documents that are left out; None where the metric has no score for an example.
        adapted: documents of the test split on which the method adapted, of any seed. undefined: those whose metric is not a number.
        clusters: example → what it shares with others; empty where examples are independent.
    """

    rows: tuple[Row, ...]
    scores: tuple[dict[str, float], ...] | None
    adapted: tuple[int, ...]
    undefined: tuple[int, ...]
    clusters: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property  # every comparison asks for it
    def examples(self) -> dict[str, float] | None:
        """Example → score, averaged over the seeds; None where there are none that can be compared."""
        return average_seeds(self.scores) if self.scores and all(self.scores) else None

    @property
    def whole(self) -> bool:
        """Whether no document was left out."""
        return not (self.adapted or self.undefined)

    @property
    def seed_scores(self) -> list[float]:
        """The score of each seed, without the documents that are left out."""
        if self.adapted and self.scores and all(self.scores):
            return [float(np.mean(list(run.values()))) for run in self.scores]
        return [row.score for row in self.rows if row.score is not None]

    @property
    def score(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.seed_scores))

    @property
    def stderr(self) -> float | None:
        """Over examples (of seed-averaged scores), in their clusters; without examples, the mean of the rows' own."""
        examples = self.examples
        if not examples:
            return mean([row.stderr for row in self.rows])
        if self.clusters:
            return clustered_stderr(list(examples.values()), [self.clusters[key] for key in examples])
        return mean_stderr(list(examples.values()))[1]

    @property
    def cluster_count(self) -> int | None:
        """Clusters that the examples of the score are of; None where examples are independent."""
        examples = self.examples
        if not examples:
            return self.rows[0].clusters
        return len({self.clusters[key] for key in examples}) if self.clusters else None

    @property
    def n(self) -> int:
        """Examples that the score is of."""
        examples = self.examples
        return len(examples) if examples else self.rows[0].n


def groups_of(where: Where, rows: Sequence[Row]) -> dict[tuple[str, str], Group]:
    """Finished rows by method and task.

    Raises:
        T2Error: damaged examples.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted((row for row in rows if row.status == "ok"), key=lambda row: row.seed):
        found.setdefault((row.method, row.task), []).append(row)
    folder = folders(where)[0]  # of several, each row knows its own
    return {key: _group(folder, group) for key, group in found.items()}


def _group(folder: Path, rows: Sequence[Row]) -> Group:
    samples = [read_samples(folder, row) for row in rows]
    runs = [scores_by_example(found, _adapted(row)) if row.samples else None for found, row in zip(samples, rows, strict=True)]
    scores = tuple(run for run in runs if run is not None)
    adapted = sorted({doc for row in rows for doc in _adapted(row)})
    undefined = sorted({doc for row in rows for doc in row.undefined})
    return Group(tuple(rows), scores if len(scores) == len(rows) else None, tuple(adapted), tuple(undefined), _clusters(samples))


def _clusters(runs: Sequence[Sequence[Sample]]) -> dict[str, str]:
    """Example → cluster; empty where not every example of every seed has one (a task gives one to all of its documents, or to none)."""
    found: dict[str, str] = {}
    for samples in runs:
        for key, sample in by_key(samples).items():
            if sample.cluster is None:
                return {}
            found[key] = sample.cluster
    return found


def _adapted(row: Row) -> frozenset[int]:
    """The scored documents on which a row's method adapted: those that its own record names (`config.t2.adaptation`)."""
    adaptation = ((row.t2 or {}).get("adaptation") or {}).get(row.task) or {}
    return frozenset(adaptation.get("doc_ids") or ()) if adaptation.get("overlaps_test") else frozenset()


def mean(values: Sequence[float | None]) -> float | None:
    """Of the known ones; None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
