"""Checkpointing: what each way to keep fewer activations for the backward pass saves, and what it costs, from merged weights with KL.

    python benchmarks/checkpointing.py --json

A learning step over one micro batch: a forward pass of the base, one of the policy, and the backward pass. Bytes are counted, not measured:
every tensor that autograd keeps for the backward pass, once, without weights and bases. `whole` keeps all, `layers` only each layer's input
(`checkpoint_activations`), `second` does so in every second layer, `mlp` keeps attention and reads only the MLPs again, `host` moves
everything to the host's memory and back.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measuring import add_machine_options, add_model_options, attached_to, in_turns, medians, model_of, ratio, tell
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2eval.svf.adapted import Adapted
from t2eval.training.likelihood import Policy, pad
from t2eval.training.readout import Readout

WAYS = ("whole", "layers", "second", "mlp", "host")
KL = 0.1


@contextlib.contextmanager
def read_again(modules: list[nn.Module]) -> Iterator[None]:
    """Keep only the inputs of some modules, inside the context."""
    for module in modules:
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def way(model: Any, name: str) -> contextlib.AbstractContextManager[Any]:
    """A way to keep activations, as a context."""
    layers = list(model.model.layers)
    if name == "whole":
        return contextlib.nullcontext()
    if name == "host":
        return torch.autograd.graph.save_on_cpu(pin_memory=model.device.type == "cuda")
    return read_again({"layers": layers, "second": layers[::2], "mlp": [layer.mlp for layer in layers]}[name])


def learner(adapted: Adapted, options: argparse.Namespace) -> Callable[[], Tensor]:
    """A learning step up to its loss."""
    model, policy = adapted.model, Policy(Readout(adapted.model))
    pairs = [(list(range(5, 5 + options.prompt)), [7 + place % 50 for place in range(options.answer)]) for _ in range(options.sequences)]
    batch = pad(pairs, options.device)

    def loss() -> Tensor:
        with torch.no_grad(), adapted.disabled():
            base = policy.states(model, batch)
        log_probs, divergences = policy.scores(policy.states(model, batch), batch.targets, base)
        return -log_probs.sum() + KL * divergences.sum()

    return loss


def kept(model: Any, name: str, loss: Callable[[], Tensor]) -> int:
    """Bytes that wait on the device for the backward pass."""
    if name == "host":
        return 0
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), way(model, name):
        result = loss()
        bases = {place for place, tensor in found.items() if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]}  # Q
        total = sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own | bases)
    del result
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--answer", type=int, default=96)
    add_machine_options(parser, turns=5)
    options = parser.parse_args()
    adapted = attached_to(model_of(options))
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    loss = learner(adapted, options)
    bytes_kept, gradients = {}, {}

    def step(name: str) -> None:
        for parameter in adapted.trainable().values():
            parameter.grad = None
        with way(adapted.model, name):
            loss().backward()

    with adapted.learning():
        for name in WAYS:
            bytes_kept[name] = kept(adapted.model, name, loss)
            step(name)
            gradients[name] = torch.cat([parameter.grad for parameter in adapted.trainable().values() if parameter.grad is not None])
        seconds = in_turns({name: functools.partial(step, name) for name in WAYS}, options)
    for name in WAYS:
        if not torch.allclose(gradients[name], gradients["whole"], rtol=1e-4, atol=1e-5):
            raise SystemExit(f"The gradients of {name} are others.")
    tokens = options.sequences * (options.prompt + options.answer)
    tell(
        "checkpointing",
        options,
        time={name: ratio(seconds, name, "whole") for name in WAYS},
        kept={name: round(bytes_kept[name] / max(bytes_kept["whole"], 1), 4) for name in WAYS},
        bytes_a_token_and_layer={name: round(bytes_kept[name] / tokens / options.layers) for name in WAYS},
        median_seconds=medians(seconds),
        sizes={name: getattr(options, name) for name in ("hidden", "layers", "vocab", "sequences", "prompt", "answer", "turns")},
    )


if __name__ == "__main__":
    main()
