"""The doctor: is everything that t2eval needs on this machine, and if not, what to do. The preflight takes the same checks."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from t2eval import __version__, paths
from t2eval.basemodel.devices import available_cores
from t2eval.basemodel.packaged import REMEDY, packaged_obstacle
from t2eval.checks import internals
from t2eval.checks.check import Check, installed
from t2eval.errors import T2Error
from t2eval.models import plugin

PACKAGES = ("lm_eval", "torch", "transformers", "datasets", "peft", "accelerate", "safetensors")
_NAMES = {paths.EMBEDDED: "embedded base", paths.EMBEDDED_VLM: "embedded vision-language model"}


def examine() -> list[Check]:
    """Run all checks. Imports torch and lm-eval."""
    checks: tuple[Callable[[], Check], ...] = (
        _python,
        _packages,
        _internals,
        _device,
        _plugin,
        _tasks,
        sandbox,
        _cache,
        _datasets_cache,
        embedded_base,
        embedded_vlm,
        _smollm2,
    )
    return [check() for check in checks]


def _python() -> Check:
    return Check("python", "ok", f"t2eval {__version__} on Python {platform.python_version()}, {sys.executable}")


def _packages() -> Check:
    found = installed(PACKAGES)
    if absent := [name for name, version in found.items() if version is None]:
        return Check("packages", "missing", f"not installed: {', '.join(absent)}", f"pip install {' '.join(absent)}")
    return Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _internals() -> Check:
    lines = internals.absent()
    if lines:
        remedy = "Install the releases of constraints.txt in t2eval's repository, or a t2eval that knows the ones that are here."
        return Check("internals", "missing", "; ".join(lines), remedy)
    return Check("internals", "ok", f"all {internals.count()} things of {', '.join(internals.INTERNALS)} that they do not promise")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("device", "ok", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}, dtype as stored")
    if torch.backends.mps.is_available():
        return Check("device", "ok", "Apple GPU (mps), dtype as stored")
    cores = available_cores()
    return Check("device", "note", f"no GPU; {cores} CPU cores, {torch.get_num_threads()} threads, float32: enough for the embedded base")


def _smollm2() -> Check:
    problem = packaged_obstacle()
    if problem is None:
        return Check("smollm2", "ok", "here: --model smollm2")
    return Check("smollm2", "note", "not here: a real model of 135M weights, for --model smollm2", REMEDY)


def _plugin() -> Check:
    by_itself = plugin.active()
    plugin.activate()
    unknown = [name for name, known in plugin.registered().items() if not known]
    if unknown:
        return Check(
            "plug-in", "missing", f"lm-eval does not know {', '.join(unknown)}", "Install t2eval again: pip install --force-reinstall"
        )
    if by_itself:
        return Check("plug-in", "ok", f"active at start-up: `lm_eval --model {next(iter(plugin.MODELS))}` works")
    return Check(
        "plug-in",
        "note",
        "this interpreter has not read t2eval_bridge.pth (a checkout that is not installed, `pip --target` or `python -S`)",
        "Use `t2 lm-eval …` in place of `lm_eval …`, or install t2eval with pip in a venv.",
    )


def _tasks() -> Check:
    folder = paths.tasks_dir()
    count = len(list(folder.glob("**/*.yaml"))) if folder.is_dir() else 0
    if not count:
        return Check(
            "tasks", "missing", f"no task YAMLs in {folder}", "Install t2eval again; in a checkout, t2eval/tasks must be a link to tasks/."
        )
    return Check("tasks", "ok", f"{count} YAMLs in {folder}")


def sandbox() -> Check:
    """Whether model-written programs can be isolated here."""
    from t2eval.sandbox import available

    try:
        isolation = available()
    except T2Error as error:
        return Check("sandbox", "missing", str(error), "Unset T2EVAL_SANDBOX or give it one of those values.")
    if isolation.kind is None:
        return Check("sandbox", "missing", isolation.reason, "apt-get install bubblewrap; without it, tasks that run programs refuse to.")
    if isolation.kind == "none":
        return Check("sandbox", "note", isolation.reason, "Unset T2EVAL_SANDBOX to isolate programs.")
    return Check("sandbox", "ok", f"{isolation.kind}: {isolation.reason}")


def _cache() -> Check:
    return writable("cache", paths.cache_dir(), "T2EVAL_CACHE")


def _datasets_cache() -> Check:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return writable("hub cache", Path(home), "HF_HOME")


def writable(name: str, folder: Path, variable: str) -> Check:
    """Whether a file can be written in `folder`, or in the nearest parent that exists."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"t2eval")
    except OSError as error:
        return Check(name, "missing", f"{folder} cannot be written: {error.strerror}", f"Set {variable} to a folder that can be written.")
    return Check(name, "ok", str(folder))


def embedded_model(name: str = paths.EMBEDDED) -> Check:
    """Whether the weights of an embedded model are there; its experts are not looked at.

    Args:
        name: a key of `paths.EMBEDDED_FOLDERS`.
    """
    what = _NAMES.get(name, name)
    from t2eval.basemodel.folders import embedded_base_dir

    folder = embedded_base_dir(name)
    absent = [file for file in ("config.json", "model.safetensors") if not (folder / file).is_file()]
    if absent:
        return Check(what, "missing", f"{folder} lacks {', '.join(absent)}", "Install t2eval again, or `make embedded` in a checkout.")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    return Check(what, "ok", f"{size:.1f} MB in {folder}")


def embedded_base() -> Check:
    """Whether the embedded base model and its experts are there."""
    from t2eval.basemodel.folders import embedded_library_dir

    return _with_experts(embedded_model(), embedded_library_dir(0))


def embedded_vlm() -> Check:
    """Whether the embedded vision-language model and the experts that were trained with pictures are there."""
    from t2eval.basemodel.folders import embedded_vlm_library_dir

    return _with_experts(embedded_model(paths.EMBEDDED_VLM), embedded_vlm_library_dir(0))


def _with_experts(model: Check, library: Path) -> Check:
    if model.status != "ok":
        return model
    experts = sorted(card.parent.name for card in library.glob("*/expert.json"))
    if not experts:
        return Check(model.name, "missing", f"{model.detail}, but no experts in {library}", "Install t2eval again, or `make embedded`.")
    return Check(model.name, "ok", f"{model.detail}, experts: {', '.join(experts)}")
