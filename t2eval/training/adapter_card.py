"""Adapter card: the README of a PEFT adapter that a baseline run leaves, in the Hub's form, with its scores."""

from __future__ import annotations

from pathlib import Path

from t2eval.basemodel.folders import embedded_base_dir
from t2eval.paths import is_embedded
from t2eval.training.record import RunRecord
from t2eval.vision.images import is_multimodal

_CARD = """---
base_model: {base}
library_name: {library}
tags:
- t2eval
- {method}
---

# {name}

{what} of `{base}`, trained on `{task}` with the {objective} objective as a baseline of t2eval's experts: seed {seed},
{steps} steps in {seconds:.0f} s, {parameters:,} parameters. Validation chose the checkpoint of step {chosen}.

```bash
lm_eval --model {model} --model_args {arguments} --tasks {task}
```

| split | training | score | standard error | n |
|---|---|---|---|---|
{rows}
"""


def adapter_card(name: str, record: RunRecord, *, whole: bool = False) -> str:
    """The card of one adapter, in Markdown with the Hub's metadata on top.

    Args:
        name: the adapter's name.
        record: of its training.
        whole: the folder is a model of its own, and no adapter.
    """
    base, local = (
        record.base_model.id,
        Path(record.base_model.id).is_dir(),
    )  # a card is for others: this machine's folders mean nothing there
    rows = [
        f"| {split} | {when} | {score.score:.4f} | {'' if score.stderr is None else format(score.stderr, '.4f')} | {score.n} |"
        for split in ("validation", "test")
        for when in ("before", "after")
        if (score := record.score(when, split))
    ]
    where = f"experts/{embedded_base_dir(base).name}" if is_embedded(base) else "PATH_OF_THE_BASE_MODEL" if local else base
    return _CARD.format(
        name=name,
        base=Path(base).name if local else base,
        library="transformers" if whole else "peft",
        what="A full fine-tuning" if whole else f"A {record.method} adapter",
        arguments="pretrained=PATH_OF_THIS_FOLDER" if whole else f"pretrained={where},peft=PATH_OF_THIS_FOLDER",
        model="hf-multimodal" if is_multimodal(record.base_model.architecture) else "hf",
        method=record.method,
        task=record.task,
        objective=record.objective,
        seed=record.seed,
        steps=record.steps,
        seconds=record.seconds,
        parameters=record.trainable_parameters,
        chosen=record.chosen_step,
        rows="\n".join(rows),
    )
