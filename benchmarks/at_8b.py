"""t2eval at the shapes of Llama-3-8B, random weights in bfloat16: seconds, tokens a second and bytes, one JSON line an item.

    python benchmarks/at_8b.py                                              # one GPU of 80 GB, under four minutes
    python benchmarks/at_8b.py --device cpu --hidden 512 --layers 4 --vocab 4096 --scale 0.25

`beside` of an item is what it is measured against, in the same run: the reference's dense composition, `transformers.generate`, plain
forward and backward passes. Results are kept in docs/performance.md, with the card, the versions and the date.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach
from t2eval.svf.bases import decompose
from t2eval.training.likelihood import Policy, pad
from t2eval.training.readout import Readout

KL = 0.1


class Tokens:
    """A tokenizer of nothing: any id is a letter, and none ends a text."""

    eos_token_id, bos_token_id, pad_token_id, eos_token, bos_token = None, None, 0, None, None
    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids: Any, **_: Any) -> str:
        return "x" * (len(ids) if isinstance(ids, list) else 1)


class Bench:
    """One model, and the clock beside it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.model: Any = None
        self.adapted: Adapted = None  # type: ignore[assignment]
        self.z: dict[str, Tensor] = {}

    def n(self, size: float) -> int:
        """A size, scaled."""
        return max(1, int(size * self.options.scale))

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any], n: int = 5, warm: int = 2) -> float:
        """The median seconds of `n` runs."""
        for _ in range(warm):
            work()
        seconds = []
        for _ in range(n):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def held(self) -> float:
        """GiB on the device now."""
        return torch.cuda.memory_allocated() / 2**30 if self.cuda else 0.0

    def peak(self, work: Callable[[], Any], n: int, warm: int = 1) -> tuple[float, float]:
        """The median seconds, and the GiB above what was held before."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = self.held()
        seconds = self.timed(work, n, warm)
        return seconds, torch.cuda.max_memory_allocated() / 2**30 - before if self.cuda else 0.0

    def ids(self, sequences: int, tokens: int) -> Tensor:
        return torch.randint(5, self.options.vocab, (sequences, tokens), device=self.device)


def say(**item: Any) -> None:
    print(json.dumps(item), flush=True)


def decompositions(bench: Bench) -> None:
    """The singular basis of one matrix of each shape, beside a float32 SVD."""
    hidden = bench.options.hidden
    for out, into in ((hidden // 4, hidden), (hidden, hidden), (hidden * 7 // 2, hidden), (hidden, hidden * 7 // 2)):
        weight = (torch.randn(out, into, device=bench.device) / into**0.5).to(bench.dtype)
        say(what="decompose", shape=[out, into], seconds=round(bench.timed(lambda w=weight: decompose(w), n=1, warm=1), 3))
    square = torch.randn(hidden, hidden, device=bench.device) / hidden**0.5
    seconds = bench.timed(lambda: torch.linalg.svd(square, full_matrices=False), n=1, warm=0)
    say(what="svd float32", shape=[hidden, hidden], seconds=round(seconds, 3))


def load(bench: Bench) -> None:
    options, hidden = bench.options, bench.options.hidden
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, hidden // 128),
        num_key_value_heads=max(1, hidden // 512),
        max_position_embeddings=8192,
        rope_theta=500000.0,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(bench.dtype)
    with bench.device:
        bench.model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    bench.model.generation_config.eos_token_id, bench.model.generation_config.pad_token_id = None, 0
    say(what="model", GiB=round(bench.held(), 2), parameters=sum(p.numel() for p in bench.model.parameters()))


def attached(bench: Bench) -> None:
    """All bases from nothing."""
    before, began = bench.held(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench.adapted = attach(bench.model, cache_dir=Path(folder))
    bench.wait()
    seconds, room = time.perf_counter() - began, bench.held() - before
    say(what="attach", seconds=round(seconds, 2), GiB=round(room, 2), matrices=len(bench.adapted.paths))
    bases = bench.adapted.bases
    bench.z = {path: 1 + 0.05 * torch.randn(bases[path].rank, device=bench.device) for path in bench.adapted.paths}


def forwards(bench: Bench) -> None:
    """A forward pass: plain, under hooks, merged; merging, beside the reference's composition of the same shapes."""
    sequences, tokens, adapted = bench.n(8), bench.n(512), bench.adapted
    ids = bench.ids(sequences, tokens)

    @torch.no_grad()
    def forward() -> None:
        bench.model(input_ids=ids, use_cache=False, logits_to_keep=1)

    with adapted.disabled():
        plain = bench.timed(forward)
    say(what="plain forward", sequences=sequences, tokens=tokens, seconds=round(plain, 4), tok_s=round(sequences * tokens / plain))
    adapted.set_z(bench.z)
    hooked = bench.timed(forward)
    say(what="hooked forward", seconds=round(hooked, 4), over_plain=round(hooked / plain, 3), GiB_now=round(bench.held(), 2))
    seconds, room = bench.peak(lambda: (adapted.merge(bench.z), adapted.unmerge()), n=5)
    say(what="merge + unmerge", seconds=round(seconds, 3), above_now=round(room, 2))
    adapted.merge(bench.z)
    say(what="merged forward", over_plain=round(bench.timed(forward) / plain, 3))
    adapted.unmerge()
    if bench.cuda:
        adapted.keep_base = "host"
        seconds, room = bench.peak(lambda: (adapted.merge(bench.z), adapted.unmerge()), n=1)
        say(what="merge + unmerge, base on the host", seconds=round(seconds, 3), above_now=round(room, 2))
        adapted.keep_base = "device"
    say(what="reference compose, all matrices", seconds=round(bench.timed(_reference(bench), n=5, warm=1), 3))


