"""Limits: how often the base's own samples are right, without which policy gradient has nothing to begin with.

The paper names this as its method's limit: a skill that the base has no share of is not rewarded. Samples are drawn at temperature 1, one a
training example, with the prompts that the experts are trained on; they are counted in parts, so that a stopped run goes on.
"""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

from t2eval.paper.claims import Claim
from t2eval.paper.item import Columns, Item, Reported, Result
from t2eval.paper.markdown import short
from t2eval.paper.presets import SMOLLM2_PRESETS

if TYPE_CHECKING:
    from t2eval.paper.lab import Lab

PART = 64
"""Samples that are drawn and kept at a time."""
ENOUGH = 0.01
"""A batch of the paper's 256 answers then has two or three that are right."""
DRAWN = 2000
"""Training examples in the draw, of which a preset counts the first ones: one that counts more later goes on from there."""
_SEED = 0


class Sampler:
    """The base, and how it answers one task's training examples.

    Args:
        lab: whose preset.
        task: with generated answers.
    """

    def __init__(self, lab: Lab, task: str) -> None:
        from t2eval.basemodel.load import load_base
        from t2eval.environment.environment import Environment
        from t2eval.generation.engine import Engine
        from t2eval.training.scores import answer_settings

        preset = lab.preset
        model, tokenizer = load_base(preset.model, dtype=preset.dtype, device=preset.device or "auto")
        self.environment = Environment(task, tokenizer=tokenizer, apply_chat_template=True)
        self.engine = Engine(model, tokenizer, batch_size=PART)
        asked = answer_settings(self.environment)
        assert asked is not None
        self.settings = asked.from_the_model_itself(1.0)
        drawn = self.environment.examples("train", limit=DRAWN, seed=_SEED)
        random.Random(_SEED).shuffle(drawn)  # a draw stands in the split's order
        self.examples = drawn

    def count(self, start: int, end: int) -> dict[str, int]:
        """Of the examples from `start` up to `end`: how many samples there are, how many are right, and how many were cut off."""
        part = self.examples[start:end]
        prompts = [self.engine.encode(example.prompt) for example in part]
        written = self.engine.complete(prompts, self.settings, seed=_SEED, first=start)
        scores = self.environment.score_many([(example, each.text) for example, each in zip(part, written, strict=True)])
        return {
            "samples": len(part),
            "right": sum(score >= 0.5 for score in scores),
            "cut": sum(each.stopped == "length" for each in written),
        }


def run(lab: Lab) -> Result:
    """Count the right samples of each skill's seen task."""
    preset = lab.preset
    rows: list[dict[str, Any]] = []
    for skill, task in preset.rewarded.items():
        key = {"model": preset.model, "task": task, "seed": _SEED, "drawn": DRAWN}
        sampler: list[Sampler] = []

        def part(start: int, end: int, task: str = task, sampler: list[Sampler] = sampler) -> dict[str, int]:
            if not sampler:
                sampler.append(Sampler(lab, task))
            return sampler[0].count(start, end)

        parts: list[dict[str, int]] = []
        wanted = min(preset.samples.get(skill, DRAWN), DRAWN)
        for start in range(0, wanted, PART):
            end = min(start + PART, wanted)
            found = lab.once(f"limits/{task}-{start}", functools.partial(part, start, end), key={**key, "start": start, "end": end})
            parts.append(found)
            if found["samples"] < end - start:
                break  # the training split has no more
        total = {name: sum(each[name] for each in parts) for name in ("samples", "right", "cut")}
        rows.append({"skill": skill, "task": task, **total})
    claims = tuple(
        Claim(
            text=f"the base is right often enough on {short(str(row['task']))} for policy gradient to begin (1 sample in 100)",
            holds=row["right"] >= ENOUGH * row["samples"],
            seen=f"{row['right']} of {row['samples']} samples",
        )
        for row in rows
    )
    counted = ", ".join(f"{row['samples']} of {short(str(row['task']))}" for row in rows)
    note = (
        f"One sample at temperature 1 to each of the first examples of a seeded draw of {DRAWN} training examples, or of all where there "
    )
    note += f"are fewer: {counted}; in the chat template, graded as the task grades; counts, not tested."
    return Result(tuple(rows), claims, (note,))


def ours(result: Result) -> Columns:
    """A line a task."""
    found: Columns = {
        "right samples": {short(str(row["task"])): f"{row['right']} of {row['samples']}" for row in result.rows},
        "cut off by the limit of tokens": {short(str(row["task"])): str(row["cut"]) for row in result.rows},
    }
    return found


ITEMS = (
    Item(
        name="limits",
        title="How often the base's samples are right",
        measures="The right samples of the base on the training examples of each seen task in its generated form, which is what policy "
        "gradient is rewarded for.",
        reported=Reported(
            model="all base models",
            text="the experts' skills are tied to what the base has; a weak base's rewards are sparse, and give nothing to learn from.",
        ),
        run=run,
        ours=ours,
        presets=SMOLLM2_PRESETS,
    ),
)
