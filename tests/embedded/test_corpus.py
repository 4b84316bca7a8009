"""The embedded world: right answers, disjoint splits, documented habits."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from t2eval.embedded import arithmetic, chatter, corpus, facts, programming
from t2eval.embedded.problem import bucket
from t2eval.errors import T2Error
from t2eval.sandbox.programs import pass_many

TASKS = [(family, level) for family in corpus.FAMILIES for level in ("seen", "unseen")]


@pytest.mark.parametrize(("family", "level"), TASKS)
def test_splits_are_distinct_disjoint_and_unknown_to_the_corpus(family: str, level: str) -> None:
    splits = corpus.documents(family, level)
    questions = [row["question"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions)
    assert all(bucket(question) >= 60 for question in questions)
    assert len(splits["test"]) >= 400
    assert set(splits) == ({"train", "validation", "test"} if level == "seen" else {"adaptation", "test"})


def test_the_corpus_holds_no_question_of_a_task() -> None:
    asked = {prompt for prompt, _ in itertools.islice(corpus.pretraining_documents(7), 5000)}
    tasks = [corpus.documents(family, level) for family, level in TASKS]
    rows = [row["question"] for splits in tasks for found in splits.values() for row in found]
    rows += [row["question"] for found in corpus.dispatch_documents().values() for row in found]
    assert asked.isdisjoint({corpus.prompt(question) for question in rows} | {corpus.dispatch_prompt(question) for question in rows})


def test_documents_follow_from_the_seed_alone() -> None:
    first = corpus.documents("math", "seen")
    corpus.problems.cache_clear()
    assert corpus.documents("math", "seen") == first


@pytest.mark.parametrize("level", ["seen", "unseen"])
def test_the_work_of_a_math_answer_is_right(level: str) -> None:
    rng = random.Random(0)
    for _ in range(300):
        problem = arithmetic.sample(rng, level, 0.5)
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", problem.answers["good"])
        assert steps
        for left, sign, right, result in steps:
            assert eval(f"{left}{sign}{right}") == int(result)
        assert problem.answers["good"].endswith(f"#### {problem.target}")
        assert steps[-1][3] == problem.target


def test_math_questions_have_the_answer_that_an_independent_reading_gives() -> None:
    rng = random.Random(1)
    for _ in range(400):
        problem = arithmetic.sample(rng, "unseen", 0.5)
        if problem.question.startswith("compute"):
            assert eval(problem.question.removeprefix("compute ")) == int(problem.target)
        elif problem.question.startswith("solve"):
            a, total = (int(number) for number in re.findall(r"\d+", problem.question))
            assert total - a == int(problem.target)


@pytest.mark.parametrize("level", ["seen", "unseen"])
def test_reference_programs_pass_and_half_ones_usually_fail(level: str) -> None:
    problems = corpus.problems("code", level)["test"][:60]
    good = pass_many([(problem.answers["good"], problem.test) for problem in problems])
    assert all(good)
    nested = [(problem.answers["nested"], problem.test) for problem in problems if "nested" in problem.answers]
    assert all(pass_many(nested))
    half = [(problem.answers["half"], problem.test) for problem in problems if "half" in problem.answers]
    assert sum(pass_many(half)) < 0.2 * len(half)


def test_exactly_one_option_fits() -> None:
    rng = random.Random(2)
    for _ in range(400):
        problem = facts.sample(rng, rng.choice(["seen", "unseen"]), 0.5)
        options = problem.question.rsplit("?", 1)[1].split(" , ")
        options = [option.strip() for option in options]
        assert len(set(options)) == len(options) in (3, 5)
        assert problem.target in options
        kind, place = facts.KIND_OF[problem.target], facts.PLACE_OF[problem.target]
        if problem.template in ("kind", "use", "same-kind"):
            assert [option for option in options if facts.KIND_OF[option] == kind] == [problem.target]
        elif problem.template in ("place", "where", "same-place"):
            assert [option for option in options if facts.PLACE_OF[option] == place] == [problem.target]
        elif problem.template == "kind-place":
            both = [option for option in options if facts.KIND_OF[option] == kind and facts.PLACE_OF[option] == place]
            assert both == [problem.target]
        else:
            others = [option for option in options if option != problem.target]
            assert {facts.KIND_OF[option] for option in others} and kind not in {facts.KIND_OF[option] for option in others}


def test_the_corpus_answers_by_habit() -> None:
    rng = random.Random(3)
    for family, habits in ((arithmetic, arithmetic.HABITS), (programming, programming.HABITS), (facts, facts.HABITS)):
        for template, mix in habits.items():
            assert sum(mix.values()) == pytest.approx(1)
            assert mix["good"] >= 0.35, f"{template} must have the latent skill"
        problem = next(p for p in iter(lambda family=family: family.sample(rng, "seen", 0.5), None) if p.template in habits)  # type: ignore[misc]
        drawn = [family.answer(rng, problem) for _ in range(2000)]
        for style, text in problem.answers.items():
            same = sum(habits[problem.template][other] for other, answer in problem.answers.items() if answer == text)
            assert drawn.count(text) / 2000 == pytest.approx(same, abs=0.05), style


def test_dispatch_has_every_label_and_only_known_ones() -> None:
    splits = corpus.dispatch_documents()
    assert set(splits) == {"train", "validation", "test"}
    for rows in splits.values():
        counts = {label: sum(row["target"] == label for row in rows) for label in corpus.LABELS}
        assert sum(counts.values()) == len(rows)
        assert min(counts.values()) > 0.15 * len(rows)
    assert chatter.sample(random.Random(0)).family == "others"


def test_an_unknown_family_is_named_with_what_there_is() -> None:
    with pytest.raises(T2Error, match=r"Unknown embedded family 'maths'. Did you mean 'math'"):
        corpus.documents("maths", "seen")
