"""Matched budget: what SVF by policy gradient and LoRA on worked answers have on validation after the same seconds of training.

python benchmarks/matched_budget.py runs/paper      (a folder of `t2 paper all` or, with figure4 and table1 in it, of these two)

Reads the logs of figure 4's experts and of table 1's LoRA sweep; nothing is trained. A method's score after t seconds is the best
validation score that it had logged by then (the base's before the first one), as checkpoints are chosen. LoRA has, for each skill, the
learning rate whose whole run is best on validation, of those trained in the folder: the shipped rate has no log there. Seconds are of one
thread each, with another training beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean as mean

from t2eval.bench.training import RECORD
from t2eval.paper.curves import validated
from t2eval.paper.presets import SKILLS

SHARES = (0.25, 0.5, 1.0)  # of LoRA's whole time


def curve(folder: Path) -> list[tuple[float, float]]:
    """(seconds, validation score) of one training, beginning with the base at 0."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    base = float(record["scores"]["before"]["validation"]["score"])
    return [(0.0, base)] + [(float(row["seconds"]), float(row["validation"])) for row in validated(folder)]


def reached(points: list[tuple[float, float]], seconds: float) -> float:
    """The best validation score by then."""
    return max(score for spent, score in points if spent <= seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    trained = parser.parse_args().folder / "training"
    heads = [f"after {share:.0%} of LoRA's seconds: SVF, LoRA" for share in SHARES]
    print(
        f"| task | LoRA's rate | seconds: SVF, LoRA | {' | '.join(heads)} | after SVF's seconds: SVF, LoRA |\n{'|---' * (len(heads) + 4)}|"
    )
    for skill in SKILLS:
        svf = [curve(folder) for folder in sorted(trained.glob(f"svf/seed-*/{skill}"))]
        swept = {path.name: [curve(folder) for folder in sorted(path.glob(f"seed-*/{skill}"))] for path in sorted(trained.glob("lora-*"))}
        if not svf or not swept:
            parser.error(f"{trained} has no trainings of figure4 and table1 for {skill}: run `t2 paper` for both with this --output first")
        rate = max(swept, key=lambda name: mean([reached(points, float("inf")) for points in swept[name]]))
        lora = swept[rate]
        whole = [mean([points[-1][0] for points in runs]) for runs in (svf, lora)]
        times = [share * whole[1] for share in SHARES] + [whole[0]]
        cells = [", ".join(f"{mean([reached(points, time) for points in runs]):.3f}" for runs in (svf, lora)) for time in times]
        print(f"| {skill} | {rate.removeprefix('lora-')} | {whole[0]:.0f}, {whole[1]:.0f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
