"""How often the leaderboard's tests find a difference where there is none, and where there is one of the size that they claim to find.

    python benchmarks/levels_of_tests.py [--repeats 2000] [--json]

Per-example differences of three kinds are drawn, symmetric about 0: those of two 0/1 scores (`binary`), thirds as of scores averaged over
three seeds (`thirds`), and normal ones. `false` is the share of p < 0.05 where nothing differs, with the plain bootstrap beside it, which
the leaderboard does not use below 200 examples; `found` that share where the true difference is `could_show`'s, which says four in five.
Each share of r repeats has a Monte-Carlo error of √(p (1 - p) / r).
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np

from t2eval.stats.paired import bootstrap, paired
from t2eval.stats.power import could_show

SIZES = (5, 20, 100, 1000)
DRAWS = 1000
Drawn = tuple[np.ndarray, np.ndarray]


def draw(kind: str, n: int, shift: float, generator: np.random.Generator) -> Drawn:
    """Scores of two methods on n examples, the first better by `shift` on average."""
    if kind == "normal":
        return generator.normal(shift, 1.0, n), np.zeros(n)
    if kind == "thirds":
        skill = generator.uniform(0.2, 0.8, n)
        first, second = (generator.binomial(3, np.clip(skill + move / 2, 0, 1)) / 3 for move in (shift, -shift))
        return first, second
    chances = np.array([0.25 + shift / 2, 0.25 - shift / 2, 0.5])  # gained, lost, the same
    outcome = generator.choice(3, size=n, p=np.clip(chances, 0, 1) / np.clip(chances, 0, 1).sum())
    return (outcome == 0).astype(float), (outcome == 1).astype(float)


def spread(kind: str) -> float:
    """The standard deviation of a difference where nothing differs."""
    first, second = draw(kind, 200_000, 0.0, np.random.default_rng(0))
    return float((first - second).std())


def p_value(scores: Drawn, seed: int) -> float:
    """The leaderboard's."""
    first, second = ({str(i): float(x) for i, x in enumerate(side)} for side in scores)
    found = paired(first, second, draws=DRAWS, seed=seed)
    assert found is not None
    return found.p


def main() -> None:
    """Print a table, or one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="one JSON line, last")
    options = parser.parse_args()
    rows = []
    print("| differences | n | false positives | of the plain bootstrap | could show | found |\n|---|---:|---:|---:|---:|---:|")
    for kind in ("binary", "thirds", "normal"):
        width = spread(kind)
        for n in SIZES:
            repeats = options.repeats if n < 1000 else options.repeats // 2
            generator = np.random.default_rng(n)
            nothing = [draw(kind, n, 0.0, generator) for _ in range(repeats)]
            false = np.mean([p_value(scores, seed) < 0.05 for seed, scores in enumerate(nothing)])
            plain = np.mean([bootstrap(a - b, DRAWS, seed) < 0.05 for seed, (a, b) in enumerate(nothing)])
            smallest = could_show(width / math.sqrt(n), n)
            found = None
            if smallest is not None:
                found = np.mean([p_value(draw(kind, n, smallest, generator), seed) < 0.05 for seed in range(repeats)])
            rows.append(
                {"kind": kind, "n": n, "repeats": repeats, "false": false, "bootstrap": plain, "could_show": smallest, "found": found}
            )
            shown = ("nothing", "–") if smallest is None or found is None else (f"{smallest:.3f}", f"{found:.3f}")
            print(f"| {kind} | {n} | {false:.3f} | {plain:.3f} | {shown[0]} | {shown[1]} |", flush=True)
    if options.json:
        print(json.dumps({"draws": DRAWS, "rows": rows}))


if __name__ == "__main__":
    main()
