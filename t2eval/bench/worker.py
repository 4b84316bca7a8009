"""Cells, one at a time: the base model loaded once, one cell's method put on it, evaluated by lm-eval, taken off again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import t2eval
from t2eval.bench.plan import BASELINES, DISPATCH, STRATEGIES, BenchConfig, Cell, open_tasks, task_label
from t2eval.bench.rows import Row, Sample, is_disk_full, write_samples
from t2eval.environment.harness import evaluate_task, load, metric_names
from t2eval.environment.loading import is_ours
from t2eval.environment.quiet import quiet_lm_eval
from t2eval.environment.runs import own_metadata
from t2eval.errors import T2Error, unknown
from t2eval.paths import joined
from t2eval.stats.means import mean_stderr
from t2eval.vision.images import reads_images

_CLASSES = {"expert": "T2Expert", "prompt": "T2Prompt", "cls": "T2Cls", "fewshot": "T2Fewshot"}
_PACKAGES = ("lm_eval", "torch", "transformers", "peft", "datasets")


def versions() -> dict[str, str]:
    """Versions of what a score depends on."""
    return {
        "t2eval": t2eval.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def object_hash(value: Any) -> str:
    """sha256 of a value's sorted JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def cards(library: str | Path) -> dict[str, dict[str, Any]]:
    """The cards of the experts of a library.

    Args:
        library: a folder of experts, or of one, or several such folders joined by `+`.

    Returns:
        Expert folder → contents of its `expert.json`.

    Raises:
        T2Error: no folder, or no expert in it.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in map(Path, joined(str(library))):
        files = [part / "expert.json"] if (part / "expert.json").is_file() else sorted(part.glob("*/expert.json"))
        found |= {str(file.parent): json.loads(file.read_text(encoding="utf-8")) for file in files}
    if not found:
        raise T2Error(f"No experts in {library}. Train them with `t2 train-expert`, or set `experts:` in the benchmark file.")
    return found


def expert_of(library: str | Path, label: str) -> Path:
    """The folder of the expert with a label.

    Raises:
        T2Error: the library has none.
    """
    labels = {str(card["label"]): folder for folder, card in cards(library).items()}
    if label not in labels:
        raise unknown(f"expert label in {library}:", label, labels)
    return Path(labels[label])


def parameter_count(file: Path) -> int:
    """How many numbers a safetensors file holds."""
    from safetensors import safe_open

    with safe_open(str(file), framework="np") as tensors:
        total = 0
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            size = 1
            for extent in tensors.get_slice(name).get_shape():
                size *= extent
            total += size
    return total


def adapter_file(folder: Path) -> Path:
    """The weights of a PEFT adapter.

    Raises:
        T2Error: it is not there.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise T2Error(f"No adapter in {folder}. Train it with `t2 train-expert --method …`, or set `baselines:` in the benchmark file.")
    return file


class _PeakMemory:
    """The highest memory of this process since construction: the GPU's where there is one, else resident memory, in bytes."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            # Linux forgets the high-water mark on request; elsewhere the mark covers the process's whole life.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated())
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024


def default_device() -> str:
    """A GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main_metric(task: Any, results: dict[str, Any]) -> tuple[str, str]:
    """The metric a task is ranked by, the first of its list, and its first filter: those that training rewards, too.

    Args:
        task: lm-eval task.
        results: lm-eval's results of it, with keys `metric,filter`.

    Raises:
        T2Error: the task reports no metric.
    """
    found = [(key.split(",", 1)[0], key.split(",", 1)[1]) for key in results if "," in key and "_stderr," not in key]
    if not found:
        raise T2Error("The task reports no metric.")
    name = next(iter(metric_names(task)), None)
    metric, chosen = next((pair for pair in found if pair[0] == name), found[0])
    return metric, chosen


def _response(sample: dict[str, Any]) -> str:
    """What the model said: the text, or the log-likelihoods of the choices."""
    filtered = sample["filtered_resps"]
    first = filtered[0] if len(filtered) == 1 else filtered
    return first if isinstance(first, str) else json.dumps(first, default=str)


def _to_samples(logged: list[dict[str, Any]], metric: str, chosen: str, labels: Mapping[int, str]) -> list[Sample]:
    samples = []
    for sample in logged:
        if sample["filter"] != chosen:
            continue
        value = sample.get(metric)
        score = float(value) if isinstance(value, bool | int | float) else None
        doc = sample["doc_id"]
        samples.append(Sample(doc_id=doc, doc_hash=sample["doc_hash"], score=score, response=_response(sample), dispatch=labels.get(doc)))
    return samples


