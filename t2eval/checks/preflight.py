"""Preflight: everything that a command will need and this machine lacks, said in one message before anything is loaded.

An obstacle stops the command: what is missing, and what to do. A warning does not: the run may still succeed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2eval.basemodel import probe as hub
from t2eval.basemodel.devices import AUTO, SPREAD
from t2eval.bench.config import BASELINES
from t2eval.bench.plan import Plan, open_tasks
from t2eval.bench.training import jobs, settle
from t2eval.checks import doctor
from t2eval.checks.arguments import check_arguments
from t2eval.checks.check import Findings, installed
from t2eval.environment.loading import checked_config
from t2eval.errors import T2Error, UsageError, listed
from t2eval.expert.folder import PROMPTS
from t2eval.expert.library import load_any
from t2eval.expert.location import is_hub
from t2eval.forecast.facts import task_data
from t2eval.forecast.figures import Figure
from t2eval.forecast.forecast import Forecast, forecast
from t2eval.paths import EMBEDDED, cache_dir, experts_in, is_embedded, joined
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.training.config import TrainConfig
from t2eval.workers.registry import check_executor

_EXTRAS = {"ray": "t2eval[ray]", "wandb": "t2eval[wandb]"}


def check_bench(plan: Plan, output: Path, executor: str = "local") -> list[str]:
    """Check what `t2 bench` will need.

    Args:
        plan: from `load_plan`.
        output: its folder.
        executor: where cells run.

    Returns:
        Warnings.

    Raises:
        UsageError: a wrong name or setting.
        T2Error: something is missing; the message lists all of it.
    """
    entry = check_executor(executor)
    check_arguments(plan.config)
    found = Findings()
    here = settle(plan, output)
    config, todo = here.config, [job for job in jobs(here) if not job.finished]
    tasks = list(dict.fromkeys([*config.tasks, *(job.config.task for job in todo)]))
    manager = open_tasks(tasks, config.include_path)
    readable = _check_tasks(found, manager, tasks, data=not entry.elsewhere)
    if not entry.elsewhere:  # else data, model and device are those of other machines, which say themselves what they lack
        _check_model(found, config.model, config.revision)
        _check_device(found, config.device, "Set `device: cpu`")
    packages = {tool: "report_to" for job in todo for tool in job.config.report_to}
    _check_packages(found, packages | ({entry.package: f"--executor {executor}"} if entry.package else {}))
    _check_experts(found, here)
    if readable:
        prediction = forecast(plan, output)
        _check_disk(found, output, prediction)
        if not entry.elsewhere:
            _check_memory(found, config.device, prediction, bool(todo))
    return found.settled()


def check_training(config: TrainConfig) -> list[str]:
    """Check what `t2 train-expert` will need. Returns and raises as `check_bench`."""
    found = Findings()
    _check_tasks(found, open_tasks([config.task], None if config.include_path is None else str(config.include_path)), [config.task])
    _check_model(found, config.for_task().model or EMBEDDED, config.revision)
    _check_device(found, config.device, "Give --device cpu")
    _check_packages(found, dict.fromkeys(config.report_to, "report_to"))
    return found.settled()


def check_demo(output: Path) -> list[str]:
    """Check what `t2 demo` will need: the embedded base, and a sandbox for its programs. Returns and raises as `check_bench`."""
    found = Findings()
    for check in (doctor.embedded_base(), doctor.sandbox(), doctor.writable("output", output, "--output")):
        found.needs(check)
    return found.settled()


# ---------------------------------------------------------------------- tasks
def _check_tasks(found: Findings, manager: Any, names: Sequence[str], data: bool = True) -> bool:
    """Data (if it is needed here), packages and the sandbox. Whether all tasks may be read, as unprotected programs may not."""
    readable = True
    users: dict[hub.HubData, list[str]] = {}
    packages: dict[str, str] = {}
    programs = []
    for name in names:
        try:
            config = checked_config(manager, name)
        except UsageError:
            raise
        except T2Error as error:
            found.missing("tasks", str(error))
            readable = False
            continue
        for wanted in task_data(manager, config) if data else ():
            users.setdefault(wanted, []).append(name)
        own = (config.get("metadata") or {}).get("t2") or {}
        packages |= dict.fromkeys((str(package) for package in own.get("requires") or ()), f"task {name}")
        programs += [name] if config.get("unsafe_code") else []
    _check_data(found, users)
    _check_packages(found, packages)
    check = doctor.sandbox()
    if programs and check.status == "missing":
        found.missing("tasks", f"{', '.join(programs)} run model-written programs, and there is no sandbox: {check.detail}. {check.remedy}")
    return readable


def _check_data(found: Findings, users: Mapping[hub.HubData, Sequence[str]]) -> None:
    """Data sets that cannot be had, by reason; where the hub cannot be reached once, it is not asked again."""
    unreachable = ""
    reasons: dict[str, list[str]] = {}
    for data, names in users.items():
        reason = hub.data_obstacle(data) if not unreachable or hub.cached_data(data) is not None else unreachable
        if reason is not None:
            unreachable = reason if "cannot be reached" in reason else unreachable
            reasons.setdefault(reason, []).append(f"{data} (for {', '.join(names)})")
    for reason, wanted in reasons.items():
        remedy = (
            " Load the tasks once where there is a network and copy the folder that HF_HOME names, or unset HF_HUB_OFFLINE."
            if "not in the cache" in reason
            else ""
        )
        found.missing("data sets", f"Data sets: {'; '.join(wanted)}: {reason}.{remedy}")


# ---------------------------------------------------------------------- the machine
def _check_model(found: Findings, model: str, revision: str | None) -> None:
    if is_embedded(model):
        found.needs(doctor.embedded_model(model))  # what needs experts says so itself (`_check_experts`); training needs none
    elif (reason := hub.model_obstacle(model, revision)) is not None:
        found.missing("model", reason)


def _check_device(found: Findings, device: str | None, remedy: str) -> None:
    if device is not None and (device.startswith("cuda") or device == SPREAD) and not _gpus():
        found.missing(
            "device",
            f"There is no GPU here that torch can use, and the device is {device!r}. {remedy}, or run where there is one.",
        )


def _gpus() -> list[int]:
    """Bytes of memory of each GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [int(torch.cuda.get_device_properties(index).total_memory) for index in range(torch.cuda.device_count())]


