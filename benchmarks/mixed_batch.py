"""Mixed batch: sequences of several experts in one batch, one z a sequence, beside one merge and one batch for each expert.

    python benchmarks/mixed_batch.py --json
    python benchmarks/mixed_batch.py --hidden 64 192 --each 1 4 16 --prompt 16 128 --new 0 16        a grid
    python benchmarks/mixed_batch.py … --record FILE       the grid of tests/svf/answering_paths.json, measured again

Both sides write the same greedy tokens with the same random Llama, or read the same prompts (`--new 0`); that they do is checked first
(float32). For each point a line says how long one side took beside the other, and which one `t2eval.svf.cost` chooses, by which dispatch
and few-shot search decide how sequences of several z are answered. A choice is right where it is the faster one, or within 3% of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import add_machine_options, attached_to, in_turns, llama, machine, medians, ratio, tell

from t2eval.store.files import write_text
from t2eval.svf.adapted import Adapted
from t2eval.svf.cost import Work, together_is_cheaper

EQUAL = 1.03
AXES = ("hidden", "layers", "experts", "each", "prompt", "new")


def sides(adapted: Adapted, options: argparse.Namespace, point: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The two ways to answer `each` prompts of every expert with `new` tokens."""
    model, device, experts, each, new = adapted.model, options.device, point["experts"], point["each"], point["new"]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, options.vocab, (experts * each, point["prompt"]), generator=generator).to(device)  # (sequences, prompt)
    owners = (torch.arange(experts * each) % experts).to(device)  # (sequences,)
    every = {path: 1 + 0.05 * torch.randn(experts, basis.rank, generator=generator) for path, basis in adapted.bases.items()}
    every = {path: z.to(device) for path, z in every.items()}  # (experts, r)
    named = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "use_cache": True}

    def answered(part: torch.Tensor) -> torch.Tensor:
        if not new:
            return model(input_ids=part, use_cache=False).logits.argmax(-1)  # (sequences, prompt)
        return model.generate(part, attention_mask=torch.ones_like(part), **named)[:, part.shape[1] :]  # (sequences, new)

    @torch.no_grad()
    def mixed() -> Any:
        with adapted.per_sequence({path: z[owners] for path, z in every.items()}):
            return answered(ids)

    @torch.no_grad()
    def grouped() -> Any:
        made = ids.new_empty(len(ids), new or ids.shape[1])
        for number in range(experts):
            with adapted.merged({path: z[number] for path, z in every.items()}):
                made[owners == number] = answered(ids[owners == number])
        return made

    if not torch.equal(mixed(), grouped()):
        raise SystemExit("The two sides wrote different tokens.")
    return {"mixed": mixed, "grouped": grouped}


def judged(point: dict[str, Any], device: str) -> dict[str, Any]:
    """What the count chooses at a point, and how much slower that is than the other side (below 1: faster)."""
    shapes = [(out, into) for out, into in point["shapes"]] * point["layers"]
    groups = [point["each"]] * point["experts"]
    kind = torch.device(device).type
    mixed = together_is_cheaper(shapes, groups, Work(point["prompt"], point["new"], sum(groups)), kind)
    over = point["mixed_over_grouped"] if mixed else 1 / point["mixed_over_grouped"]
    return {"chosen": "mixed" if mixed else "grouped", "chosen_over_other": round(over, 4)}


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides at each point of the grid."""
    grid = []
    for hidden, layers in itertools.product(options.hidden, options.layers):
        adapted = attached_to(llama(hidden, layers, options.vocab, options.device))
        shapes = [list(basis.shape) for basis in adapted.bases.values()]
        for values in itertools.product(options.experts, options.each, options.prompt, options.new):
            point = dict(zip(AXES, (hidden, layers, *values), strict=True))
            seconds = in_turns(sides(adapted, options, point), options)
            point["mixed_over_grouped"] = ratio(seconds, "mixed", "grouped")
            point["shapes"] = shapes[: len(shapes) // layers]
            grid.append(point)
            shown = {key: value for key, value in point.items() if key != "shapes"}
            print({**shown, **judged(point, options.device), "seconds": medians(seconds)}, flush=True)
    return grid


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512])
    parser.add_argument("--layers", type=int, nargs="+", default=[4])
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--experts", type=int, nargs="+", default=[4])
    parser.add_argument("--prompt", type=int, nargs="+", default=[64], help="tokens of a prompt")
    parser.add_argument("--each", type=int, nargs="+", default=[2], help="sequences of each expert")
    parser.add_argument("--new", type=int, nargs="+", default=[16], help="tokens of an answer; 0: prompts are only read")
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
        "mixed_batch",
        options,
        mixed_ratio=grid[0]["mixed_over_grouped"],
        slowest_choice=max(over),
        right=f"{sum(value <= EQUAL for value in over)} of {len(over)}",
        sizes={name: getattr(options, name) for name in (*AXES, "vocab", "turns")},
    )


if __name__ == "__main__":
    main()
