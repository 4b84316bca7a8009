"""Per document: what all strategies share that choose one expert for each document, whatever they choose it by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from t2eval.environment.runs import run_of
from t2eval.errors import UsageError
from t2eval.expert.adapter import Adapter
from t2eval.expert.expert import Expert
from t2eval.models.mounts import AdapterMix
from t2eval.models.options import DocumentOptions
from t2eval.models.strategy import Strategy
from t2eval.strategies.dispatch import Decision, Question, by_label, checked_labels
from t2eval.svf.scales import mix_scales


class PerDocument(Strategy):
    """One expert for each document; with `mix=soft`, α for each document. A subclass says what `decide` goes by."""

    SOFT_NOTE = "soft: the first pass's label likelihoods are the alphas, a step beyond the paper"
    options: DocumentOptions
    in_chat = False
    """Whether prompts are chats that lm-eval did not build; of its own, each request's run says so."""

    def check_library(self) -> None:
        for expert in self.experts:
            if isinstance(expert, Adapter) and not expert.label:
                raise UsageError(
                    f"Adapter {expert.name!r} has no label, by which dispatch chooses: write its card with `t2 expert label "
                    f"{expert.folder} --label LABEL --description TEXT`, or give labels= with one for each folder of experts=."
                )
            if isinstance(expert, Adapter) and self.options.mix == "soft":
                raise UsageError(f"mix=soft mixes z experts for each document, and {expert.name!r} is a PEFT adapter: use mix=hard.")
        self._experts_of = by_label({expert.name: expert.label for expert in self.experts})

    def prepare(self) -> None:
        self.through_hooks = self.through_hooks or self.options.mix == "soft"  # nearly every document has a z' of its own
        self._by_name = {expert.name: expert for expert in self.experts}

    def forget(self) -> None:
        self._chosen: dict[tuple[str, int], Decision] = {}
        self._told: dict[tuple[str, int], tuple[str, dict[str, float]]] | None = None
        self._soft: dict[Hashable, dict[str, Tensor]] = {}

    def question(self, request: Any) -> Question:
        """What a request's document asks."""
        raise NotImplementedError

    def decide(self, questions: list[Question], *, chat: bool) -> list[Decision]:
        """One decision a question; `chat`: whether the documents' prompts are chats."""
        raise NotImplementedError

    def keys(self, requests: Sequence[Any]) -> list[Hashable]:
        first = {_document(request): request for request in reversed(requests)}
        decisions: dict[tuple[int, str, int], Decision] = {}
        for chat in (False, True):
            asked = [document for document, request in first.items() if (self.in_chat or _in_chat(request)) == chat]
            if asked:
                found = self.decide([self.question(first[document]) for document in asked], chat=chat)
                decisions.update(zip(asked, found, strict=True))
        labels = [decision.weights for decision in decisions.values()] if self.options.mix == "soft" else []
        wanted = [label for weights in labels for label in weights] or [decision.label for decision in decisions.values()]
        checked_labels(wanted, self._experts_of, self.options.others_label)
        self._chosen.update({(task, document): decision for (_, task, document), decision in decisions.items()})
        of = [decisions[_document(request)] for request in requests]
        if self.options.mix == "soft":
            return [self._soft_key(decision) for decision in of]
        return [self._experts_of.get(decision.label) for decision in of]

    def _soft_key(self, decision: Decision) -> Hashable:
        key = tuple(sorted((label, round(weight, 4)) for label, weight in decision.weights.items()))
        if key not in self._soft:
            known = [(label, weight) for label, weight in key if label in self._experts_of]
            named = [self._by_name[self._experts_of[label]] for label, _ in known]
            scales = [expert.z for expert in named if isinstance(expert, Expert)]  # adapters were refused
            # the weights of all outcomes sum to 1 and the base weights are ones: Σ α z over all of them is 1 + Σ α (z - 1)
            self._soft[key] = mix_scales(scales, [weight for _, weight in known], "offset")
        return key

    def scale(self, key: Hashable) -> Mapping[str, Tensor] | AdapterMix:
        return self._soft[key] if self.options.mix == "soft" else change_of(self._by_name[str(key)])

    def dispatched(self, task: str) -> dict[int, str]:
        """The label that each document of a task was given in this evaluation: doc_id → label."""
        return {document: decision.label for (name, document), decision in self._chosen.items() if name == task}

    def explain(self, run_name: str, document: int) -> dict[str, Any] | None:
        if self._told is None:  # of all processes
            chosen = [each for record in self._evaluation.totals for each in record["report"]["chosen"]]
            self._told = {(task, doc): (label, weights) for task, doc, label, weights in chosen}
        if (run_name, document) not in self._told:
            return None
        label, weights = self._told[run_name, document]
        return {"decision": label, "expert": self._experts_of.get(label), "probabilities": weights}

    def report(self) -> dict[str, Any]:
        return {
            "chosen": [
                [task, document, decision.label, {label: round(weight, 6) for label, weight in decision.weights.items()}]
                for (task, document), decision in self._chosen.items()
            ],
            "mix": self.options.mix,
            "mix_note": self.SOFT_NOTE if self.options.mix == "soft" else "",
        }

    def merge_reports(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        chosen = {(task, document): label for report in reports for task, document, label, _ in report["chosen"]}
        histogram: dict[str, Counter[str]] = {}
        for (task, _), label in chosen.items():
            histogram.setdefault(task, Counter())[label] += 1
        rest = {name: value for name, value in reports[0].items() if name != "chosen" and value != ""}
        return {"dispatch": {task: dict(sorted(counts.items())) for task, counts in histogram.items()}, **rest}


def change_of(expert: Expert | Adapter) -> Mapping[str, Tensor] | AdapterMix:
    """What an expert does to the model."""
    return expert.z if isinstance(expert, Expert) else AdapterMix.alone(expert)


def _document(request: Any) -> tuple[int, str, int]:
    """A request's run, task and document."""
    run = run_of(request)
    return run.number if run is not None else 0, str(request.task_name), int(request.doc_id or 0)


def _in_chat(request: Any) -> bool:
    """Whether a request's prompt is a chat: its question is then put to the model as one too."""
    run = run_of(request)
    return run is not None and run.chat_template is not None
