"""PEFT trainer: LoRA or IA3 by transformers' own Trainer, as in peft's method_comparison, beside t2eval's loop.

Both sides learn the same worked answers in the same order, with AdamW, a cosine rate without warm-up and no clip, for the same steps; the
Trainer pads a batch as one, and its loss is the mean over the batch's answer tokens, as ours. Both results are scored on the same
validation rows, beside the base.

    python benchmarks/peft_trainer.py runs/peft --model smollm2 --task arc_easy --methods lora --steps 12

With `--turns` the seconds of a step are measured first, the two sides in turns, and the Trainer is scored a second time after as many
steps as it makes in our seconds (its schedule is of that length).

Run again, it goes on: what is finished is kept in the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from t2eval.basemodel.load import load_base
from t2eval.environment.environment import Environment, Example
from t2eval.stats.means import mean_stderr
from t2eval.stats.paired import sign_test
from t2eval.training.config import TrainConfig
from t2eval.training.methods import find_method, make_trainable
from t2eval.training.scores import Validator
from t2eval.training.supervised import Supervised
from t2eval.training.train import apart_from_test, train_expert

TURN_STEPS = 4
RATES = {"lora": 2e-3, "ia3": 1e-2}


class InOrder(Trainer):
    """The Trainer, with the rows in the order that they are given in."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """When the Trainer ended each step, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def configured(options: argparse.Namespace, method: str, output: Path) -> TrainConfig:
    """Our side's settings."""
    return TrainConfig(
        task=options.task,
        model=options.model,
        method=method,
        objective="supervised",
        steps=options.steps,
        batch_size=options.batch_size,
        lr=RATES[method],
        clip=0.0,
        validate_every=options.steps,
        validation_limit=options.validation,
        eval_batch_size=16,
        seed=options.seed,
        test=False,
        output=output,
        resume=(output / "settings.json").exists(),
    )


def rows(examples: list[Example], config: TrainConfig) -> list[Example]:
    """The examples of all steps, in the order of our loop: one seeded permutation after the other."""
    wanted: list[Example] = []
    epoch = 0
    while len(wanted) < config.steps * config.batch_size:
        order = list(range(len(examples)))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        wanted += [examples[place] for place in order]
        epoch += 1
    return wanted[: config.steps * config.batch_size]


def collate(batch: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """(prompt, answer) ids → input_ids, attention_mask, labels, (sequences, tokens) int64 each, padded on the right."""
    width = max(len(prompt) + len(answer) for prompt, answer in batch)

    def square(rows_of: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows_of])

    return {
        "input_ids": square([prompt + answer for prompt, answer in batch], 0),
        "attention_mask": square([[1] * (len(prompt) + len(answer)) for prompt, answer in batch], 0),
        "labels": square([[-100] * len(prompt) + answer for prompt, answer in batch], -100),
    }


def theirs(model: Any, read: list[tuple[list[int], list[int]]], config: TrainConfig, output: Path) -> tuple[float, list[float]]:
    """Train by the Trainer; returns its seconds, and when each step ended."""
    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.sweep_values("lr")[0],
        lr_scheduler_type="cosine",
        weight_decay=config.weight_decay,
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=read, data_collator=collate, callbacks=[clock])
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started, clock.ends


def outcomes(model: Any, tokenizer: Any, environment: Environment, examples: list[Example], config: TrainConfig) -> list[float]:
    """The metric of each validation example."""
    trained: Any = SimpleNamespace(model=model, eval_mode=model.eval, fast=lambda: contextlib.nullcontext(model))
    return Validator(trained, environment, tokenizer, config).outcomes(examples)


