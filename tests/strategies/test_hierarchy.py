"""Hierarchy: paths are chosen part by part, each step as a dispatch of its own; a hand-made dispatcher says what every step is asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from t2eval.errors import UsageError
from t2eval.generation.engine import Engine
from t2eval.generation.usage import Usage
from t2eval.strategies.dispatch import Decision, Dispatcher, DispatchFormat, Question
from t2eval.strategies.hierarchy import Steps, children
from tests.tiny import tiny_model, tiny_tokenizer

SKILLS = {"math/sums/apples": "Apples.", "math/sums/coins": "Coins.", "math/rest": "The rest.", "code": "Programs."}
FORM = DispatchFormat(template="{question}\nskill:", unlisted=" {label}", others=" others")


class _Told:
    """A dispatcher that chooses the path whose last part the question names, with 0.75; it notes what it was asked."""

    def __init__(self, form: DispatchFormat, asked: list[DispatchFormat]) -> None:
        self.form, self.asked = form, asked

    def count_in(self, usage: Usage) -> None:
        pass

    def decide(self, questions: Sequence[Question]) -> list[Decision]:
        self.asked.append(self.form)
        outcomes = [*self.form.labels, *(["others"] if self.form.others else [])]
        found = []
        for question in questions:
            named = next(path for path in outcomes if path.rpartition("/")[2] in question.text.split())
            rest = [path for path in outcomes if path != named]
            found.append(Decision(named, {named: 0.75 if rest else 1.0, **dict.fromkeys(rest, 0.25 / max(1, len(rest)))}))
        return found


def _steps(form: DispatchFormat | None) -> tuple[Steps, list[DispatchFormat]]:
    asked: list[DispatchFormat] = []
    return Steps(lambda each: _Told(each, asked), SKILLS, form, "others"), asked  # type: ignore[arg-type,return-value]


def test_each_question_goes_its_own_way_and_its_weights_sum_to_one() -> None:
    steps, asked = _steps(FORM)
    texts = ["math sums coins", "code", "others", "math rest", "math sums apples"]
    found = steps.decide([Question(text) for text in texts])
    assert [each.label for each in found] == ["math/sums/coins", "code", "others", "math/rest", "math/sums/apples"]
    assert found[0].weights["math/sums/coins"] == pytest.approx(0.75**3)
    assert set(found[0].weights) == {"math/sums/coins", "math/sums/apples", "math/rest", "code", "others"}
    assert all(sum(each.weights.values()) == pytest.approx(1) for each in found)
    assert len(asked) == 3, "a step is taken once for all questions that come to it"


def test_the_texts_of_the_steps_together_are_the_flat_label() -> None:
    steps, asked = _steps(FORM)
    steps.decide([Question("math sums coins")])
    assert [(form.lead, list(form.labels.values()), form.others) for form in asked] == [
        ("", [" math", " code"], " others"),
        (" math", ["/sums", "/rest"], None),
        (" math/sums", ["/apples", "/coins"], None),
    ]
    flat = FORM.with_labels(SKILLS).labels
    assert flat["math/sums/coins"] == asked[2].lead + asked[2].labels["math/sums/coins"]


def test_without_a_format_each_step_lists_its_own_parts_only() -> None:
    steps, asked = _steps(None)
    steps.decide([Question("math sums coins")])
    first, second, third = (form.template for form in asked)
    assert "- math: sums, rest." in first and "- code: Programs." in first and "- others:" in first and "coins" not in first
    assert "- sums: apples, coins." in second and "- others:" not in second and "- code" not in second
    assert "- coins: Coins." in third and asked[2].labels["math/sums/coins"] == "coins}"


def test_labels_that_are_no_tree_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'math' is an expert's and the group of 'math/sums'"):
        Steps(lambda form: None, {"math": "", "math/sums": ""}, None, "others")  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="'math//sums' has a part without a name"):
        children(["math//sums"])
    closed = DispatchFormat(template="{question}", labels={"math": " math", "code": " code"})
    with pytest.raises(UsageError, match="no text for 'math/sums'"):
        _steps(closed)


def test_real_steps_multiply_to_the_flat_likelihoods_of_one_group() -> None:
    """Within a group whose labels share their beginning, the last step's choice is what a flat dispatch chooses among them."""
    model, tokenizer = tiny_model(), tiny_tokenizer()

    def node(form: DispatchFormat) -> Dispatcher:
        return Dispatcher(Engine(model, tokenizer, batch_size=4), form, "others")

    labels = dict.fromkeys(["a/x", "a/y", "a/z"], "")
    form = FORM.model_copy(update={"others": None})
    questions = [Question(text) for text in ("What is 3 + 4?", "abc", "zyx")]
    flat = node(form.with_labels(labels)).decide(questions)
    stepped = Steps(node, labels, form, "others").decide(questions)
    for one, other in zip(flat, stepped, strict=True):
        assert one.label == other.label and other.weights == pytest.approx(one.weights, abs=1e-4)
