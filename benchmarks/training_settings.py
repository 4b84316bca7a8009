"""Training settings: what several answers a prompt, group baselines and other settings of the field are worth on the embedded base.

    python benchmarks/training_settings.py runs/settings --seeds 0 1 2        trains what is missing, one run after the other
    python benchmarks/training_settings.py runs/settings --report             the table of what is there

Each setting trains the math expert by its shipped recipe with nothing but that setting changed: the same steps, answers a step, rate and
examples, so that what it costs is what its steps take longer. Validation (256 examples) chooses the checkpoint of each run and is what
settings are to be compared by; the 500 test items are scored once by lm-eval. A stopped run goes on from its checkpoint, and a finished
one is a line of `results.jsonl`: setting, seed, validation, test, outcomes by test item, seconds, and the mean shares of answers learnt
from and cut.
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
from t2eval.training.train import train_expert

GROUP = {"rollouts": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "4 answers, leave one out": {**GROUP, "baseline": "leave_one_out"},
    "4 answers, group-normalised": {**GROUP, "baseline": "group_normalized"},
    "4 answers, batch mean": dict(GROUP),
    "4 answers, leave one out, uniform dropped": {**GROUP, "baseline": "leave_one_out", "drop_uniform": True},
    "token loss": {"token_loss": True},
    "truncated masked": {"mask_truncated": True},
}
RESULTS = "results.jsonl"


def train(folder: Path, name: str, seed: int, steps: int | None) -> dict[str, Any]:
    """One run, begun, gone on with, or read where it is finished; its line of the results."""
    place = folder / name.replace(", ", "-").replace(" ", "_") / f"seed-{seed}"
    recipe = experts_dir() / "recipes" / "math.yaml"
    config = TrainConfig.from_yaml(recipe, **SETTINGS[name], output=place, seed=seed, steps=steps, device="cpu", resume=True)
    result = train_expert(config, progress=False)
    rows = read_json_lines(place / "log.jsonl")
    outcomes = json.loads((place / "test_outcomes.json").read_text(encoding="utf-8"))
    after = result.scores["after"]
    return {
        "setting": name,
        "seed": seed,
        "steps": result.steps,
        "chosen_step": result.chosen_step,
        "validation": after["validation"].score,
        "validation_n": after["validation"].n,
        "test": after["test"].score,
        "seconds": result.seconds,
        "learnt": statistics.fmean(row["learnt"] for row in rows),
        "truncated": statistics.fmean(row["truncated"] for row in rows),
        "outcomes": {str(row["doc_id"]): row["after"] for row in outcomes},
    }


def _by_item(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of the seeds' outcomes on each test item."""
    return {item: statistics.fmean(line["outcomes"][item] for line in lines) for item in lines[0]["outcomes"]}


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def report(lines: list[dict[str, Any]]) -> str:
    """A Markdown table. Differences from the default are over the seeds that both have: of validation with the error over seeds, of test
    with the error over items."""
    heads = ["setting", "seeds", "validation", "less the default's", "test", "less the default's", "s", "learnt", "cut"]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    reference = {line["seed"]: line for line in lines if line["setting"] == "default"}
    for name in SETTINGS:
        own = [line for line in lines if line["setting"] == name]
        if not own:
            continue
        both = [(line, reference[line["seed"]]) for line in own if line["seed"] in reference and name != "default"]
        gains = [one["validation"] - other["validation"] for one, other in both]
        mine, theirs = _by_item([one for one, _ in both] or own), _by_item([other for _, other in both] or own)
        differences = [mine[item] - theirs[item] for item in mine]
        cells = [
            name,
            ", ".join(str(line["seed"]) for line in own),
            f"{statistics.fmean(line['validation'] for line in own):.3f}",
            "" if not both else f"{statistics.fmean(gains):+.3f}" + (f" ± {_error(gains):.3f}" if len(gains) > 1 else ""),
            f"{statistics.fmean(line['test'] for line in own):.3f} ± {_error(list(_by_item(own).values())):.3f}",
            "" if not both else f"{statistics.fmean(differences):+.3f} ± {_error(differences):.3f}",
            f"{statistics.fmean(line['seconds'] for line in own):.0f}",
            f"{statistics.fmean(line['learnt'] for line in own):.2f}",
            f"{statistics.fmean(line['truncated'] for line in own):.3f}",
        ]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=None, help="instead of the recipe's: for a trial")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    results = options.folder / RESULTS
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = read_json_lines(results) if results.is_file() else []
    if not options.report:
        for seed in options.seeds:
            for name in options.settings:
                if not any((line["setting"], line["seed"]) == (name, seed) for line in lines):
                    lines.append(train(options.folder, name, seed, options.steps))
                    append_line(results, json.dumps(lines[-1]))
    print(report(lines))


if __name__ == "__main__":
    main()