def measure(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """Both sides of one method."""
    kept = options.output / f"{method}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    config = configured(options, method, options.output / f"t2eval-{method}")
    a_step = in_turns(options, method) if options.turns else None
    ours = train_expert(config, progress=True)
    model, tokenizer = load_base(options.model)
    environment = Environment(options.task)
    asked = [environment.examples("train"), environment.examples("validation", options.validation, seed=0)]
    train, held = apart_from_test(environment, asked, False)
    base = outcomes(model, tokenizer, environment, held, config)
    with find_method(method).mounted(model, ours.path) as mounted:
        own = outcomes(mounted, tokenizer, environment, held, config)
    seconds, other = their_side(model, tokenizer, environment, train, held, config, options.output / f"trainer-{method}")
    log = logged(ours.path)
    found = {
        "method": method,
        "n": len(held),
        "steps": config.steps,
        "score": {name: mean_stderr(values) for name, values in (("base", base), ("t2eval", own), ("trainer", other))},
        "chosen_step": ours.chosen_step,
        "ours_above_theirs": against(own, other),
        "seconds": {"t2eval, before its last validation": log[-2]["seconds"] * config.steps / (config.steps - 1), "trainer": seconds},
    }
    if a_step is not None:
        steps = max(1, round(config.steps * median(a_step["t2eval"]) / median(a_step["trainer"])))
        model, _ = load_base(options.model)
        fewer = config.model_copy(update={"steps": steps})
        took, scores = their_side(model, tokenizer, environment, train, held, fewer, options.output / f"trainer-{method}-{steps}")
        same = {"steps": steps, "seconds": took, "score": mean_stderr(scores), "ours_above_theirs": against(own, scores)}
        found |= {"seconds_a_step": a_step, "trainer_in_our_seconds": same}
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def their_side(
    model: Any, tokenizer: Any, environment: Environment, train: list[Example], held: list[Example], config: TrainConfig, output: Path
) -> tuple[float, list[float]]:
    """Seconds of the Trainer's training of a fresh base, and the metric of each validation example after it."""
    trainable = make_trainable(model, config)
    lessons = Supervised(environment, tokenizer, config)
    read = [lessons.encoded(example, model.config) for example in rows(train, config)]
    trainable.train_mode()
    seconds, _ = theirs(trainable.model, read, config, output)
    return seconds, outcomes(trainable.model, tokenizer, environment, held, config)


def against(own: list[float], other: list[float]) -> list[float]:
    """How many examples only ours has right, how many only theirs, and the sign test's p."""
    gained, lost = sum(a > b for a, b in zip(own, other, strict=True)), sum(a < b for a, b in zip(own, other, strict=True))
    return [gained, lost, sign_test(gained, lost)]


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def in_turns(options: argparse.Namespace, method: str) -> dict[str, list[float]]:
    """Seconds of a step of each side, one figure a turn: of short trainings, without their first step and our last validation."""
    found: dict[str, list[float]] = {"t2eval": [], "trainer": []}
    for turn in range(options.turns):
        short = argparse.Namespace(**{**vars(options), "steps": TURN_STEPS, "validation": 1})
        config = configured(short, method, options.output / "turns" / f"{method}-{turn}")
        log = logged(train_expert(config, progress=False).path)
        times = [line["seconds"] for line in log if "loss" in line]
        found["t2eval"].append((times[-2] - times[0]) / (TURN_STEPS - 2))
        model, tokenizer = load_base(options.model)
        environment = Environment(options.task)
        (train,) = apart_from_test(environment, [environment.examples("train")], False)
        trainable, lessons = make_trainable(model, config), Supervised(environment, tokenizer, config)
        read = [lessons.encoded(example, model.config) for example in rows(train, config)]
        trainable.train_mode()
        _, ends = theirs(trainable.model, read, config, options.output / "turns" / f"trainer-{method}-{turn}")
        found["trainer"].append((ends[-2] - ends[0]) / (TURN_STEPS - 2))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--methods", nargs="+", choices=sorted(RATES), default=sorted(RATES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--validation", type=int, default=128, help="rows that both sides are scored on")
    parser.add_argument("--turns", type=int, default=0, help="how often both sides' steps are timed in turns first; 0: not at all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps {options.steps}: 2 at least, since ours are timed without the last one, which validates.")
    options.output.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        print(json.dumps(measure(options, method)))


if __name__ == "__main__":
    main()
