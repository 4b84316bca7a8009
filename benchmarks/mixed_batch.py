"""Mixed batch: sequences of several experts in one batch, one z a sequence, beside one merge and one batch for each expert.

    python benchmarks/mixed_batch.py --json
    python benchmarks/mixed_batch.py --each 1 2 4 8 --new 1 16 64        a grid

Both sides write the same greedy tokens with the same random Llama; that they do is checked first (float32). For each number of sequences an
expert and of new tokens a line says which side was faster, and which one `merging_is_cheaper` would choose, by which few-shot
search decides how its candidates are answered.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import add_machine_options, add_model_options, attached_to, in_turns, medians, model_of, ratio, tell

from t2eval.strategies.fewshot import merging_is_cheaper
from t2eval.svf.adapted import Adapted


def sides(adapted: Adapted, options: argparse.Namespace, each: int, new: int) -> dict[str, Callable[[], Any]]:
    """The two ways to answer `each` prompts of every expert with `new` tokens."""
    model, device, experts = adapted.model, options.device, options.experts
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, options.vocab, (experts * each, options.prompt), generator=generator).to(device)  # (sequences, prompt)
    owners = (torch.arange(experts * each) % experts).to(device)  # (sequences,)
    every = {path: 1 + 0.05 * torch.randn(experts, basis.rank, generator=generator) for path, basis in adapted.bases.items()}
    every = {path: z.to(device) for path, z in every.items()}  # (experts, r)
    named = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "use_cache": True}

    @torch.no_grad()
    def mixed() -> Any:
        with adapted.per_sequence({path: z[owners] for path, z in every.items()}):
            return model.generate(ids, attention_mask=torch.ones_like(ids), **named)

    @torch.no_grad()
    def grouped() -> Any:
        made = ids.new_empty(len(ids), options.prompt + new)
        for number in range(experts):
            part = ids[owners == number]  # (each, prompt)
            with adapted.merged({path: z[number] for path, z in every.items()}):
                made[owners == number] = model.generate(part, attention_mask=torch.ones_like(part), **named)
        return made

    if not torch.equal(mixed(), grouped()):
        raise SystemExit("The two sides wrote different tokens.")
    return {"mixed": mixed, "grouped": grouped}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--each", type=int, nargs="+", default=[2], help="sequences of each expert")
    parser.add_argument("--new", type=int, nargs="+", default=[16], help="tokens of an answer")
    add_machine_options(parser, turns=5)
    options = parser.parse_args()
    model = model_of(options)
    adapted = attached_to(model)
    shapes = [basis.shape for basis in adapted.bases.values()]
    grid = []
    for each in options.each:
        for new in options.new:
            seconds = in_turns(sides(adapted, options, each, new), options)
            batch, cpu = options.experts * each, torch.device(options.device).type == "cpu"
            merged = merging_is_cheaper(shapes, options.experts, each, options.prompt + new, batch, cpu=cpu)
            found = {
                "each": each,
                "new": new,
                "mixed_over_grouped": ratio(seconds, "mixed", "grouped"),
                "chosen": "grouped" if merged else "mixed",
            }
            grid.append({**found, "seconds": medians(seconds)})
            print(grid[-1])
    chosen = [one["mixed_over_grouped"] if one["chosen"] == "mixed" else 1 / one["mixed_over_grouped"] for one in grid]
    tell(
        "mixed_batch",
        options,
        mixed_ratio=grid[0]["mixed_over_grouped"],
        chosen_over_other=[round(one, 3) for one in chosen],
        grid=grid,
        sizes={name: getattr(options, name) for name in ("hidden", "layers", "vocab", "experts", "prompt", "turns")},
    )


if __name__ == "__main__":
    main()
