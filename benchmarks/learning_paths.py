"""Learning paths: under the hooks or from merged weights, over a grid of steps, and whether `t2eval.svf.cost` picks the faster one.

    python benchmarks/learning_paths.py --json              a small grid
    python benchmarks/learning_paths.py --record FILE       the grid of tests/svf/learning_paths.json, measured again

A step reads its sequences in some passes, forward and backward; from merged weights it merges first and takes the weights out again. Times
are medians of turns. A choice is right where it is the faster one, or within 3% of it: that is what two runs of one side differ by.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import add_machine_options, attached_to, in_turns, llama, machine, tell

from t2eval.store.files import write_text
from t2eval.svf.adapted import Adapted
from t2eval.svf.cost import learning_from_merged_is_cheaper

EQUAL = 1.03


def sides(adapted: Adapted, sequences: int, tokens: int, passes: int) -> dict[str, Callable[[], Any]]:
    """One step in each way: `passes` forward and backward passes over `sequences` x `tokens` each."""
    model, parameters = adapted.model, list(adapted.trainable().values())
    vocabulary = model.config.vocab_size
    ids = torch.randint(5, vocabulary, (sequences, tokens), generator=torch.Generator().manual_seed(1)).to(model.device)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        for _ in range(passes):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    def merged() -> None:
        with adapted.learning():
            step()

    return {"hooks": step, "merged": merged}


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides at each point of the grid."""
    grid = []
    for hidden, layers in itertools.product(options.hidden, options.layers):
        model = llama(hidden, layers, options.vocab, options.device)
        adapted = attached_to(model)
        with torch.no_grad():
            for parameter in adapted.trainable().values():
                parameter.add_(0.02 * torch.randn_like(parameter))
        shapes = [basis.shape for basis in adapted.bases.values()]
        for sequences, tokens, passes in itertools.product(options.sequences, options.tokens, options.passes):
            seconds = in_turns(sides(adapted, sequences, tokens, passes), options)
            pairs = zip(seconds["merged"], seconds["hooks"], strict=True)
            point = {"hidden": hidden, "layers": layers, "sequences": sequences, "tokens": tokens, "passes": passes}
            point["merged_over_hooks"] = round(statistics.median(one / other for one, other in pairs), 4)
            point["shapes"] = [list(shape) for shape in shapes[: len(shapes) // layers]]
            grid.append(point)
            print({**{key: value for key, value in point.items() if key != "shapes"}, **judged(point, options.device)}, flush=True)
    return grid


def judged(point: dict[str, Any], device: str) -> dict[str, Any]:
    """What the count chooses at a point, and how much slower that is than the other side (below 1: faster)."""
    shapes = [(out, into) for out, into in point["shapes"]] * point["layers"]
    tokens = point["sequences"] * point["tokens"] * point["passes"]
    cheaper = learning_from_merged_is_cheaper(shapes, tokens, point["passes"], torch.device(device).type)
    over = point["merged_over_hooks"] if cheaper else 1 / point["merged_over_hooks"]
    return {"chosen": "merged" if cheaper else "hooks", "chosen_over_other": round(over, 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--record", type=Path, help="write the grid there, with the machine")
    add_machine_options(parser, turns=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    grid = measured(options)
    over = [judged(point, options.device)["chosen_over_other"] for point in grid]
    if options.record:
        lines = ",\n".join(json.dumps(point) for point in grid)
        write_text(options.record, f'{{"machine": {json.dumps(machine(options))},\n"grid": [\n{lines}\n]}}\n')
    tell(
        "learning_paths",
        options,
        slowest_ratio=round(max(over), 4),
        right=f"{sum(value <= EQUAL for value in over)} of {len(over)}",
        sizes={name: getattr(options, name) for name in ("hidden", "layers", "vocab", "sequences", "tokens", "passes", "turns")},
    )


if __name__ == "__main__":
    main()
