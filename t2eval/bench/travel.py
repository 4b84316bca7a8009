"""Travel: cells and trainings on machines that share no disk with this one: what goes there, under which paths, and what comes back.

Experts, adapters and a folder of tasks go (`files`); rows, samples, and what was trained come back, and this machine's process alone writes
them. Base models and data sets do not go: they are large, and each machine has its own way to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2eval.bench.config import BASELINES, BenchConfig
from t2eval.bench.training import Job, placed
from t2eval.errors import T2Error
from t2eval.expert.folder import CARD, PROMPTS, TENSORS
from t2eval.paths import experts_in, is_embedded, joined
from t2eval.workers.cargo import below, gathered

_MOST = 1 << 30  # bytes of a folder of tasks: more is data, which does not belong there
_CHECKPOINTS = "checkpoints"
Files = dict[str, bytes]
"""Path inside the benchmark's folder (or a training's) → contents."""


@dataclass(frozen=True)
class CellSetup:
    """Makes a process ready for the cells of one plan, here or elsewhere.

    Attributes:
        factory: makes what runs cells (`execute.CellWorker`).
        config: settled, with absolute paths.
        output: where samples are written.
        travels: whether `output` is elsewhere, and its files go into the answers.
    """

    factory: Any
    config: BenchConfig
    output: Path
    travels: bool = False

    def __call__(self) -> Callable[[Any], tuple[Any, Files]]:
        if self.travels:
            _need_model(self.config.model)
            self.output.mkdir(parents=True, exist_ok=True)
        worker = self.factory(self.config, self.output)
        worker.open()

        def answer(cell: Any) -> tuple[Any, Files]:
            row = worker.run(cell)
            return row, self._taken() if self.travels else {}

        return answer

    def _taken(self) -> Files:
        """What the last cell wrote, which is not kept here."""
        found = gathered(self.output)
        for name in found:
            (self.output / name).unlink()
        return found

    def files(self) -> list[Path]:
        """The experts, adapters and tasks of the benchmark."""
        return [*_expert_files(self.config), *_task_files(self.config.include_path)]

    def moved(self, scratch: Path, root: Path | None) -> CellSetup:
        """The same with its files below `root`."""
        config = self.config
        places = {
            field: "+".join(_below(root, part) for part in joined(value))
            for field in ("experts", "baselines", "include_path")
            if (value := getattr(config, field)) is not None
        }
        own = {
            method: {**settings, **({"experts": _moved_experts(root, settings["experts"])} if "experts" in settings else {})}
            for method, settings in config.model_args.items()
        }
        return replace(self, config=config.model_copy(update={**places, "model_args": own}), output=scratch, travels=True)


@dataclass(frozen=True)
class TrainSetup:
    """Makes a process elsewhere ready for training runs; the answer is the files of what was trained, without checkpoints."""

    include_path: str | None
    scratch: Path = Path()
    root: Path | None = None

    def __call__(self) -> Callable[[Job], Files]:
        from t2eval.environment.quiet import quiet_lm_eval
        from t2eval.training.train import train_expert

        quiet_lm_eval()

        def trained(job: Job) -> Files:
            config = placed(job)
            _need_model(config.model)
            include = None if config.include_path is None else Path(_below(self.root, str(config.include_path)))
            output = Path(below(self.scratch, job.output.absolute()))
            train_expert(config.model_copy(update={"output": output, "include_path": include}), progress=False)
            return gathered(output, leave=(_CHECKPOINTS,))

        return trained

    def files(self) -> list[Path]:
        """The tasks of the benchmark."""
        return _task_files(self.include_path)

    def moved(self, scratch: Path, root: Path | None) -> TrainSetup:
        """The same with its files below `root`."""
        return replace(self, scratch=scratch, root=root)


def here(config: BenchConfig) -> BenchConfig:
    """A configuration whose paths can be understood from any folder: relative ones are absolute."""
    if not is_embedded(config.model) and Path(config.model).is_dir():
        config = config.model_copy(update={"model": str(Path(config.model).absolute())})
    own = {
        method: {**settings, **({"experts": _absolute(str(settings["experts"]))} if "experts" in settings else {})}
        for method, settings in config.model_args.items()
    }
    return config.model_copy(update={"model_args": own})


def _absolute(experts: str) -> str:
    return "+".join(str(Path(part).absolute()) if Path(part).exists() else part for part in joined(experts))


def _below(root: Path | None, part: str) -> str:
    """A path of this machine as it is below `root`; what is no absolute path (a name on the hub) stays."""
    return below(root, part) if Path(part).is_absolute() else part


def _moved_experts(root: Path | None, experts: object) -> str:
    return "+".join(_below(root, part) for part in joined(str(experts)))


def _expert_files(config: BenchConfig) -> list[Path]:
    """The weights and cards of experts and adapters that lie where the benchmark file says; t2eval's own are there already."""
    folders: list[Path] = []
    for seed in config.seeds:
        if config.experts is not None and config.uses_library:
            folders += config.expert_folders(seed)
        if config.baselines is not None:
            folders += [folder for method in BASELINES if method in config.methods for folder in config.adapters(method, seed)]
        own = [config.own_experts(method, seed) for method in config.model_args]
        folders += [folder for spec in own if spec is not None for folder in experts_in(map(Path, joined(spec)))]
    names = (TENSORS, CARD, PROMPTS, "adapter_model.safetensors", "adapter_config.json", "t2_adapter.json")
    return [folder / name for folder in folders for name in names if (folder / name).is_file()]


def _task_files(include_path: str | None) -> list[Path]:
    """All files of a folder of tasks: YAML, the Python beside it, small data.

    Raises:
        T2Error: they are too large to travel.
    """
    if include_path is None:
        return []
    files = [path for path in sorted(Path(include_path).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    size = sum(path.stat().st_size for path in files)
    if size > _MOST:
        raise T2Error(
            f"include_path: {include_path} has {size / 1e9:.1f} GB in {len(files)} files, and at most {_MOST / 1e9:.1f} GB travel to the "
            "workers. Keep data out of it: as a data set of the hub, or on a disk that all machines see."
        )
    return files


def _need_model(model: str | None) -> None:
    """Refuse a base model that is a folder of another machine."""
    if model is not None and Path(model).is_absolute() and not Path(model).is_dir():
        raise T2Error(
            f"model: {model} is a folder of the machine that the benchmark was started on, and is not there for this worker. Base models "
            "do not travel: put it on a disk that all machines see, or name a model of the hub."
        )
