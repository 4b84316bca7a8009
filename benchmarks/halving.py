"""Halving: whether successive halving picks a point of a sweep that is no worse than the full sweep's, on the embedded base.

    python benchmarks/halving.py runs/halving --seeds 0 1 2        trains what is missing, one sweep after the other
    python benchmarks/halving.py runs/halving --report             the table of what is there

The sweep is of the paper's kind, six rates and one or two clips, of the LoRA baseline of a skill by its shipped recipe: rates from a tenth
of the shipped one to four times it. Each seed has both rules; the test items are scored by lm-eval for the point that validation chose
under each. A stopped sweep goes on, and a finished one is a line of `results.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from t2eval.paths import experts_dir
from t2eval.store.files import append_line, read_json_lines
from t2eval.training.config import TrainConfig
from t2eval.training.halving import total_steps
from t2eval.training.train import train_expert

RULES = ("halving", "full")
RATES = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
RESULTS = "results.jsonl"


def sweep(options: argparse.Namespace, skill: str, seed: int, rule: str) -> dict[str, Any]:
    """One sweep, begun, gone on with, or read where it is finished; its line of the results."""
    place = options.folder / skill / rule / f"seed-{seed}"
    recipe = experts_dir() / "recipes" / f"lora-{skill}.yaml"
    settings = {"lr": list(RATES), "clip": options.clips, "sweep": rule, "seed": seed}
    settings |= {"steps": options.steps, "validate_every": options.validate_every}
    config = TrainConfig.from_yaml(recipe, **settings, output=place, device="cpu", resume=True)
    result = train_expert(config, progress=True)
    outcomes = json.loads((place / "test_outcomes.json").read_text(encoding="utf-8"))
    after = result.scores["after"]
    return {
        "skill": skill,
        "seed": seed,
        "rule": rule,
        "chosen": {name: result.record.hyperparameters[name] for name in ("lr", "clip")},
        "validation": after["validation"].score,
        "validation_n": after["validation"].n,
        "test": after["test"].score,
        "steps": total_steps(config),
        "seconds": result.seconds,
        "sweep": result.record.sweep,
        "outcomes": {str(row["doc_id"]): row["after"] for row in outcomes},
    }


def report(lines: list[dict[str, Any]]) -> str:
    """A Markdown table, a line a skill and seed with both rules, and the mean difference of the test scores, with the error over items."""
    table = ["| skill, seed | rule | chosen: rate, clip | validation | test | steps | s |", "|---|---|---|---|---|---|---|"]
    differences: dict[str, list[float]] = {}
    for skill, seed in dict.fromkeys((line["skill"], line["seed"]) for line in lines):
        found = {line["rule"]: line for line in lines if (line["skill"], line["seed"]) == (skill, seed)}
        for rule, line in found.items():
            scores = f"{line['validation']:.3f} | {line['test']:.3f} | {line['steps']} | {line['seconds']:.0f}"
            table.append(f"| {skill}, {seed} | {rule} | {line['chosen']['lr']:g}, {line['chosen']['clip']:g} | {scores} |")
        if len(found) == len(RULES):
            one, other = (found[rule]["outcomes"] for rule in RULES)
            for item in one:
                differences.setdefault(f"{skill}/{item}", []).append(one[item] - other[item])
    gains = [statistics.fmean(values) for values in differences.values()]
    if gains:
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        table.append(
            f"\nTest, halving less full: {statistics.fmean(gains):+.4f} ± {error:.4f} over {len(gains)} items, means of the seeds."
        )
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--skills", nargs="+", choices=["math", "code", "reasoning"], default=["math"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--clips", type=float, nargs="+", default=[1e-3, 1.0])
    parser.add_argument("--steps", type=int, default=None, help="instead of the recipe's")
    parser.add_argument("--validate-every", type=int, default=5)
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    results = options.folder / RESULTS
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = read_json_lines(results) if results.is_file() else []
    if not options.report:
        wanted = [(skill, seed, rule) for skill in options.skills for seed in options.seeds for rule in options.rules]
        done = {(line["skill"], line["seed"], line["rule"]) for line in lines}
        for skill, seed, rule in (key for key in wanted if key not in done):
            lines.append(sweep(options, skill, seed, rule))
            append_line(results, json.dumps(lines[-1]))
    print(report(lines))


if __name__ == "__main__":
    main()