def _reference(bench: Bench) -> Callable[[], None]:
    """U diag(σz) Vᵀ of every matrix, in the model's dtype."""
    buffers: dict[tuple[str, int, int], Tensor] = {}

    def buffer(kind: str, rows: int, columns: int) -> Tensor:
        if (kind, rows, columns) not in buffers:
            buffers[kind, rows, columns] = torch.randn(rows, columns, device=bench.device, dtype=bench.dtype)
        return buffers[kind, rows, columns]

    def compose() -> None:
        for basis in bench.adapted.bases.values():
            out, into = basis.shape
            scale = torch.ones(basis.rank, device=bench.device, dtype=bench.dtype)
            torch.matmul(buffer("u", out, basis.rank) @ torch.diag_embed(scale), buffer("v", basis.rank, into))

    return compose


def steps(bench: Bench) -> None:
    """A training step on the next token, and micro batches of the policy gradient with KL, as `training.written` learns them."""
    model, adapted = bench.model, bench.adapted
    adapted.use_parameters()
    parameters = list(adapted.trainable().values())
    sequences, tokens = bench.n(8), bench.n(512)
    ids = bench.ids(sequences, tokens)

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None

    def step() -> None:
        clear()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    def activations() -> None:  # plain forward and backward to the activations: what no method does without
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        with adapted.disabled():
            model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()

    plain = bench.timed(activations, n=3, warm=1)
    say(
        what="plain forward + backward",
        sequences=sequences,
        tokens=tokens,
        seconds=round(plain, 3),
        tok_s=round(sequences * tokens / plain),
    )
    seconds, room = bench.peak(step, n=3)
    speed = round(sequences * tokens / seconds)
    say(
        what="svf step (next token, no KL)",
        sequences=sequences,
        tokens=tokens,
        seconds=round(seconds, 3),
        tok_s=speed,
        above_now=round(room, 2),
    )
    with adapted.learning():
        seconds, room = bench.peak(step, n=3)
    speed = round(sequences * tokens / seconds)
    item = {"what": "svf step from merged weights, without the merge", "sequences": sequences, "tokens": tokens}
    say(**item, seconds=round(seconds, 3), tok_s=speed, above_now=round(room, 2))
    policy = Policy(Readout(model))
    for size in (1, 4, 8):
        _learn(bench, policy, clear, size, "hooks")
    for size in (4, 8):
        _learn(bench, policy, clear, size, "merged")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for size, weights in ((8, "hooks"), (8, "merged"), (32, "merged")):
        _learn(bench, policy, clear, size, weights, checkpointed=True)
    model.gradient_checkpointing_disable()
    model.eval()


def _learn(bench: Bench, policy: Policy, clear: Callable[[], None], size: int, weights: str, checkpointed: bool = False) -> None:
    model, prompt, answer = bench.model, bench.n(128), bench.n(512)
    pairs = [(list(range(5, 5 + prompt)), [7 + place % 50 for place in range(answer)]) for _ in range(size)]
    item = {
        "what": "learn micro batch with KL",
        "micro_batch": size,
        "prompt": prompt,
        "answer": answer,
        "weights": weights,
        "checkpointed": checkpointed,
    }

    def learn() -> None:
        clear()
        batch = pad(pairs, bench.device)
        with torch.no_grad(), bench.adapted.disabled():
            base = policy.states(model, batch)
        log_probs, divergences = policy.scores(policy.states(model, batch), batch.targets, base)
        (-log_probs.sum() + KL * divergences.sum()).backward()

    try:
        with bench.adapted.learning() if weights == "merged" else contextlib.nullcontext():
            seconds, room = bench.peak(learn, n=2)
    except torch.OutOfMemoryError:
        say(**item, error="out of memory")
        clear()
        return
    say(**item, seconds=round(seconds, 3), tok_s=round(size * (prompt + answer) / seconds), above_now=round(room, 2))


