"""Graders of mathematics: how often ours, math-verify alone and lm-eval's own agree with hand-made labels on hard pairs of answers.

    python benchmarks/math_graders.py --json

Every grader is asked in the form that it is made for: the answer boxed for ours and for math-verify, between dollar signs for
lm-eval's hendrycks_math, and in minerva_math's closing sentence for its two metrics.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from t2eval.grading.mathematics import boxed_equivalent

PAIRS = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "math_pairs.tsv"
Grader = Callable[[str, str], bool]


def read_pairs(path: Path = PAIRS) -> list[dict[str, str]]:
    """The labelled pairs: kind, gold, answer, equal (`yes` or `no`)."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def graders() -> dict[str, Grader]:
    """Name → (gold, answer) → verdict, each without its box."""
    from lm_eval.tasks.hendrycks_math import utils as hendrycks
    from lm_eval.tasks.minerva_math import utils as minerva
    from math_verify import parse, verify

    def boxed(answer: str) -> str:
        return f"$\\boxed{{{answer}}}$"

    def by_minerva(gold: str, answer: str) -> dict[str, int]:
        doc = {"solution": boxed(gold), "answer": minerva.normalize_final_answer(gold)}
        return dict(minerva.process_results(doc, [f"Final Answer: The final answer is ${answer}$. I hope it is correct."]))

    return {
        "t2_math": lambda gold, answer: boxed_equivalent(gold, boxed(answer)),
        "math-verify alone": lambda gold, answer: bool(verify(parse(boxed(gold)), parse(boxed(answer)))),
        "minerva_math math_verify": lambda gold, answer: bool(by_minerva(gold, answer)["math_verify"]),
        "minerva_math exact_match": lambda gold, answer: bool(by_minerva(gold, answer)["exact_match"]),
        "hendrycks_math": lambda gold, answer: bool(hendrycks.process_results({"solution": boxed(gold)}, [f"${answer}$"])["exact_match"]),
    }


def measure(grade: Grader, pairs: list[dict[str, str]]) -> dict[str, object]:
    """Agreement of one grader, its errors of both kinds, and its seconds."""
    start = time.perf_counter()
    wrong: dict[str, list[list[str]]] = {"accepted": [], "rejected": []}
    for pair in pairs:
        verdict = grade(pair["gold"], pair["answer"])
        if verdict != (pair["equal"] == "yes"):
            wrong["accepted" if verdict else "rejected"].append([pair["gold"], pair["answer"]])
    agreement = 1 - sum(map(len, wrong.values())) / len(pairs)
    return {
        "agreement": agreement,
        "stderr": math.sqrt(agreement * (1 - agreement) / len(pairs)),
        "n": len(pairs),
        "wrongly_accepted": len(wrong["accepted"]),
        "wrongly_rejected": len(wrong["rejected"]),
        "seconds": time.perf_counter() - start,
        "pairs": wrong,
    }


def main() -> None:
    """Measure all graders, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="a file of labelled pairs with the columns kind, gold, answer, equal")
    parser.add_argument("--show", action="store_true", help="print every pair that a grader errs on")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    pairs = read_pairs(options.pairs)
    report = {name: measure(grade, pairs) for name, grade in graders().items()}
    print(f"{len(pairs)} pairs, of which {sum(pair['equal'] == 'yes' for pair in pairs)} are equal")
    print("| grader | agrees with the labels | wrongly accepted | wrongly rejected | ms a pair |\n|---|---:|---:|---:|---:|")
    for name, found in report.items():
        share = f"{100 * found['agreement']:.1f}% ± {100 * found['stderr']:.1f}"  # type: ignore[operator]
        milliseconds = 1000 * found["seconds"] / len(pairs)  # type: ignore[operator]
        print(f"| {name} | {share} | {found['wrongly_accepted']} | {found['wrongly_rejected']} | {milliseconds:.0f} |")
    if options.show:
        for name, found in report.items():
            for kind, errors in found["pairs"].items():  # type: ignore[attr-defined]
                for gold, answer in errors:
                    print(f"{name}\t{kind}\t{gold}\t{answer}")
    if options.json:
        print(json.dumps({name: {key: value for key, value in found.items() if key != "pairs"} for name, found in report.items()}))


if __name__ == "__main__":
    main()
