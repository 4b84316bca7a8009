"""IA3 on a few examples: table 8's baseline, trained on the same adaptation examples that few-shot search gets.

Full batch, AdamW, constant rate, as the paper has it. One run of 1000 steps gives the adapter of 100 steps on its way, so both are of the
same run. Runs are independent: they are divided among the lab's processes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2eval.bench.training import SETTINGS
from t2eval.environment.environment import Environment, Example, Split
from t2eval.errors import T2Error
from t2eval.paper.key import check_key
from t2eval.store.files import read_record, write_json
from t2eval.workers.pool import Pool

VALIDATION = 200
_RECORD = "adapter_config.json"  # written last


@dataclass(frozen=True)
class Run:
    """One run on the examples of one draw.

    Attributes:
        model: the base. chat: prompts in its chat template.
        task, split, shots, draw: `Environment(task).examples(split, limit=shots, seed=draw)`.
        rate: of AdamW.
        steps: after which the adapter is kept, in ascending order.
        folders: for each of `steps`, where it is saved; empty: it is scored on the task's validation split instead.
        device: None: a GPU where there is one.
        layers: which are adapted.
        micro_batch, eval_batch_size: most answers in one pass, in training and on the validation split.
    """

    model: str
    task: str
    split: Split
    shots: int
    draw: int
    rate: float
    steps: tuple[int, ...]
    folders: tuple[str, ...] = ()
    chat: bool = False
    dtype: str = "auto"
    device: str | None = None
    layers: str = "all"
    micro_batch: int | str = "auto"
    eval_batch_size: int = 64

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes the adapter, but for the number of steps."""
        names = ("model", "task", "split", "shots", "draw", "rate", "chat", "dtype", "layers", "micro_batch")
        return {name: getattr(self, name) for name in names}

    @property
    def finished(self) -> bool:
        """Whether every adapter is there. One that does not say its settings is trained again.

        Raises:
            UsageError: one was trained with other settings.
        """
        kept = [self._kept(Path(folder), steps) for folder, steps in zip(self.folders, self.steps, strict=bool(self.folders))]
        return bool(kept) and all(kept)

    def _kept(self, folder: Path, steps: int) -> bool:
        file = folder / SETTINGS
        if not ((folder / _RECORD).is_file() and file.is_file()):
            return False
        before = read_record(
            file, dict[str, Any], what="settings of an adapter", remedy=f"Delete {folder} to train it anew.", limit=1 << 20
        )
        check_key(folder, before, {**self.settings, "steps": steps})
        return True

    def begin(self, folder: Path, steps: int) -> None:
        """Say in an adapter's folder what it is going to be, before it is there: an adapter is never beside another one's settings."""
        (folder / _RECORD).unlink(missing_ok=True)
        write_json(folder / SETTINGS, {**self.settings, "steps": steps})


@functools.lru_cache(maxsize=1)
def _base(model: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    from t2eval.basemodel.load import load_base

    return load_base(model, dtype=dtype, device=device)


def train(run: Run) -> list[float]:
    """Do one run.

    Returns:
        The validation score after each of `run.steps`; nothing where the adapters are saved.
    """
    import torch

    from t2eval.basemodel.load import base_identity
    from t2eval.environment.quiet import quiet_lm_eval
    from t2eval.training.adapters import PeftTrainable, ia3
    from t2eval.training.config import TrainConfig
    from t2eval.training.scores import summarise, validate
    from t2eval.training.supervised import Supervised

    quiet_lm_eval()
    model, tokenizer = _base(run.model, run.dtype, run.device)
    identity = base_identity(model)
    environment = Environment(run.task, tokenizer=tokenizer, apply_chat_template=run.chat)
    sizes: dict[str, Any] = {"layers": run.layers, "micro_batch": run.micro_batch, "eval_batch_size": run.eval_batch_size}
    config = TrainConfig(task=run.task, output=Path("unused"), method="ia3", objective="supervised", lr=run.rate, seed=run.draw, **sizes)
    trainable: PeftTrainable = ia3(model, config)
    objective = Supervised(environment, tokenizer, config)
    examples = environment.examples(run.split, limit=run.shots, seed=run.draw)
    held_out = [] if run.folders else environment.examples("validation", limit=VALIDATION, seed=0)
    optimizer = torch.optim.AdamW(trainable.parameters().values(), lr=run.rate, weight_decay=0.0)
    scores = []
    try:
        for place, _ in enumerate(_reached(run.steps, lambda: _step(trainable, objective, examples, optimizer))):
            if run.folders:
                folder = Path(run.folders[place])
                run.begin(folder, run.steps[place])
                trainable.save_adapter(folder, identity)
            else:
                scores.append(summarise(validate(trainable, environment, tokenizer, held_out, config)).score)
    finally:
        plain = trainable.model.unload()
        if hasattr(plain, "peft_config"):
            del plain.peft_config
    return scores


def _reached(steps: Sequence[int], step: Any) -> Iterator[int]:
    """Each of `steps` once it is reached."""
    for number in range(1, steps[-1] + 1):
        step()
        if number in steps:
            yield number


def _step(trainable: Any, objective: Any, examples: Sequence[Example], optimizer: Any) -> None:
    optimizer.zero_grad()
    objective.step(trainable, examples, 0, lambda loss: loss.backward())
    optimizer.step()


def train_all(runs: Iterable[Run], pool: Pool, log: Path) -> list[list[float]]:
    """Do runs, several at a time where there is no GPU.

    Args:
        runs: each independent of the others.
        pool: its processes take one run after the other.
        log: gets what they print.

    Returns:
        What `train` returns for each, in order.

    Raises:
        T2Error: a run fails, or its process dies; the first one in time.
    """
    import torch

    todo = list(runs)
    if pool.workers < 2 or len(todo) < 2 or torch.cuda.is_available():
        try:
            return [train(run) for run in todo]
        finally:
            _forget_base()
    found: dict[int, list[float]] = {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(pool.run(_trainer, list(enumerate(todo)), log)) as outcomes:
        for outcome in outcomes:
            number, run = outcome.item
            if outcome.error is not None:
                raise outcome.error
            if outcome.exit_code is not None:
                what = f"IA3 on {run.shots} examples of {run.task}, draw {run.draw}"
                raise T2Error(f"{what}: its process ended with exit code {outcome.exit_code}. {log} may say why.")
            found[number] = outcome.value
    return [found[number] for number in range(len(todo))]


def _trainer() -> Callable[[tuple[int, Run]], list[float]]:
    """Makes a worker process ready for runs."""
    return lambda item: train(item[1])


def _forget_base() -> None:
    """Give the base's memory back: this process lives on, and the next training, or the workers that evaluate, want all of the GPU's."""
    import torch

    _base.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
