"""VQA accuracy against cases that were worked out by hand from the challenge's rules."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import evaluate
import pytest
from hypothesis import given
from hypothesis import strategies as st

import t2eval.grading.vqa_accuracy as vqa
from t2eval.errors import T2Error

NORMAL = [
    # articles
    ("a dog", "dog"),
    ("An apple", "apple"),
    ("the end of the road", "end of road"),
    ("the", ""),
    ("a", ""),
    ("theater", "theater"),
    ("vitamin a", "vitamin"),
    ("banana", "banana"),
    # number words
    ("two", "2"),
    ("Ten dogs", "10 dogs"),
    ("zero", "0"),
    ("none", "0"),
    ("one and seven", "1 and 7"),
    ("three four five six eight nine", "3 4 5 6 8 9"),
    ("eleven", "eleven"),
    ("twenty one", "twenty 1"),
    ("someone", "someone"),
    ("two-tone", "2 tone"),
    # contractions
    ("dont", "don't"),
    ("don't", "don't"),
    ("Cant", "can't"),
    ("wont go", "won't go"),
    ("isnt it", "isn't it"),
    ("youre", "you're"),
    ("theyve left", "they've left"),
    ("oclock", "o'clock"),
    ("5 oclock", "5 o'clock"),
    ("couldntve", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("Im here", "i'm here"),
    ("lets go", "let's go"),
    ("its", "its"),
    ("well", "well"),
    ("were", "were"),
    ("yall", "y'all"),
    ("somebodys", "somebody's"),
    # punctuation
    ("yes!", "yes"),
    ("red-blue", "red blue"),
    ("red - blue", "red blue"),
    ("red/white/blue", "red white blue"),
    ("red, white and blue", "red white and blue"),
    ("red,white", "red white"),
    ("(left)", "left"),
    ('"stop"', "stop"),
    ("what?", "what"),
    ("well - known half-time", "well known halftime"),  # a hyphen beside a space: all hyphens go without a trace
    ("a+b", "b"),  # the split makes an article of the letter
    ("e_mail", "e mail"),
    ("me@home", "me home"),
    ("c:drive", "c:drive"),
    ("$5", "$5"),
    ("50%", "50%"),
    ("rock & roll", "rock & roll"),
    # commas and full stops in numbers
    ("1,000", "1000"),
    ("1,000,000", "1000000"),
    ("1,000-2,000", "10002000"),  # the rule joins whatever stands around any mark
    ("1, 2", "1 2"),
    ("1.5", "1.5"),
    ("0.5 miles", "0.5 miles"),
    (".5", ".5"),
    ("5.", "5"),
    ("U.S.", "us"),
    ("u.s.a", "usa"),
    ("mr. smith", "mr smith"),
    ("10.30 a.m.", "10.30 am"),
    # space, case, nothing
    ("  New\nYork\t", "new york"),
    ("STOP", "stop"),
    ("", ""),
    ("   ", ""),
    ("?!", ""),
    ("été", "été"),
]


@pytest.mark.parametrize(("answer", "expected"), NORMAL)
def test_normalise(answer: str, expected: str) -> None:
    assert vqa.normalise(answer) == expected


THIRD = Fraction(1, 3)
SCORED = [
    # ten answers: k alike give k/10 · min((k-1)/3, 1) + (10-k)/10 · min(k/3, 1)
    ("dog", ["dog"] * 10, 1),
    ("cat", ["dog"] * 10, 0),
    ("dog", ["dog"] + ["cat"] * 9, Fraction(9, 10) * THIRD),
    ("dog", ["dog"] * 2 + ["cat"] * 8, Fraction(2, 10) * THIRD + Fraction(8, 10) * 2 * THIRD),
    ("dog", ["dog"] * 3 + ["cat"] * 7, Fraction(3, 10) * 2 * THIRD + Fraction(7, 10)),
    ("dog", ["dog"] * 4 + ["cat"] * 6, 1),
    ("dog", ["dog"] * 5 + ["cat"] * 5, 1),
    ("The Dog.", ["a dog"] * 4 + ["cat"] * 6, 1),
    ("two", ["2"] * 3 + ["3"] * 7, Fraction(9, 10)),
    ("2", ["two"] * 2 + ["Two."] + ["3"] * 7, Fraction(9, 10)),
    ("none", ["0"] * 10, 1),
    ("1000", ["1,000"] * 5 + ["1000"] * 5, 1),
    ("1000", ["1.000"] * 10, 0),
    ("dont walk", ["don't walk"] * 10, 1),
    ("dog and cat", ["dog"] * 10, 0),
    # empty answers
    ("", ["dog"] * 10, 0),
    ("dog", [""] * 10, 0),
    ("", [""] * 10, 0),
    ("the", [""] * 4 + ["dog"] * 6, 0),
    ("", ["", "the", "a", "?"] + ["dog"] * 6, 0),
    ("?", ["..."] * 10, 0),
    # letters and articles
    ("a", ["a"] * 10, 1),
    (" A. ", ["a"] * 4 + ["A"] * 6, 1),
    ("the", ["a"] * 10, 0),
    ("", ["a"] * 10, 0),
    (".", ["A"] * 10, 0),
    ("a dog", ["a"] * 10, 0),
    ("a", ["a dog"] * 10, 0),
    ("the a", ["A"] * 10, 0),
    ("an", ["a"] * 4 + ["an"] * 3 + ["the"] * 3, Fraction(3, 10) * 2 * THIRD + Fraction(7, 10)),
    # fewer than ten
    ("dog", ["dog"], 0),
    ("dog", ["dog", "dog"], THIRD),
    ("dog", ["dog", "cat"], Fraction(1, 2) * THIRD),
    ("dog", ["dog"] * 3, 2 * THIRD),
    ("dog", ["dog"] * 4, 1),
    ("dog", ["dog"] * 2 + ["cat"], Fraction(2, 3) * THIRD + THIRD * 2 * THIRD),
    ("dog", ["dog"] * 3 + ["cat"] * 2, Fraction(3, 5) * 2 * THIRD + Fraction(2, 5)),
    ("cat", ["dog"] * 5, 0),
    ("dog", ["dog"] * 9, 1),
]


@pytest.mark.parametrize(("prediction", "answers", "expected"), SCORED)
def test_accuracy(prediction: str, answers: list[str], expected: Fraction | int) -> None:
    assert vqa.accuracy(prediction, answers) == pytest.approx(float(expected), abs=1e-12)


def test_there_are_at_least_sixty_cases() -> None:
    assert len(set(NORMAL)) + len(SCORED) >= 60


@given(st.text(max_size=30))
def test_a_normal_form_has_no_marks_no_articles_and_single_spaces(answer: str) -> None:
    words = vqa.normalise(answer).split(" ")
    assert not {"a", "an", "the"} & set(words)
    assert words == [""] or all(words)
    assert not set(";/[]{}()=+_-><@`?!") & set(vqa.normalise(answer))


@given(st.lists(st.sampled_from(["dog", "cat", "two", "2", ""]), min_size=1, max_size=12), st.sampled_from(["dog", "2", ""]))
def test_accuracy_is_the_mean_of_the_leave_one_out_scores(answers: list[str], prediction: str) -> None:
    same = {"two": "2"}
    plain = [same.get(answer, answer) for answer in answers]
    scores = [min(sum(other == prediction != "" for place, other in enumerate(plain) if place != own) / 3, 1) for own in range(len(plain))]
    assert vqa.accuracy(prediction, answers) == pytest.approx(sum(scores) / len(scores))


def test_hidden_answers_are_refused() -> None:
    with pytest.raises(T2Error, match="has none"):
        vqa.accuracy("dog", [])


def test_evaluate_loads_it_by_its_path_without_the_hub() -> None:
    metric = evaluate.load(str(Path(vqa.__file__).parent / "metrics" / Path(vqa.__file__).name))
    answers = [["dog"] * 3 + ["cat"] * 7, ["2"] * 10]
    assert metric.compute(predictions=["a dog", "3"], references=answers) == {"vqa_accuracy": pytest.approx(0.45)}


def test_grade_is_what_lm_eval_asks_for() -> None:
    assert vqa.grade({"answers": ["dog"] * 10}, ["The dog."]) == {"vqa_accuracy": pytest.approx(1.0)}
    assert vqa.grade({"answers": ["dog"] * 10}, [["cat"]]) == {"vqa_accuracy": 0.0}


def test_the_modal_answer_counts_normal_forms() -> None:
    assert vqa.modal(["cat", "A dog", "dog", "cow"]) == "A dog"
    assert vqa.modal(["one", "two"]) == "one"
    assert vqa.modal(["", "?", "", "A", "dog"]) == "A"
    assert vqa.modal(["?"]) == "?"
