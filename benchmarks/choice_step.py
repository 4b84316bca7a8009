"""Choice step: the seconds of one training step of a multiple-choice task, each prompt read once for all its choices or once a choice.

Both sides do forward and backward as `t2eval.training.chosen` does, with the divergence from the base model, over the same random questions
and a random model of SmolLM2-135M's shapes (fewer layers): SVF on every matrix, long prompts, short choices.

    ours   the choices of a prompt lie behind it in one sequence, under a mask
    apart  one sequence a choice

Times are medians of interleaved steps in one process. The gradients of both are compared first.

    python benchmarks/choice_step.py --json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from t2eval.svf.attachment import attach
from t2eval.training.choices import ChoicePolicy, Pairs
from t2eval.training.likelihood import Policy, divergence
from t2eval.training.readout import Readout

SIDES = ("ours", "apart")


def build(options: argparse.Namespace) -> Any:
    """The random model: SmolLM2-135M's proportions (64 a head, 3 heads a key-value head, tied embeddings)."""
    torch.manual_seed(0)
    heads = max(options.hidden // 64, 1)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 3, 1),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype)).eval()


def questions(options: argparse.Namespace) -> list[Pairs]:
    """(context, continuation) token ids of each choice of each question."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(options.vocab, (count,), generator=generator).tolist()

    asked = []
    for _ in range(options.questions):
        prompt = ids(options.prompt)
        asked.append([(prompt, ids(options.answer)) for _ in range(options.choices)])
    return asked


def step(side: ChoicePolicy, adapted: Any, asked: list[Pairs], at_once: int) -> list[torch.Tensor]:
    """Forward and backward of one step, and its gradients."""
    parameters = list(adapted.trainable().values())
    for parameter in parameters:
        parameter.grad = None
    size = max(1, at_once // max(side.sequences(choices) for choices in asked))
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        with torch.no_grad(), adapted.disabled():
            base = side.likelihoods(adapted.model, part)
        new = side.likelihoods(adapted.model, part)
        losses = [-one.log_softmax(-1)[0] + 0.1 * divergence(one, other, "new_to_base") for one, other in zip(new, base, strict=True)]
        (torch.stack(losses).sum() / len(asked)).backward()
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def measure(options: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Median seconds a step of each side, and how far their gradients are apart, beside their size."""
    model = build(options)
    adapted = attach(model)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours, apart = (ChoicePolicy(Policy(Readout(model)), model) for _ in SIDES)
    if not ours.packs:
        raise SystemExit("This model cannot read a prompt once for all its choices.")
    apart.packs = False
    sides, asked = {"ours": ours, "apart": apart}, questions(options)
    gradients = {name: torch.cat([each.flatten() for each in step(side, adapted, asked, options.at_once)]) for name, side in sides.items()}
    difference = float((gradients["ours"] - gradients["apart"]).norm() / gradients["apart"].norm())
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for _ in range(options.steps):
        for name, side in sides.items():
            started = clock()
            step(side, adapted, asked, options.at_once)
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}, difference


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=96, help="tokens of a prompt")
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--answer", type=int, default=4, help="tokens of a choice")
    parser.add_argument("--at-once", type=int, default=16, help="the most sequences in one pass")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine that others use too")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    seconds, difference = measure(options)
    names = ("hidden", "layers", "vocab", "questions", "prompt", "choices", "answer", "at_once", "steps", "clock", "dtype")
    report = {
        "benchmark": "choice_step",
        "time_ratio": round(seconds["ours"] / seconds["apart"], 4),
        "median_seconds": {name: round(value, 5) for name, value in seconds.items()},
        "gradient_difference": difference,
        "sizes": {name: getattr(options, name) for name in names},
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.machine()}, {options.threads} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()},
    }
    for name in SIDES:
        print(f"{name:>6}: {seconds[name] * 1e3:8.1f} ms a step")
    print(f"ours / apart: {report['time_ratio']:.3f}, gradients differ by {difference:.1e}")
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
