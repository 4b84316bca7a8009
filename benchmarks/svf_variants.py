"""SVF variants: KL coefficient and direction, reward baseline, form of z and objective, each trained as the shipped math expert is.

python benchmarks/svf_variants.py --output runs/variants      (run it again to resume; 10 variants, a minute of one core each and seed)

Each variant changes one setting of `experts/recipes/math.yaml`; the sigmoid form also stands with higher learning rates. The
checkpoint is chosen on validation, and scored on the test items.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from t2eval.bench.training import RECORD, Job, train
from t2eval.paths import experts_dir
from t2eval.stats.corrections import holm
from t2eval.stats.means import average_seeds, mean_stderr
from t2eval.stats.paired import paired
from t2eval.training.config import TrainConfig
from t2eval.training.train import OUTCOMES
from t2eval.workers.pool import Pool

RECIPE = experts_dir() / "recipes" / "math.yaml"
DEFAULT = "as shipped: KL 0.1, new to base; batch mean; direct"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "no KL": {"kl": 0.0},
    "KL 0.3": {"kl": 0.3},
    "KL 0.1, base to new": {"kl_direction": "base_to_new"},
    "no baseline": {"baseline": "none"},
    "leave one out, 4 rollouts": {"baseline": "leave_one_out", "rollouts": 4},
    "sigmoid, renormalised": {"parameterisation": "sigmoid-renorm"},
    # z moves half as far for the same step in p, since sigmoid(p) Σσ / Σ(σ sigmoid(p)) has the slope 1/2 where z is 1
    "sigmoid, renormalised, twice the rate": {"parameterisation": "sigmoid-renorm", "lr": 8e-3},
    "sigmoid, renormalised, four times the rate": {"parameterisation": "sigmoid-renorm", "lr": 1.6e-2},
    "supervised": {"objective": "supervised", "lr": 1e-2, "clip": 1.0},
}


def jobs(output: Path, seeds: list[int]) -> dict[str, list[Job]]:
    """Variant → one run a seed."""
    found: dict[str, list[Job]] = {}
    for name, settings in VARIANTS.items():
        folder = "".join(letter if letter.isalnum() else "-" for letter in name)
        configs = [
            TrainConfig.from_yaml(RECIPE, output=output / folder / f"seed-{seed}", seed=seed, resume=True, **settings) for seed in seeds
        ]
        found[name] = [Job(f"{name}, seed {config.seed}", config) for config in configs]
    return found


def outcomes(job: Job) -> dict[str, float]:
    """Test item → score after training."""
    rows = json.loads((job.output / OUTCOMES).read_text(encoding="utf-8"))
    return {str(row["doc_id"]): float(row["after"]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    variants = jobs(options.output, options.seeds)
    with Pool(options.workers) as pool:  # seed by seed, so that an interrupted study has all variants of some seeds
        todo = [job for runs in zip(*variants.values(), strict=True) for job in runs if not job.finished]
        train(todo, pool, print, options.output / "training.log")
    scores = {name: average_seeds([outcomes(job) for job in runs]) for name, runs in variants.items()}
    tests = {name: paired(scores[name], scores[DEFAULT]) for name in variants if name != DEFAULT}
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    heads = (f"test (n={len(scores[DEFAULT])}, {len(options.seeds)} seeds)", "against the first", "p, Holm", "validation", "steps")
    print(f"| variant | {' | '.join(heads)} |\n{'|---' * 6}|")
    for name, runs in variants.items():
        records = [json.loads((job.output / RECORD).read_text(encoding="utf-8")) for job in runs]
        score, stderr = mean_stderr(list(scores[name].values()))
        versus = f"{tests[name].difference:+.3f} | {adjusted[name]:.2g}" if name in tests else "– | –"
        validation = sum(record["scores"]["after"]["validation"]["score"] for record in records) / len(records)
        steps = ", ".join(str(record["chosen_step"]) for record in records)
        print(f"| {name} | {score:.3f} ± {stderr:.3f} | {versus} | {validation:.3f} | {steps} |")


if __name__ == "__main__":
    main()
