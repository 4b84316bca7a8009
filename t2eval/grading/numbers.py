"""Numbers: the last number of a text, as an exact fraction.

A number may carry thousands separators, a sign, decimals, an exponent (`1.2e3`), be a fraction (`3/4`, `\\frac{3}{4}`, `¾`) or a mixed
number (`3 1/2`). Currency signs, percent signs and units are not part of it: `$1,250.00`, `1250` and `1250 dollars` are the same
number, and so are `50%` and `50`, but not `50%` and `0.5`. A sign counts where it does not follow a digit, a letter or a closing
bracket, so `10-5` and the range `10-5` end with 5. Digits that follow a Latin letter or a `^` (`CO2`, `m2`, `m^2`, `x_5`) belong to
that word, not to the answer. Digits of any script count.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_TAIL = 20_000
"""Characters from the end in which the last number is looked for: several times what any task generates."""
_LONGEST = 100
"""A longer run of digits is no answer (and `int` refuses to read some thousands)."""
_CURRENCIES = "$€£¥₹₩₽₺"
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_VULGAR = re.compile("(?=[¼-¾⅐-⅞])")
_PUNCTUATION = str.maketrans({"−": "-", "‐": "-", "‑": "-", "–": "-", "﹣": "-", "⁄": "/", "∕": "/", "٬": ",", "٫": ".", "\u00a0": " "})
_BEFORE_FRACTION = re.compile(r"(?<=\d)(?=\\[dtc]?frac)")
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}")
_LATEX_SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!])(?=\d{3}(?!\d))")
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![0-9A-Za-z_)\]}}%^])[-+])?(?<![A-Za-z_^\d])(?<!\^\{{)(?<!\^-)(?<!\^\{{-)"
    rf"(?:(?:(?P<whole>\d+)[ ]+)?(?P<over>\d+)[ ]?/[ ]?(?P<under>\d+)(?![\d.,]*\d)|(?P<plain>{_UNSIGNED})(?P<exponent>[eE][-+]?\d+(?!\w))?)"
)


def _plain(text: str) -> str:
    """The text with one form of every sign that matters to a number."""
    text = _VULGAR.sub(" ", _SUPERSCRIPTS.sub("", text))
    text = unicodedata.normalize("NFKC", text).translate(_PUNCTUATION)
    text = _BEFORE_FRACTION.sub(" ", _LATEX_SEPARATOR.sub(",", text.replace("\\$", "$")))
    text = _LATEX_FRACTION.sub(r"\1/\2 ", text)
    return re.sub(rf"[{_CURRENCIES}]", " ", re.sub(rf"([-+]) ?[{_CURRENCIES}] ?(?=[\d.])", r"\1", text))


def _value(match: re.Match[str]) -> Fraction | None:
    if max(len(part) for part in match.groups() if part) > _LONGEST:
        return None
    sign = -1 if match["sign"] == "-" else 1
    if match["under"]:
        if int(match["under"]) == 0:
            return None
        return sign * (int(match["whole"] or 0) + Fraction(int(match["over"]), int(match["under"])))
    exponent = match["exponent"] or ""
    if len(exponent) > 4:
        return None
    digits = "".join(str(unicodedata.decimal(character)) if character.isdecimal() else character for character in match["plain"])
    return sign * Fraction(digits.replace(",", "") + exponent)


def last_number(text: str) -> Fraction | None:
    """The last number of a text.

    Args:
        text: for instance a model's answer. Of a very long one, the last 20,000 characters are read.

    Returns:
        Its exact value, so that `18.50`, `18.5` and `37/2` are equal; None where there is no number, or where the last one is a division
        by zero or has more than 100 digits.

    >>> last_number("She has 3 x $6 = $18.50.")
    Fraction(37, 2)
    """
    last = None
    for last in _NUMBER.finditer(_plain(text[-_TAIL:])):  # noqa: B007
        pass
    return _value(last) if last is not None else None
