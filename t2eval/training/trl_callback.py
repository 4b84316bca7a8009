"""TRL callback: an attached model under TRL's trainers, or transformers' own: checkpoints of z alone, and an expert at the end.

A checkpoint of the trainer holds `model.safetensors` with the raw parameters p, which resuming reads, and the expert of that step
(`expert.safetensors`, `expert.json`): no base weights. The trainer's own files (optimizer, state of the random numbers) are beside them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from t2eval.basemodel.load import base_identity
from t2eval.errors import T2Error
from t2eval.expert.card import TrainingRecord
from t2eval.expert.expert import Expert, check_name
from t2eval.store.files import write_bytes
from t2eval.svf.adapted import Adapted

_PREFIX = "t2_scales/"
"""Before a matrix's path in a checkpoint's `model.safetensors`."""


class ExpertCallback(TrainerCallback):  # type: ignore[misc]
    """Writes an expert at the end of a training, and one in each checkpoint.

    From its making on, the model's `save_pretrained` writes z alone, and its `load_state_dict` reads that.

    Args:
        adapted: what `attach` gave for the model that is trained.
        folder: where the expert goes; default: `expert` in the trainer's output folder.
        name, label, description: of the expert.
        task: what it was trained on, an lm-eval task's name where there is one: for its card.

    Examples:
        >>> adapted = attach(model)
        >>> trainer = SFTTrainer(model, args=config, train_dataset=data, callbacks=[ExpertCallback(adapted, name="math", label="math")])
        >>> trainer.train()
    """

    def __init__(
        self, adapted: Adapted, folder: str | Path | None = None, *, name: str, label: str, description: str = "", task: str | None = None
    ) -> None:
        check_name(name)
        self.adapted, self.folder, self.name, self.label, self.description = adapted, folder, name, label, description
        self.task = task
        self._started = time.monotonic()
        self._record: TrainingRecord | None = None
        model = adapted.model
        model.save_pretrained = self._save_pretrained
        model.register_load_state_dict_pre_hook(self._read)
        model.register_load_state_dict_post_hook(_nothing_is_missing)

    # ------------------------------------------------------------------ of the trainer
    def on_init_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Refuse rollouts that z would be missing from."""
        if getattr(args, "use_vllm", False):
            raise T2Error(
                "use_vllm=True copies the base weights to vLLM, without z: its rollouts would be the base model's. Sample with "
                "transformers (use_vllm=False), or hand vLLM the weights of merged_weights() yourself (docs/trl.md)."
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **named: Any) -> None:
        """See that z, and nothing else, is what learns."""
        self.on_init_end(args, state, control)
        self.adapted.use_parameters()
        own = {id(parameter) for parameter in self.adapted.trainable().values()}
        if model is not None:
            others = [name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in own]
            if others:
                raise T2Error(
                    f"Beside z {len(others)} parameters of the model would be trained, and no expert could hold them, such as {others[0]}: "
                    "call attach() last, give no peft_config, and add no tokens."
                )
        self._started = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Nothing to do: the trainer has called `save_pretrained`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Note what the card of an expert says of its training."""
        self._note(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Write the expert."""
        self._note(args, state)
        if state.is_world_process_zero:
            self.expert().save(self.folder if self.folder is not None else Path(args.output_dir) / "expert")

    def _note(self, args: Any, state: Any) -> None:
        if self.task is None:
            return
        kept = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "beta", "temperature")
        self._record = TrainingRecord(
            task=self.task,
            seed=args.seed,
            objective=type(args).__name__.removesuffix("Config").lower(),
            hyperparameters={key: getattr(args, key) for key in kept if hasattr(args, key)},
            steps=state.global_step,
            seconds=round(time.monotonic() - self._started, 3),
        )

    # ------------------------------------------------------------------ of the model
    def expert(self) -> Expert:
        """The z of now as an expert."""
        identity = base_identity(self.adapted.model)
        z = {path: value.detach() for path, value in self.adapted.z().items()}
        return Expert.from_adapted(
            self.adapted,
            z,
            name=self.name,
            label=self.label,
            description=self.description,
            base_id=str(identity["id"]),
            revision=identity["revision"],
            training=self._record,
        )

    def _save_pretrained(self, save_directory: str | Path, *_: Any, is_main_process: bool = True, **__: Any) -> None:
        """In the place of the model's own: p and the expert, without base weights."""
        if not is_main_process:
            return
        folder = Path(save_directory)
        p = {f"{_PREFIX}{path}": value.detach().cpu().contiguous() for path, value in self.adapted.trainable().items()}
        write_bytes(folder / SAFE_WEIGHTS_NAME, save(p, metadata={"format": "pt"}))
        self.expert().save(folder)

    def _read(self, module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Before the model's `load_state_dict`: take p out of a checkpoint."""
        stored = {key.removeprefix(_PREFIX): state.pop(key) for key in list(state) if key.startswith(_PREFIX)}
        if not stored:
            return
        own = self.adapted.trainable()
        if set(own) != set(stored) or any(own[path].shape != stored[path].shape for path in own):
            raise T2Error("The checkpoint scales other matrices than this model. Resume with the modules and layers it was started with.")
        with torch.no_grad():
            for path, parameter in own.items():
                parameter.copy_(stored[path])


def _nothing_is_missing(module: Any, incompatible: Any) -> None:
    """After `load_state_dict`: the base weights are not in a checkpoint, and not missed."""
    incompatible.missing_keys.clear()


@contextmanager
def merged_weights(adapted: Adapted) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """The model's weights under their own names with the z of now merged into them, for an engine that takes weights by name.

    Args:
        adapted: the model; its base weights are back at the end of the context.

    Yields:
        (name, weights) of each parameter, p left out. They hold as long as the context does.

    Raises:
        T2Error: as `Adapted.merge`.
    """
    own = {id(parameter) for parameter in adapted.trainable().values()}
    with adapted.merged({path: value.detach() for path, value in adapted.z().items()}) as model:
        yield ((name, parameter.detach()) for name, parameter in model.named_parameters() if id(parameter) not in own)
