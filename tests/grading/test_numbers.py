"""The last number of a text: what is part of a number, what is not, and how it is compared."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2eval.grading.numbers import last_number

READINGS: dict[str, Fraction | int | None] = {
    # plain, and the sentence around it
    "18": 18,
    "#### 18": 18,
    "The answer is 18.": 18,
    "3 + 4 = 7": 7,
    "**18**": 18,
    "(18)": 18,
    "x=5": 5,
    "No.5": 5,
    "007": 7,
    "the 5th": 5,
    "5k": 5,
    "3.5.2": 2,
    "at 3:30": 30,
    "7/8/2024": 2024,
    # thousands
    "1,234": 1234,
    "1,234,567.89": Fraction(123456789, 100),
    "1, 2": 2,
    "1,2": 2,
    "1,23": 23,
    "1234,567": 567,
    "$1{,}234$": 1234,
    r"1\,234": 1234,
    r"10,\!000": 10000,
    # decimals and exponents
    "18.00": 18,
    "18.50": Fraction(37, 2),
    ".5": Fraction(1, 2),
    "1.2e3": 1200,
    "5e": 5,
    # signs
    "-5": -5,
    "−5": -5,
    "x=-5": -5,
    "it is -5": -5,
    "+5": 5,
    "-0": 0,
    "10-5": 5,
    "2,000-1,500": 1500,
    "10–15": 15,
    "- 5 apples": 5,
    # currencies, units, percent
    "$18": 18,
    "$18.00.": 18,
    "-$5": -5,
    "$-5": -5,
    "10-$5": 5,
    r"\$18": 18,
    "€20": 20,
    "20 €": 20,
    "18 dollars": 18,
    "5km/h": 5,
    "25%": 25,
    r"25\%": 25,
    "18 m^2": 18,
    "18 cm^{2}": 18,
    "18 m²": 18,
    "18 m2": 18,
    "CO2": None,
    "x_5": None,
    # fractions and mixed numbers
    "1/2": Fraction(1, 2),
    "1/2.": Fraction(1, 2),
    "12 / 4": 3,
    "3 1/2": Fraction(7, 2),
    "½": Fraction(1, 2),
    "3½ cups": Fraction(7, 2),
    r"\frac{1}{2}": Fraction(1, 2),
    r"1\dfrac{1}{2}": Fraction(3, 2),
    r"-\frac{1}{2}": Fraction(-1, 2),
    "1/0": None,
    # a box, and other scripts
    r"\boxed{18}": 18,
    "答案是18個": 18,
    "是-5": -5,
    "１８": 18,
    "١٨": 18,
    "१८": 18,
    # none
    "": None,
    "eighteen": None,
    "NaN": None,
    "inf": None,
    "1" * 101: None,
    "1e99999": None,
}


@pytest.mark.parametrize("text", READINGS)
def test_readings(text: str) -> None:
    assert last_number(text) == READINGS[text]


@pytest.mark.parametrize(("one", "other"), [("18.50", "18.5"), ("1,000", "1000.0"), ("0.5", "1/2"), ("$3", "3 dollars"), ("50%", "50")])
def test_equality_is_of_numbers_not_of_texts(one: str, other: str) -> None:
    assert last_number(one) == last_number(other)


@pytest.mark.parametrize(("one", "other"), [("0.33", "1/3"), ("18", "18.01"), ("50%", "0.5"), ("5", "-5"), ("1,000", "1.000")])
def test_close_is_not_equal(one: str, other: str) -> None:
    assert last_number(one) != last_number(other)


@settings(max_examples=30, deadline=None)
@given(st.integers(-(10**12), 10**12), st.sampled_from(["{:,}", "{}", "${:,}", "{:,.2f}", "Answer: {} apples", "{}%."]))
def test_integers_are_found_in_every_spelling(number: int, form: str) -> None:
    assert last_number(form.format(number)) == number


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert last_number(text) is None or isinstance(last_number(text), Fraction)


@pytest.mark.parametrize("piece", ["1", "1,", "1 ", "/", "-", "1 1/", r"\frac{1", "€ ", "1e", "½", "a"])
def test_ten_million_characters_take_no_time(piece: str) -> None:
    text = piece * (10_000_000 // len(piece))
    start = time.process_time()
    last_number(text)
    assert time.process_time() - start < 1.0