def _check_packages(found: Findings, packages: Mapping[str, str]) -> None:
    """Optional packages, by the name that pip knows, and what asks for each."""
    names = {package: re.split(r"[\s\[<>=!~;]", package, maxsplit=1)[0] for package in packages}
    found_here = installed(names.values())
    for package, wanted_by in packages.items():
        name = names[package]
        if found_here[name] is None:
            found.missing("packages", f"The package {name} is not installed ({wanted_by}). pip install '{_EXTRAS.get(name, package)}'")


def _check_experts(found: Findings, plan: Plan) -> None:
    """Experts and baselines that nobody will make. Where their folder is there their cells would fail, and the others run: a warning."""
    config = plan.config
    if config.train is not None:
        if any(config.kind(method) == "nearest" and config.shares_library(method) for method in config.methods):
            found.note("experts", f"nearest chooses by {PROMPTS} beside each expert, which training does not write: {_VECTORS} afterwards.")
        return
    for seed in config.seeds:
        if config.uses_library:
            try:
                libraries = config.libraries(seed)
            except UsageError:
                raise
            except T2Error as error:  # of the hub
                found.missing("experts", str(error))
                continue
            if absent := [library for library in libraries if not library.is_dir()] if config.experts is not None else []:
                found.missing("experts", f"experts: {absent[0]} is not a folder. Mend the path, train them, or give a `train:` section.")
            elif not config.expert_folders(seed):
                places = " or ".join(map(str, libraries))
                found.note("experts", f"There are no experts in {places}: their cells will fail. Train them, or give a `train:` section.")
        for method in config.methods:
            spec = config.own_experts(method, seed)
            if spec is not None and not is_hub(spec):
                for place in [Path(part) for part in joined(spec) if not Path(part).is_dir()]:
                    found.missing("experts", f"methods, {method}: experts: {place} is not a folder. Mend the path, or make them.")
            if config.kind(method) == "nearest" and not (spec is not None and is_hub(spec)):
                _check_vectors(found, method, config.expert_folders(seed) if spec is None else experts_in(map(Path, joined(spec))))
        for method in BASELINES:
            if method in config.methods and not config.adapters(method, seed):
                found.note(
                    "experts", f"There is no {method} adapter of seed {seed}: its cells will fail. Train it, or give a `train:` section."
                )


_VECTORS = "`t2 expert vectors LIBRARY` makes it"


def _check_vectors(found: Findings, method: str, folders: Sequence[Path]) -> None:
    """Experts without the vectors of their training prompts, by which `nearest` chooses them."""
    lacking = [folder for folder in folders if not (folder / PROMPTS).is_file()]
    skills = [str(folder) for folder in lacking if load_any(folder)[0].label != DISPATCH_LABEL]
    if skills:
        found.missing("experts", f"methods, {method}: there is no {PROMPTS} in {listed(skills)}, by which nearest chooses. {_VECTORS}.")


def _check_disk(found: Findings, output: Path, prediction: Forecast) -> None:
    from huggingface_hub import constants

    places = {"download": (Path(constants.HF_HUB_CACHE), "HF_HOME"), "bases": (cache_dir(), "T2EVAL_CACHE")}
    for name, part in prediction.disk.items():
        folder, variable = places[name]
        free = shutil.disk_usage(_existing(folder)).free
        if part.value is not None and part.value > free:
            found.note(
                "disk",
                f"{folder} has {_gigabytes(free)} free, and {name} may take {_gigabytes(part.value)} ({part.source}). "
                f"Make room, or set {variable} to another disk.",
            )
    if not os.access(_existing(output), os.W_OK):
        found.missing("disk", f"{output} cannot be written. Choose another --output.")


def _check_memory(found: Findings, device: str | None, prediction: Forecast, trains: bool) -> None:
    needs: Iterable[tuple[str, Figure]] = [("evaluation", prediction.needed(False))]
    needs = [*needs, ("training", prediction.needed(True))] if trains else needs
    gpus = [] if device == "cpu" or (device in (None, AUTO) and is_embedded(prediction.model)) else _gpus()
    free: int | None = None
    where = "of memory"
    if gpus:
        free, where = (sum(gpus), "on the GPUs") if device == SPREAD else (gpus[0], "on the GPU")
    elif device in (None, AUTO, "cpu"):
        free = _host_memory()
    for name, need in needs:
        if free is not None and need.value is not None and need.value > free:
            found.note(
                "memory",
                f"{name} may take {_gigabytes(need.value)} ({need.source}), and there are {_gigabytes(free)} {where}. "
                "A smaller batch_size or micro_batch takes less.",
            )


def _host_memory() -> int | None:
    """Bytes that are available, where Linux says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB"
