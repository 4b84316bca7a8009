"""Rollouts: what the engine's decoding takes beside `transformers.generate`, sampled beside greedy, and a merge beside the reference's.

    python benchmarks/rollouts.py --json

A random Llama reads prompts of one length and writes answers of one length, from weights with z merged. `merge_ratio` is merging z into
all matrices and taking it out again, beside composing U diag(σ z) Vᵀ of the same shapes as the reference does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import Tokens, add_machine_options, add_model_options, attached_to, in_turns, medians, model_of, ratio, tell

from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.svf.adapted import Adapted


def writers(model: Any, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The three ways to write the same number of tokens."""
    ids = torch.randint(5, options.vocab, (options.sequences, options.prompt), generator=torch.Generator().manual_seed(1))
    ids = ids.to(options.device)  # (sequences, prompt)
    engine, prompts = Engine(model, Tokens(), batch_size=options.sequences, max_length=8192), ids.tolist()
    named = {"max_new_tokens": options.new, "min_new_tokens": options.new, "do_sample": True, "top_k": 0, "temperature": 1.0}
    mask = torch.ones_like(ids)
    sampled, greedy = (GenerationSettings(max_new_tokens=options.new, do_sample=sample) for sample in (True, False))
    return {
        "sampled": lambda: engine.complete(prompts, sampled, seed=0),
        "greedy": lambda: engine.complete(prompts, greedy, seed=0),
        "generate": lambda: model.generate(ids, attention_mask=mask, use_cache=True, **named),
    }


def merges(adapted: Adapted, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Merging and taking out again; and the reference's composition of the same shapes."""
    z = {path: 1 + 0.05 * torch.randn(basis.rank) for path, basis in adapted.bases.items()}
    shapes = [(*basis.shape, basis.rank) for basis in adapted.bases.values()]
    factors = {shape: (torch.randn(shape[0], shape[2]), torch.ones(shape[2]), torch.randn(shape[2], shape[1])) for shape in shapes}
    factors = {shape: tuple(each.to(options.device) for each in parts) for shape, parts in factors.items()}  # type: ignore[misc]

    def reference() -> None:
        for shape in shapes:
            u, scale, v = factors[shape]
            u @ torch.diag_embed(scale) @ v  # (out, in)

    return {"merge": lambda: (adapted.merge(z), adapted.unmerge()), "reference": reference}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    add_machine_options(parser, turns=5)
    options = parser.parse_args()
    model = model_of(options)
    adapted = attached_to(model)
    composed = in_turns(merges(adapted, options), options)
    with adapted.merged({path: torch.full((basis.rank,), 1.01) for path, basis in adapted.bases.items()}):
        written = in_turns(writers(model, options), options)
    tell(
        "rollouts",
        options,
        rollout_ratio=ratio(written, "sampled", "generate"),
        sampled_ratio=ratio(written, "sampled", "greedy"),
        merge_ratio=ratio(composed, "merge", "reference"),
        median_seconds={**medians(written), **medians(composed)},
        sizes={name: getattr(options, name) for name in ("hidden", "layers", "vocab", "sequences", "prompt", "new", "turns")},
    )


if __name__ == "__main__":
    main()
