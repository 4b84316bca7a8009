"""Claim: the output folder of a run, whose it is, and whether what is in it may be gone on with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from t2eval.environment.environment import Environment, Example
from t2eval.errors import T2Error, UsageError
from t2eval.expert.card import CARD, README, TENSORS
from t2eval.store.digests import object_digest
from t2eval.store.files import read_record, write_json, write_text
from t2eval.store.guard import refuse_other_settings
from t2eval.store.versions import versions
from t2eval.training import adapters, checkpoints, full
from t2eval.training.config import RECORD, SETTINGS, TrainConfig, changed_setting
from t2eval.training.log import LOG
from t2eval.training.record import RunRecord

INPUTS, CURVE, OUTCOMES = "inputs.json", "learning_curve.png", "test_outcomes.json"
SWEEP = "sweep"
_OWN = (
    RECORD,
    SETTINGS,
    INPUTS,
    CURVE,
    OUTCOMES,
    LOG,
    checkpoints.FOLDER,
    SWEEP,
    TENSORS,
    CARD,
    README,
    adapters.CONFIG,
    adapters.TENSORS,
    full.WEIGHTS,
    "config.json",
)
_PACKAGES = ("t2eval", "lm_eval", "torch", "transformers", "peft")
_REMEDY = "A resumed run keeps what it was begun with: give it that, or overwrite."


def claim(config: TrainConfig) -> RunRecord | None:
    """Make the output folder this run's; a finished run that is resumed gives its record.

    Raises:
        UsageError: the folder is a file, in use by another run, or begun with other settings.
    """
    output = config.output
    held = [name for name in _OWN if (output / name).exists()]
    if held and (config.overwrite or not to_lose(output)):
        for name in held:
            shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink()
        held = []
    if held and not config.resume:
        raise UsageError(
            f"{output} already holds a training run ({to_lose(output)[0]}). Resume it, overwrite it, or give another output directory."
        )
    if held and (output / SETTINGS).is_file():
        before, now = held_settings(output), config.hyperparameters
        if (changed := changed_setting(before, now)) is not None:
            raise UsageError(
                f"{output} was begun with {changed} = {before.get(changed)!r}, and this run has {now.get(changed)!r}. A resumed run "
                "keeps its settings: give the first ones, or overwrite."
            )
        if (output / RECORD).is_file():
            return RunRecord.read(output)
    return None


def held_settings(output: Path) -> dict[str, Any]:
    """The settings that the run in a folder was begun with. Raises T2Error where their file is damaged."""
    return read_record(output / SETTINGS, dict[str, Any], what="settings", remedy="Give another output directory, or overwrite.")


def held_inputs(path: Path) -> dict[str, Any]:
    """The inputs that a run was begun with, by the path of their file. Raises T2Error where it is damaged."""
    return read_record(path, dict[str, Any], what="inputs", remedy="Overwrite the run.")


def to_lose(output: Path) -> list[str]:
    """What a folder holds of a run that took time: a checkpoint, a row of the log, a record, an expert. The settings and inputs of a run
    that failed before its first step are none of these, nor are empty files and folders."""
    names = (name for name in _OWN if name not in (SETTINGS, INPUTS))
    files = {name: [output / name] if (output / name).is_file() else (output / name).rglob("*") for name in names}
    return [name for name, found in files.items() if any(file.is_file() and file.stat().st_size for file in found)]


def check_folder(output: Path) -> None:
    """Refuse an output that cannot be a folder.

    Raises:
        UsageError: it, or what should hold it, is a file.
    """
    for path in (output, *output.parents):
        if path.exists():
            if not path.is_dir():
                raise UsageError(f"The output {output} cannot be a directory: {path} is a file. Give another one.")
            return


def hold(config: TrainConfig, environment: Environment, examples: Sequence[Example], model: nn.Module) -> None:
    """Note the settings and the inputs of a run in its folder, or compare them with those that it was begun with.

    Raises:
        UsageError: the task, its data, the base model or a package is another one.
        T2Error: the folder cannot be written.
    """
    now: dict[str, Any] = {
        "task": object_digest(environment.task.dump_config()),
        "examples": object_digest([[example.key, example.prompt, example.answer] for example in examples]),
        "model": _values_digest(model),
        **{f"version of {name}": found for name, found in versions(_PACKAGES).items()},
    }
    path = config.output / INPUTS
    if path.is_file():
        refuse_other_settings(config.output, held_inputs(path), now, remedy=_REMEDY)
    write_json(config.output / SETTINGS, config.hyperparameters)
    write_json(path, now)


def _values_digest(model: nn.Module) -> str:
    """A digest of some values of each frozen parameter: other weights under the same name are noticed, and nothing large is read."""
    digest = hashlib.sha256()
    frozen = [(name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for name, parameter in frozen or model.named_parameters():  # where all are trained, all are the base's still
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // 16)][:16].float().cpu().tolist()
        digest.update(f"{name.split('.')[-1]}{tuple(parameter.shape)}{some}".encode())
    return digest.hexdigest()


def leave(output: Path) -> None:
    """Take the folder away where nothing is in it: a mistake leaves nothing that the next attempt would stumble over."""
    with contextlib.suppress(OSError):
        output.rmdir()


def write_outcomes(output: Path, before: Mapping[int, float], after: Mapping[int, float]) -> None:
    """Each test document's outcome before and after training, one a line."""
    rows = [{"doc_id": key, "before": before[key], "after": after.get(key)} for key in sorted(before)]
    write_text(output / OUTCOMES, "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]\n")


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends well, for what others write.

    Raises:
        T2Error: it cannot be written.
    """
    staging = path.with_name(f".unfinished-{path.name}")
    try:
        yield staging
        os.replace(staging, path)
    except OSError as error:
        raise T2Error(f"Could not write {path}: {error.strerror or error}. Make room, then run again with resume.") from error
    finally:
        staging.unlink(missing_ok=True)
