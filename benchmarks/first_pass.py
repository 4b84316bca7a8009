"""First pass: the seconds that dispatch takes before the answers, beside the answers' own.

    python benchmarks/first_pass.py --json
    python benchmarks/first_pass.py --attempts            what else was tried, at the same shapes

Dispatch scores five labels behind prompts that share a prefix; the second pass writes the answers. `--shapes` are the paper's three tasks
(Table 3), their tokens divided by `--divide`: what counts for the share is prompt : answer. Random weights; on a CPU an operation costs the
same wherever it stands, so the share here is one of work, and a GPU's, where decoding waits for memory, is another (docs/performance.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import Tokens, add_machine_options, add_model_options, in_turns, medians, model_of, ratio, tell

from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings

SHAPES = {"MATH": (100, 150, 512), "HumanEval": (150, 180, 256), "ARC-Challenge": (60, 100, 64)}
"""Tokens of a question behind dispatch's prefix, of the second pass's prompt, and of the answer."""
PAPER = {"MATH": 0.13, "HumanEval": 0.19, "ARC-Challenge": 0.47}
PREFIX, LABELS, LABEL = 150, 5, 3


def sides(model: Any, options: argparse.Namespace, shape: str) -> dict[str, Callable[[], Any]]:
    """Both passes over the same number of questions, and with `--attempts` the other first passes."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int, tokens: float) -> list[list[int]]:
        return torch.randint(5, options.vocab, (count, max(1, int(tokens))), generator=generator).tolist()

    question, prompt, answer = (tokens / options.divide for tokens in SHAPES[shape])
    engine = Engine(model, Tokens(), batch_size=options.questions, max_length=8192)
    prefix = ids(1, PREFIX / options.divide)[0]
    own = ids(options.questions, question)
    asked = [prefix + each for each in own]
    labels = ids(LABELS, LABEL)
    one_token = [[each[0]] for each in labels]
    written = GenerationSettings(max_new_tokens=max(1, int(answer)))
    prompts = ids(options.questions, prompt)
    found: dict[str, Callable[[], Any]] = {
        "first": lambda: engine.loglikelihoods(asked, [labels] * len(asked), prefix=prefix),
        "second": lambda: engine.complete(prompts, written),
    }
    if options.attempts:
        found["without the shared prefix"] = lambda: engine.loglikelihoods(asked, [labels] * len(asked))
        found["labels of one token"] = lambda: engine.loglikelihoods(asked, [one_token] * len(asked), prefix=prefix)
        half = [prefix + each[len(each) // 2 :] for each in own]
        found["the questions' second halves"] = lambda: engine.loglikelihoods(half, [labels] * len(half), prefix=prefix)
        found["questions alone"] = lambda: engine.loglikelihoods(own, [one_token] * len(own))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--divide", type=float, default=4.0, help="the paper's tokens by this")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--attempts", action="store_true", help="measure what else was tried too")
    add_machine_options(parser, turns=3)
    options = parser.parse_args()
    model = model_of(options)
    shares, tried, seconds_of = {}, {}, {}
    for shape in options.shapes:
        seconds = in_turns(sides(model, options, shape), options)
        key = shape.lower().replace("-", "_")
        shares[f"{key}_ratio"] = ratio(seconds, "first", "second")
        seconds_of[shape] = medians(seconds)
        tried[shape] = {name: ratio(seconds, name, "second") for name in seconds if name != "second"}
    tell(
        "first_pass",
        options,
        **shares,
        tried=tried,
        median_seconds=seconds_of,
        sizes={name: getattr(options, name) for name in ("hidden", "layers", "vocab", "questions", "divide", "turns")},
    )


if __name__ == "__main__":
    main()