def rollouts(bench: Bench) -> None:
    """Rollouts from merged weights through the engine, beside transformers' own."""
    model = bench.model
    engine = Engine(model, Tokens(), batch_size=1024, max_length=8192)
    with bench.adapted.merged(bench.z):
        for sequences, new in ((64, 64), (64, 256), (256, 64), (256, 512)):
            sequences, prompt, new = bench.n(sequences), bench.n(128), bench.n(new)
            prompts = bench.ids(sequences, prompt).tolist()
            one = GenerationSettings(max_new_tokens=1, do_sample=True)
            first = bench.timed(lambda p=prompts, s=one: engine.complete(p, s, seed=0), n=1, warm=1)
            for name, sample in (("sampled", True), ("greedy", False)):
                settings = GenerationSettings(max_new_tokens=new, do_sample=sample)
                seconds = bench.timed(lambda p=prompts, s=settings: engine.complete(p, s, seed=0), n=1 if new > 200 else 3, warm=1)
                item = {"what": f"rollouts, {name}", "sequences": sequences, "prompt": prompt, "new": new, "seconds": round(seconds, 3)}
                rate = round(sequences * max(1, new - 1) / max(1e-9, seconds - first))
                say(**item, new_tok_s=round(sequences * new / seconds), new_tok_s_behind_the_prompts=rate, prompts_seconds=round(first, 3))
        sequences, prompt, new = bench.n(64), bench.n(128), bench.n(64)
        ids = bench.ids(sequences, prompt)
        named = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "top_k": 0, "temperature": 1.0}
        seconds = bench.timed(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **named), n=2, warm=1)
        speed = round(sequences * new / seconds)
        say(what="transformers generate, sampled", sequences=sequences, prompt=prompt, new=new, seconds=round(seconds, 3), new_tok_s=speed)


def mixed_batch(bench: Bench) -> None:
    """Four experts in one batch: one z a sequence, beside a merge for each."""
    adapted, model = bench.adapted, bench.model
    many = {path: 1 + 0.05 * torch.randn(4, len(z), device=bench.device) for path, z in bench.z.items()}
    ids, owners = bench.ids(16, bench.n(128)), torch.arange(16, device=bench.device) % 4

    @torch.no_grad()
    def together() -> None:
        with adapted.per_sequence({path: z[owners] for path, z in many.items()}):
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

    @torch.no_grad()
    def merges() -> None:
        for number in range(4):
            with adapted.merged({path: z[number] for path, z in many.items()}):
                model(input_ids=ids[number::4], use_cache=False, logits_to_keep=1)

    both, apart = bench.timed(together, n=3, warm=1), bench.timed(merges, n=3, warm=1)
    say(what="16 sequences, 4 experts: mixed / merges", mixed=round(both, 3), merges=round(apart, 3), gain=round(apart / both, 2))


def first_pass(bench: Bench) -> None:
    """Dispatch by the likelihood of five labels behind a shared prefix, beside the second pass, at the paper's shapes (Table 3)."""
    engine = Engine(bench.model, Tokens(), batch_size=64, max_length=8192)
    prefix = bench.ids(1, bench.n(150))[0].tolist()
    for name, prompt, answer in (("MATH", 150, 512), ("HumanEval", 180, 256), ("ARC-Challenge", 100, 64)):
        sequences, question = bench.n(64), bench.n(100 if name == "MATH" else 150 if name == "HumanEval" else 60)
        asked = [prefix + own for own in bench.ids(sequences, question).tolist()]
        labels = [bench.ids(5, 3).tolist() for _ in asked]
        first = bench.timed(lambda a=asked, c=labels: engine.loglikelihoods(a, c, prefix=prefix), n=2, warm=1)
        prompts = bench.ids(sequences, bench.n(prompt)).tolist()
        settings = GenerationSettings(max_new_tokens=bench.n(answer))
        second = bench.timed(lambda p=prompts, s=settings: engine.complete(p, s), n=1, warm=0)
        share = round(first / second, 3)
        say(what="first pass / second pass", shape=name, sequences=sequences, first=round(first, 3), second=round(second, 3), share=share)


ITEMS = {
    "attach": attached,
    "forward": forwards,
    "step": steps,
    "first": first_pass,
    "roll": rollouts,
    "mixed": mixed_batch,
    "decompose": decompositions,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of sequences and tokens")
    parser.add_argument("--skip", default="", help=f"items, joined by commas: {', '.join(ITEMS)}")
    options = parser.parse_args()
    bench = Bench(options)
    card = torch.cuda.get_device_name() if bench.cuda else "cpu"
    say(device=card, torch=torch.__version__, transformers=transformers.__version__, date=time.strftime("%Y-%m-%d"))
    load(bench)
    for name, item in ITEMS.items():
        if name in options.skip.split(","):
            continue
        item(bench)
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    say(what="end", GiB_peak_total=round(torch.cuda.max_memory_reserved() / 2**30, 2) if bench.cuda else 0)


if __name__ == "__main__":
    main()
