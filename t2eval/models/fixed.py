"""Fixed: the strategy `t2-expert`, one expert or fixed α for every request."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from t2eval.environment.runs import Run, run_of
from t2eval.errors import UsageError, unknown
from t2eval.expert.adapter import Adapter
from t2eval.expert.expert import Expert
from t2eval.models.mounts import AdapterMix
from t2eval.models.options import ExpertOptions
from t2eval.models.strategy import Strategy
from t2eval.svf.scales import mix_scales


class Fixed(Strategy):
    """One expert, or fixed α over several, for every request. With the embedded base and nothing else, the expert of the task's skill."""

    OPTIONS = ExpertOptions
    options: ExpertOptions

    def check_library(self) -> None:
        self._picks = self._embedded and self.options.experts is None and self.options.alphas is None
        names = [expert.name for expert in self.skills]
        if self._picks:
            return
        if self.options.alphas is None and len(names) > 1:
            raise UsageError(
                f"t2-expert has {len(names)} experts ({', '.join(names)}): name one directory in experts=, or give alphas= with one "
                f"number for each in this order, joined by '+' (for example alphas={'+'.join([f'{1 / len(names):.2g}'] * len(names))})."
            )
        if "form" in self.options.model_fields_set and any(isinstance(skill, Adapter) for skill in self.skills):
            raise UsageError("form= is how z experts are mixed; PEFT adapters have one form (W + Σ α ΔW for LoRA). Leave it out.")
        self._alphas = list(self.options.alphas) if self.options.alphas is not None else [1.0]
        if self.options.alphas is not None:
            self.adapters("alphas=")
        if len(self._alphas) != len(names):
            raise UsageError(f"alphas= has {len(self._alphas)} numbers for {len(names)} experts: {', '.join(names)}.")

    def prepare(self) -> None:
        self._by_label = {expert.label: expert for expert in self.experts}
        if self._picks:
            return
        adapters = [skill for skill in self.skills if isinstance(skill, Adapter)]
        self._mixed: Mapping[str, Tensor] | AdapterMix
        if adapters:
            self._mixed = AdapterMix(tuple(zip(adapters, self._alphas, strict=True)))
        else:
            self._mixed = mix_scales([expert.z for expert in self.z_skills], self._alphas, self.options.form)

    def forget(self) -> None:
        self._of_task: dict[str, str] = {}
        self._tasks: set[str] = set()

    def keys(self, requests: Sequence[Any]) -> list[Hashable]:
        self._tasks.update(str(request.task_name) for request in requests)
        if not self._picks:
            return ["mix"] * len(requests)
        return [self._pick(str(request.task_name), run_of(request)) for request in requests]

    def _pick(self, task: str, run: Run | None) -> str:
        label = run.t2.get("label") if run is not None else None
        if label is None:
            raise UsageError(
                f"Task {task!r} does not say which skill it needs, so t2-expert cannot pick one of the embedded experts: name one with "
                f"experts= in model_args. There are: {', '.join(sorted(self._by_label))}."
            )
        if label not in self._by_label:
            raise unknown(f"skill (of task {task!r})", str(label), self._by_label)
        self._of_task[task] = self._by_label[label].name
        return self._of_task[task]

    def scale(self, key: Hashable) -> Mapping[str, Tensor] | AdapterMix:
        if not self._picks:
            return self._mixed
        return next(expert.z for expert in self.experts if isinstance(expert, Expert) and expert.name == key)

    def reads_of(self, run: Run) -> Any:
        return [run.name, run.t2.get("label")] if self._picks else None

    def report(self) -> dict[str, Any]:
        if self._picks:
            return {"expert_by_label": dict(self._of_task)}
        names = [expert.name for expert in self.skills]
        return {
            "alphas": dict.fromkeys(sorted(self._tasks), self._alphas),
            "alpha_order": names,
            "form": "peft" if isinstance(self._mixed, AdapterMix) else self.options.form,
        }

    def merge_reports(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._picks:
            tasks = sorted({task for report in reports for task in report["alphas"]})
            return {**reports[0], "alphas": dict.fromkeys(tasks, self._alphas)}
        picked = {task: name for report in reports for task, name in report.get("expert_by_label", {}).items()}
        return {**reports[0], "expert_by_label": picked}
