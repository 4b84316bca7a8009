"""Hierarchy: dispatch over labels that are paths (`math/sums/apples`), one part after the other, so that no prompt lists all experts.

Each step is a dispatch of its own, over the parts that may follow those chosen so far. How it is asked:

- by a `dispatch.json`: the parts are said one behind the other, as one answer. The text of a part is that of `labels` where its whole path
  stands there, else `unlisted` with the label's name at the first step, and `/part` behind it at the later ones; so that the texts of all
  steps together are what a flat dispatch scores at once.
- without one: by the adaptation prompt of the paper, which lists the parts of this step alone.

"None of them" is an outcome of the first step only. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from t2eval.errors import UsageError
from t2eval.generation.usage import Usage
from t2eval.strategies.dispatch import Decision, Dispatcher, DispatchFormat, Question, paper_format

SEPARATOR = "/"
_NAMED = 3
"""Parts that are named in the description of a group."""


class Steps:
    """Decides on labels for questions, as `Dispatcher`.

    Args:
        dispatcher: makes the dispatcher of one step.
        skills: label → one-line description.
        form: of a `dispatch.json`; None: the paper's prompt.
        others: the outcome that means the base weights.

    Raises:
        UsageError: a label is the group of others, or `dispatch.json` has no text for a part.
    """

    def __init__(
        self, dispatcher: Callable[[DispatchFormat], Dispatcher], skills: Mapping[str, str], form: DispatchFormat | None, others: str
    ) -> None:
        self._dispatcher, self._skills, self._form, self._others = dispatcher, dict(skills), form, others
        self._children = children(skills)
        for label in skills:
            if label in self._children:
                below = self._children[label][0]
                raise UsageError(f"hierarchy=true: the label {label!r} is an expert's and the group of {below!r}: rename one of them.")
        self._texts: dict[str, str] = {}
        self._forms = {node: self._form_of(node) for node in self._children}  # refuses before any work
        self._nodes: dict[str, Dispatcher] = {}
        self._usage: Usage | None = None

    def count_in(self, usage: Usage) -> None:
        """Count the tokens and seconds of new questions here from now on."""
        self._usage = usage

    def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """One decision a question. Its weights are of the labels of the last step, and of the paths that were not gone."""
        weights: list[dict[str, float]] = [{"": 1.0} for _ in questions]
        found: list[Decision | None] = [None] * len(questions)
        waiting: dict[str, list[int]] = {"": list(range(len(questions)))}
        while waiting:
            node, places = waiting.popitem()
            for place, decision in zip(places, self._node(node).decide([questions[place] for place in places]), strict=True):
                share = weights[place].pop(node)
                weights[place].update({path: share * weight for path, weight in decision.weights.items()})
                if decision.label in self._children:
                    waiting.setdefault(decision.label, []).append(place)
                else:
                    found[place] = Decision(decision.label, weights[place])
        return [decision for decision in found if decision is not None]

    def _node(self, node: str) -> Dispatcher:
        """The dispatcher of the step behind a path, whose outcomes are whole paths."""
        if node not in self._nodes:
            self._nodes[node] = self._dispatcher(self._forms[node])
        if self._usage is not None:
            self._nodes[node].count_in(self._usage)
        return self._nodes[node]

    def _form_of(self, node: str) -> DispatchFormat:
        parts = self._children[node]
        if self._form is None:
            listed = paper_format({_last(path): self._about(path) for path in parts}, None if node else self._others)
            return listed.model_copy(update={"labels": {path: listed.labels[_last(path)] for path in parts}})
        texts = {path: self._text(path) for path in parts}
        said = "".join(self._texts[path] for path in [*_above(node), node] if node)  # what was chosen so far, as the answer says it
        self._texts.update(texts)
        others = None if node else self._form.others
        if not node and others is None and self._others in self._form.labels:
            texts[self._others] = self._form.labels[self._others]
        return self._form.model_copy(update={"lead": self._form.lead + said, "labels": texts, "others": others, "unlisted": None})

    def _text(self, path: str) -> str:
        assert self._form is not None
        if path in self._form.labels:
            return self._form.labels[path]
        if self._form.unlisted is None:
            raise UsageError(
                f'hierarchy=true: dispatch.json has no text for {path!r}. Add it to `labels`, or give `unlisted`, such as " {{label}}".'
            )
        return SEPARATOR + _last(path) if SEPARATOR in path else self._form.unlisted.replace("{label}", path)

    def _about(self, path: str) -> str:
        """The description of an expert, or what a group holds."""
        if path in self._skills:
            return self._skills[path]
        names = [_last(child) for child in self._children[path]]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"{', '.join(names[:_NAMED])}{more}"


def children(labels: Iterable[str]) -> dict[str, list[str]]:
    """Each group's path → the paths of its parts, in order; the group of all is ''.

    Raises:
        UsageError: a part without a name.
    """
    found: dict[str, list[str]] = {"": []}
    for label in labels:
        if not all(part.strip() for part in label.split(SEPARATOR)):
            raise UsageError(f"hierarchy=true: the label {label!r} has a part without a name.")
        for path in [*_above(label), label]:
            parent = path.rpartition(SEPARATOR)[0]
            if path not in found.setdefault(parent, []):
                found[parent].append(path)
    return found


def _above(path: str) -> list[str]:
    """The groups that a path is in, from the outermost: `a` and `a/b` of `a/b/c`."""
    parts = path.split(SEPARATOR)
    return [SEPARATOR.join(parts[: depth + 1]) for depth in range(len(parts) - 1)]


def _last(path: str) -> str:
    return path.rpartition(SEPARATOR)[2]