class Worker:
    """Evaluates cells of one plan.

    Args:
        config: the benchmark file.
        output: the benchmark's folder, where samples are written.
    """

    def __init__(self, config: BenchConfig, output: Path) -> None:
        self.config = config
        self.output = output
        self._tasks: dict[str, Any] = {}
        self._strategy: tuple[str, Any] | None = None

    def open(self) -> None:
        """Load the base model and index the tasks.

        Raises:
            T2Error: a model or task that does not exist.
        """
        from torch.utils import collect_env

        from t2eval.basemodel.load import load_base

        # simple_evaluate describes the machine in every result, by a dozen subprocesses: a second a cell, were it not asked once.
        described: Any = collect_env.get_pretty_env_info
        if not hasattr(described, "cache_info"):
            collect_env.get_pretty_env_info = described = functools.cache(described)
        described()
        quiet_lm_eval()
        self._manager = open_tasks(self.config.tasks, self.config.include_path)
        settings = self.config
        device = settings.device or default_device()
        self._model, self._tokenizer = load_base(settings.model, revision=settings.revision, dtype=settings.dtype, device=device)

    def run(self, cell: Cell) -> Row:
        """Evaluate a cell and write its samples. An error becomes a failed row.

        Raises:
            OSError: the disk is full.
        """
        started = time.perf_counter()
        identity: dict[str, Any] = {"cell": cell.key, "model": cell.model, "method": cell.method, "task": cell.task, "seed": cell.seed}
        try:
            fields = self._evaluate(cell)
        except Exception as error:
            if is_disk_full(error):
                raise
            self._drop_strategy()
            message = str(error) if isinstance(error, T2Error) else f"{type(error).__name__}: {error}"
            return Row(**identity, status="failed", error=message, seconds=round(time.perf_counter() - started, 3), versions=versions())
        return Row(**identity, status="ok", versions=versions(), **fields)

    def _task(self, name: str) -> Any:
        if name not in self._tasks:
            self._tasks[name] = load(self._manager, name)
        return self._tasks[name]

    def _sandboxed(self, name: str) -> bool:
        """Whether a task's programs run in the sandbox: it is one of t2eval's, or says so. lm-eval refuses any other that runs some."""
        return is_ours(self._manager, name) or bool(own_metadata(self._task(name)).get("sandbox"))

    def _evaluate(self, cell: Cell) -> dict[str, Any]:
        task = self._task(cell.task)
        with self._language_model(cell) as (lm, facts):
            peak = _PeakMemory(str(getattr(lm, "device", "cpu")))
            started = time.perf_counter()
            outcome = evaluate_task(
                lm,
                task,
                self._manager,
                num_fewshot=self.config.num_fewshot,
                apply_chat_template=self.config.apply_chat_template,
                limit=self.config.limit,
                log_samples=True,
                bootstrap_iters=0,
                confirm_run_unsafe_code=self._sandboxed(cell.task),
            )
            seconds = time.perf_counter() - started
        t2 = outcome["config"].get("t2")
        return {
            **self._scores(cell, task, outcome, lm.dispatched(cell.task) if hasattr(lm, "dispatched") else {}),
            "seconds": round(seconds, 3),
            "first_pass_seconds": t2["first_pass"]["seconds"] if t2 else 0.0,
            "second_pass_seconds": t2["second_pass"]["seconds"] if t2 else round(seconds, 3),
            "trainable_parameters": facts["trainable_parameters"],
            "peak_memory_bytes": peak.bytes(),
            "t2": json.loads(json.dumps(t2, default=str)) if t2 else None,
            "hashes": {"task": object_hash(outcome["configs"][cell.task]), **facts["hashes"]},
        }

    def _scores(self, cell: Cell, task: Any, outcome: dict[str, Any], labels: Mapping[int, str]) -> dict[str, Any]:
        results = outcome["results"][cell.task]
        metric, chosen = main_metric(task, results)
        samples = _to_samples(outcome["samples"][cell.task], metric, chosen, labels)
        values = [sample.score for sample in samples if sample.score is not None]
        # A corpus-level metric (perplexity, BLEU) is no mean over examples: it has a score but no error bar of this kind.
        averaged = len(values) == len(samples) and bool(values)
        score, stderr = mean_stderr(values) if averaged else (float(results[f"{metric},{chosen}"]), None)
        return {
            "metric": metric,
            "higher_is_better": bool(outcome["higher_is_better"].get(cell.task, {}).get(metric, True)),
            "score": score,
            "stderr": stderr,
            "n": len(samples),
            "samples": write_samples(self.output, cell.key, samples),
        }

    @contextlib.contextmanager
    def _language_model(self, cell: Cell) -> Iterator[tuple[Any, dict[str, Any]]]:
        """An lm-eval model for a cell, and what its row says about it. The base weights are as before afterwards."""
        if cell.method == "base":
            self._drop_strategy()
            yield self._plain(self._model, cell.method), {"trainable_parameters": 0, "hashes": {}}
        elif cell.method in BASELINES:
            self._drop_strategy()
            with self._adapted(cell) as (model, facts):
                yield self._plain(model, cell.method), facts
        else:
            yield self._with_experts(cell)

    def _plain(self, model: Any, method: str) -> Any:
        from t2eval.environment.plain import plain_model

        return plain_model(model, self._tokenizer, batch_size=self.config.batch_size, **self.config.model_args.get(method, {}))

    @contextlib.contextmanager
    def _adapted(self, cell: Cell) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The base with a PEFT adapter on it, unmerged; unloading gives the base's own modules back."""
        from t2eval.training.methods import load_adapter

        label = task_label(self.config, cell.task, self._task(cell.task).config.metadata)
        folder = self.config.adapter(cell.method, label, cell.seed)
        file = adapter_file(folder)
        facts = {"trainable_parameters": parameter_count(file), "hashes": {"adapter": {folder.name: file_hash(file)}}}
        model = load_adapter(self._model, folder)
        try:
            yield model, facts
        finally:
            self._model = model.unload()
            if hasattr(self._model, "peft_config"):
                del self._model.peft_config

    def _with_experts(self, cell: Cell) -> tuple[Any, dict[str, Any]]:
        """A strategy's lm-eval model, kept for the next cell of the same method, library and seed."""
        settings = {"experts": self.config.experts_argument(cell.seed), **self.config.model_args.get(cell.method, {})}
        if cell.method == "expert":
            label = task_label(self.config, cell.task, self._task(cell.task).config.metadata)
            settings["experts"] = str(expert_of(str(settings["experts"]), label))
        elif cell.method == "fewshot":
            settings.setdefault("adapt_seed", cell.seed)
        facts = _expert_facts(cell.method, str(settings["experts"]))
        key = f"{cell.method} {json.dumps(settings, sort_keys=True, default=str)}"
        if self._strategy is None or self._strategy[0] != key:
            self._drop_strategy()
            if self.config.include_path:
                settings.setdefault("include_path", self.config.include_path)
            build = _strategy_class(cell.method, with_images=reads_images(self._tokenizer))
            lm = build(pretrained=self._model, tokenizer=self._tokenizer, batch_size=self.config.batch_size, **settings)
            self._strategy = (key, lm)
        return self._strategy[1], facts

    def _drop_strategy(self) -> None:
        """Set the base model's weights free of the last strategy. Its hooks stay for the next one, and do nothing without z."""
        if self._strategy is not None:
            self._strategy[1].adapted.set_z(None)
            self._strategy = None


def _strategy_class(method: str, *, with_images: bool) -> Any:
    """The lm-eval class of a strategy, for a language model or a vision-language model."""
    module = importlib.import_module("t2eval.models")
    return getattr(module, _CLASSES[method] + ("Vlm" if with_images else ""))


def _expert_facts(method: str, spec: str) -> dict[str, Any]:
    """Parameters and hashes of the experts that a method uses: cls also its classification expert, the others not."""
    used = {
        folder: card for folder, card in cards(spec).items() if method == "cls" or method not in STRATEGIES or card["label"] != DISPATCH
    }
    files = {folder: Path(folder) / "expert.safetensors" for folder in used}
    names = {folder: str(card["name"]) for folder, card in used.items()}
    return {
        "trainable_parameters": sum(parameter_count(file) for file in files.values()),
        "hashes": {
            "experts": {names[folder]: file_hash(file) for folder, file in files.items()},
            "basis": {names[folder]: object_hash(card.get("basis_fingerprint")) for folder, card in used.items()},
        },
    }
