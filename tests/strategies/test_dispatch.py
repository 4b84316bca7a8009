"""Dispatch: scored labels against lm-eval's own likelihoods, formats, generated answers, and decisions that cannot be followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from t2eval.errors import T2Error, UsageError
from t2eval.generation.engine import Engine
from t2eval.generation.usage import Usage
from t2eval.strategies.dispatch import Dispatcher, DispatchFormat, by_label, checked_labels, load_format, paper_format, parse_label
from tests.tiny import tiny_model, tiny_tokenizer

QUESTIONS = ["What is 3 + 4?", "Write a function that adds.", "Which animal can fly?  ", "a\n\nb", "What is 3 + 4?"]
SKILLS = {"math": "Arithmetic with small numbers.", "maths": "shares its first letters", "code": "Programs."}
TINY = DispatchFormat(template="{question}\nskill:", labels={"math": " math", "code": " code"}, others=" others", until=("\n",))


@pytest.fixture(scope="module")
def lm() -> HFLM:
    return HFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), batch_size=1)


def _dispatcher(lm: HFLM, form: DispatchFormat, **changes: object) -> tuple[Dispatcher, Usage]:
    usage, longest = Usage(), int(changes.pop("longest", lm.max_length))  # type: ignore[call-overload]
    engine = Engine(lm.model, lm.tokenizer, batch_size=3, usage=usage, max_length=longest)
    return Dispatcher(engine, form, **changes), usage  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [TINY, paper_format(SKILLS)], ids=["embedded", "paper"])
def test_scored_labels_equal_brute_force(lm: HFLM, form: DispatchFormat) -> None:
    import numpy as np

    dispatcher, _ = _dispatcher(lm, form)
    decisions = dispatcher.decide(QUESTIONS)
    labels = list(dispatcher.outcomes)
    for question, decision in zip(QUESTIONS, decisions, strict=True):
        context = form.template.replace("{question}", question) + form.lead
        requests = [Instance("loglikelihood", {}, (context, dispatcher.outcomes[label]), 0, ("t", 0, 1)) for label in labels]
        values = np.array([value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)])
        assert decision.label == labels[int(values.argmax())]
        expected = np.exp(values - np.logaddexp.reduce(values))
        assert [decision.weights[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-3)


def test_the_papers_prompt_does_not_depend_on_the_order_of_a_librarys_folders() -> None:
    form = paper_format(SKILLS)
    assert paper_format(dict(reversed(SKILLS.items()))) == form
    assert list(form.labels) == ["code", "math", "maths"] and form.template.index("- code:") < form.template.index("- math:")


def test_the_instructions_are_read_once_and_questions_are_remembered(lm: HFLM) -> None:
    form = paper_format(SKILLS)
    dispatcher, usage = _dispatcher(lm, form)
    dispatcher.decide(QUESTIONS)
    spent = usage.tokens
    whole = sum(len(dispatcher.prompt(question)) for question in dict.fromkeys(QUESTIONS))
    assert spent < whole * 0.6
    assert [decision.label for decision in dispatcher.decide(QUESTIONS[:2])] and usage.tokens == spent


@pytest.mark.parametrize("mode", ["score", "generate"])
def test_a_question_too_long_for_the_model_is_cut_and_never_the_instruction(
    lm: HFLM, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[str] = []
    for name in ("complete", "loglikelihoods"):
        plain = getattr(Engine, name)

        def spy(self: Engine, prompts: list[list[int]], *rest: object, plain: object = plain, **named: object) -> object:
            read.extend(self.tokenizer.decode(prompt) for prompt in prompts)
            assert all(len(prompt) < self.max_length for prompt in prompts)
            return plain(self, prompts, *rest, **named)  # type: ignore[operator]

        monkeypatch.setattr(Engine, name, spy)
    form = paper_format(SKILLS)
    beginning, end = form.template.split("{question}")
    dispatcher, _ = _dispatcher(lm, form, longest=len(form.template) + 60, mode=mode, max_new_tokens=8)
    long = "The beginning. " + "long " * 300 + "What is 3 + 4?"
    labels = [decision.label for decision in dispatcher.decide([long, "What is 3 + 4?"])]
    assert set(labels) <= {*dispatcher.outcomes} and "1 of 2 questions are too long" in caplog.text
    assert all(text.startswith(beginning) and end in text for text in read) and "long What is 3 + 4?" + end in read[0]
    assert len(read[0]) > len(form.template) + 20, "no more of it is cut than has to be"
    tight, _ = _dispatcher(lm, form, longest=100, mode=mode, max_new_tokens=8)
    with pytest.raises(T2Error, match="tokens without a question, and the model has room for"):
        tight.decide([long])


def test_generated_dispatch_is_parsed(lm: HFLM) -> None:
    dispatcher, usage = _dispatcher(lm, TINY, mode="generate", max_new_tokens=6)
    decision = dispatcher.decide(["What is 3 + 4?"])[0]
    assert decision.label in dispatcher.outcomes and sum(decision.weights.values()) == 1 and usage.tokens > 0
    labels = ["math", "code", "others"]
    assert parse_label("It is code, so \\boxed{Math}", labels) == "math"
    assert parse_label("\\boxed{\\text{code}}", labels) == "code"
    assert parse_label("\\boxed{code}? No: \\boxed{\\textbf{Math}}", labels) == "math"
    assert parse_label("I say \\boxed{poetry}; perhaps code", labels) == "code"
    assert parse_label("mathematics", labels) is None


def test_the_paper_prompt_names_every_skill_and_ends_where_the_answer_begins() -> None:
    form = paper_format(SKILLS, "none of them")
    assert all(f"- {label}:" in form.template for label in [*SKILLS, "none of them"])
    assert form.template.count("{question}") == 1 and form.lead == " \\boxed{"
    assert form.labels["maths"] == "maths}" and form.others == "none of them}"


def test_a_format_file_is_read_and_checked(tmp_path: Path) -> None:
    assert load_format(tmp_path) is None
    content = {"template": "{question}\nskill:", "labels": {"math": " math"}, "others": " others"}
    (tmp_path / "dispatch.json").write_text(json.dumps(content))
    assert load_format(tmp_path) == DispatchFormat(template="{question}\nskill:", labels={"math": " math"}, others=" others")
    changes = ({"template": "skill:"}, {"labels": {}}, {"lables": {}}, {"others": ""}, {"unlisted": " label"})
    for wrong in ({**content, **change} for change in changes):
        (tmp_path / "dispatch.json").write_text(json.dumps(wrong))
        with pytest.raises(T2Error, match=r"dispatch\.json"):
            load_format(tmp_path)


def test_an_expert_that_the_format_does_not_list_is_an_outcome_where_the_format_says_how() -> None:
    closed = DispatchFormat(template="{question}", labels={"math": " maths"})
    assert closed.with_labels(["math", "vision"]) == closed
    opened = closed.model_copy(update={"unlisted": " {label}"})
    assert opened.with_labels(["math", "vision"]).labels == {"math": " maths", "vision": " vision"}
    assert opened.with_labels(["math"]).labels == {"math": " maths"}


def test_decisions_without_an_expert_are_refused() -> None:
    experts = by_label({"m1": "math", "d": "dispatch", "c1": "code"})
    assert experts == {"math": "m1", "code": "c1"}
    checked_labels(["math", "others", "code"], experts, "others")
    with pytest.raises(T2Error, match=r"chose 'reasoning'.*m1 \(math\).*others_label=reasoning"):
        checked_labels(["math", "reasoning"], experts, "others")
    checked_labels(["math", "reasoning"], experts, "reasoning")
    with pytest.raises(UsageError, match="both have the label"):
        by_label({"m1": "math", "m2": "math"})
    with pytest.raises(UsageError, match="no expert that dispatch could choose"):
        by_label({"d": "dispatch"})
