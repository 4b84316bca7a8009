r"""LaTeX answers: the boxed answer of a solution, and one spelling of what is written in several.

Only what math-verify reads wrongly or not at all is rewritten here; `tests/metrics/test_mathematics.py` holds each case.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 2_000
"""Characters of an answer; a longer one is no answer. The longest of MATH's that was seen has 81."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox|emph)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"[^\W\d_]")
_WORDS = re.compile(r"[^\W\d_]{2}")
_SIGNS = {
    "−": "-", "–": "-", "°": r"^\circ ", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "√": r"\sqrt ", "\u00a0": " ",
}  # fmt: skip
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\$+|\$+$|^\\[(\[]|\\[)\]]$", ""),  # the delimiters of a formula
        (r"\\degree(?![A-Za-z])", r"^\\circ "),
        (r"\s*(?:\\text\s*\{\s*percent\s*\}|\bpercent\b|\\?%)", r"\\%"),
        (r"(?:\\\$|[€£¥₹])", ""),
        (r"(?<=\d)(?:\{,\}|,?\\[,!])(?=\d{3}(?!\d))", ""),  # thousands
        (r"\\(?:quad|qquad)(?![A-Za-z])|\\[,;:!>]|~", " "),
        (r"\\[bB]igg?[lrm]?(?![A-Za-z])", ""),
        (r"\\(?:mathbf|boldsymbol|bm)(?![A-Za-z])", ""),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
        (r"^\s*\\approx(?![A-Za-z])", ""),
    )
]
_POWER = r"(?:\s*\^\s*\{?[23]\}?)?\s*$"
_UNITS = [
    re.compile(pattern)
    for pattern in (
        r"\s*\\(?:text|textrm|mathrm|mbox)\s*\{(?!\s*(?:and|or)\s*\})[A-Za-z.\s]*\}" + _POWER,
        r"(?<=[\d}])\s*(?:cm|mm|km|kg|mg|gm|mph|ft|lbs?|in|hrs?|min|sec)\.?" + _POWER,
        r"(?<=[\w})])\s+(?:square\s+|cubic\s+)?[A-Za-z]{4,}\.?" + _POWER,
    )
]
"""What follows a number as its unit, in LaTeX's text or plainly. A single letter never does: `4t` is no 4."""
_QUANTITY = re.compile(r"\d|\\pi|\\sqrt")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\overline\s*\{(\d{1,30})\}")
_PERCENT = re.compile(r"\s*\\%\s*$")
_BASE = re.compile(r"^([0-9A-Za-z.]+)_(?:\{\s*(?:\\text\s*\{)?\s*(\w+?)\s*\}?\s*\}|(\d))$")
_BASES = dict(zip("two three four five six seven eight nine ten eleven twelve".split(), range(2, 13), strict=True)) | {"sixteen": 16}


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{…}` (or `\fbox{…}`) of a text holds.

    Args:
        text: a solution or a model's answer, of any length.

    Returns:
        The content, with nested braces; of a box without braces (`\boxed 5$`) the text up to the formula's or the line's end. None where
        there is no box, where the last one is not closed, or where it holds more than 2,000 characters.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    window = text[start : start + LONGEST + 50]
    opening = _BOX.match(window)
    if opening is None:
        return None
    content = window[opening.end() :]
    if not content.startswith("{"):
        return re.split(r"[$\n]", content, maxsplit=1)[0].strip()[:LONGEST]
    depth = 0
    for match in re.finditer(r"\\.|[{}]", content, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0 and match.group() == "}":
            return content[1 : match.start()].strip() if match.start() <= LONGEST else None
    return None


def normalised(answer: str) -> str:
    """One spelling: signs, spaces, thousands separators and fonts as math-verify reads them, without currency and unit."""
    for sign, command in _SIGNS.items():
        answer = answer.replace(sign, command)
    answer = answer.strip()
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = _REPEATING.sub(_repeating, answer.strip())
    answer = answer.rstrip(" .,;") if not answer.endswith("\\") else answer
    for unit in _UNITS:
        shorter = unit.sub("", answer)
        answer = shorter if shorter and _QUANTITY.search(shorter) else answer
    return answer


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match.groups()
    value = Fraction(int(whole + fixed + period or 0) - int(whole + fixed or 0), 10 ** len(fixed) * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def words(answer: str) -> str | None:
    r"""The words of an answer that holds text (`\text{no solution}`), in lower case with single spaces; None where it holds none."""
    plain = _TEXT.sub(lambda match: match.group(1), answer.replace("~", " "))
    if not (_LETTER.search(plain) if plain != answer else _WORDS.search(plain) and "\\" not in plain):
        return None
    return " ".join(plain.casefold().replace(",", ", ").split()).strip(" .")


def compact(answer: str) -> str:
    """The answer without spaces, but for those between two digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", answer)


def brackets(answer: str) -> str:
    r"""`set` for `\{…\}`, `tuple` for `(…, …)`, else nothing."""
    plain = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", answer).replace(" ", "")
    if plain.startswith("\\{") and plain.endswith("\\}"):
        return "set"
    return "tuple" if re.fullmatch(r"\([^()]*,[^()]*\)", plain) else ""


def without_percent(answer: str) -> str | None:
    """A normalised answer without its percent sign; None where it has none."""
    shorter = _PERCENT.sub("", answer)
    return shorter if shorter != answer else None


def number_base(answer: str) -> tuple[str, int] | None:
    """The digits and the base of a numeral that names one (`2516_8`, `1011_{\\text{two}}`); None otherwise."""
    match = _BASE.match(answer.replace(" ", ""))
    if match is None:
        return None
    base = match.group(2) or match.group(3)
    value = int(base) if base.isdecimal() else _BASES.get(base.casefold())
    return (match.group(1), value) if value else None
