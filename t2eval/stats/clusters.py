"""Clustered examples: errors and tests where examples share something (a picture, a passage, a subject) and so are not independent.

After Miller, 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), section 2.2: with s̄ the mean of all n scores,

    SE² = SE²_CLT + (1/n²) Σ_c Σ_i Σ_{j≠i} (s_ic − s̄)(s_jc − s̄)

The test flips the signs of whole clusters: where neither side is better, a cluster's differences could as well all have had the other sign.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from t2eval.errors import T2Error
from t2eval.stats.means import mean_stderr
from t2eval.stats.paired import DRAWS, Paired, paired, sign_flips
from t2eval.stats.power import could_show


def clustered_stderr(scores: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """The standard error of a mean over clustered examples; None where all are of one cluster, which says nothing of others.

    Args:
        scores: one an example.
        clusters: what each example belongs to, in the same order.

    Raises:
        T2Error: no scores, or a score that is no number.
        ValueError: not one cluster an example.
    """
    if len(scores) != len(clusters):
        raise ValueError(f"{len(scores)} scores and {len(clusters)} clusters")
    mean, plain = mean_stderr(scores)
    sums: dict[Hashable, float] = {}
    squares: dict[Hashable, float] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + (score - mean)
        squares[cluster] = squares.get(cluster, 0.0) + (score - mean) ** 2
    if plain is None or len(sums) < 2:
        return None
    # Σ_i Σ_{j≠i} of one cluster is the square of its sum less the sum of its squares.
    crossed = math.fsum(sums[cluster] ** 2 - squares[cluster] for cluster in sums)
    return math.sqrt(max(0.0, plain**2 + crossed / len(scores) ** 2))


def paired_clusters(
    first: Mapping[str, float], second: Mapping[str, float], clusters: Mapping[str, Hashable], draws: int = DRAWS, seed: int = 0
) -> Paired | None:
    """Compare two sets of scores on the examples that both have, with the examples' clusters.

    Args:
        first: example → score.
        second: example → score.
        clusters: example → cluster, for every example that both have.
        draws: sign patterns to sample where there are more than 2¹⁶.
        seed: of the sampling.

    Returns:
        The difference `first - second`, its Student interval with clustered error (None with one cluster), and the p of flipped clusters;
        or None where they share no example. Where no two examples share a cluster they are independent, and it is `paired`'s.

    Raises:
        T2Error: an example without a cluster.
    """
    keys = [key for key in first if key in second]
    if not keys:
        return None
    if missing := [key for key in keys if key not in clusters]:
        raise T2Error(f"Example {missing[0]!r} has no cluster ({len(missing)} have none). Give every document the field of the clusters.")
    if (number := len({clusters[key] for key in keys})) == len(keys):
        found = paired(first, second, draws, seed)
        return found and replace(found, clusters=number)
    differences = [first[key] - second[key] for key in keys]
    sums: dict[Hashable, float] = {}
    for key, difference in zip(keys, differences, strict=True):
        sums[clusters[key]] = sums.get(clusters[key], 0.0) + difference
    mean, error = math.fsum(differences) / len(keys), clustered_stderr(differences, [clusters[key] for key in keys])
    low = high = None
    if error:  # with no spread at all, that on other examples is not known
        from scipy.stats import t

        half = float(t.ppf(0.975, number - 1)) * error
        low, high = mean - half, mean + half
    p = sign_flips(np.array(list(sums.values())), draws, seed)
    test = f"paired sign flips of {number} clusters"
    return Paired(mean, low, high, len(keys), p, test, clusters=number, smallest=could_show(error, number))
