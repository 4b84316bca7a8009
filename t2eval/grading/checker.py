"""Checker: a process of its own in which math-verify compares LaTeX answers, one JSON line in, one out.

`t2eval.grading.mathematics` starts it as `python -m t2eval.grading.checker` and ends it when it takes too long. It stands apart because
a model's answer is arbitrary: `9^{9^{9^{9}}}` keeps the computer algebra in C code that no signal handler and no thread can interrupt,
and math-verify's own time limits work in a main thread only. Here, the processor time of each question is limited by a timer whose
signal kills the process, and memory by a limit on addresses, so the outcome does not depend on how busy the machine is.

Answers go through math-verify's LaTeX grammar only: its extraction of plain expressions evaluates text as Python.

math-verify compares numbers by their difference, rounded to fifteen places, by which all values below 1e-17 are equal. `_same_numbers`
takes the place of that step: rational values are compared exactly, others to eighty digits relative to their size.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

SECONDS = 3.0
"""Processor time for one question, parsing included. Real pairs take some milliseconds."""
SECONDS_VARIABLE = "T2EVAL_CHECKER_SECONDS"
"""Overrides SECONDS."""
_DIGITS, _EQUAL_DIGITS = 100, 80
"""Digits to which irrational values are computed, and those that must agree."""
_ORIGINAL: list[Any] = []
"""math-verify's own comparison of numbers, once it has been replaced."""
_MEMORY = 2 * 1024**3
_WORN = 1024**3
"""Bytes that it may hold before it asks to be replaced: what one answer left behind must not fail the next one."""


def _exact(expression: Any) -> Any:
    """With decimals as the fractions that they stand for, and `i` as the imaginary unit; other things as they are.

    math-verify compares decimals after rounding to six places, by which 1/3 equals 0.333333 and 3e-8 equals 2e-8.
    """
    from sympy import Basic, Float, I, MatrixBase, Rational

    if not isinstance(expression, (Basic, MatrixBase)):
        return expression
    exact: dict[Any, Any] = {number: Rational(str(number)) for number in expression.atoms(Float)}
    exact.update({symbol: I for symbol in expression.free_symbols if str(symbol) == "i"})
    return expression.xreplace(exact) if exact else expression


def parsed(answer: str) -> list[Any]:
    """What math-verify reads in one LaTeX answer: expressions, and the text itself where there is none."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Its units are a list of words and letters, among them t, m, s and h: 4t would be 4.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False)
    form = LatexExtractionConfig(boxed_match_priority=0, normalization_config=spelling)
    found = parse(f"$\\boxed{{{answer}}}$", [form], parsing_timeout=None)
    return [_exact(item) for item in found]


def _same_constants(first: Any, second: Any) -> bool:
    """Whether two expressions without symbols have the same value, for sure or to eighty digits of the larger one."""
    if first.is_Rational and second.is_Rational:
        return bool(first == second)
    sizes = [abs(value.evalf(_DIGITS)) for value in (first, second)]
    if not all(size.is_Float or size.is_Rational for size in sizes) or not max(sizes).is_finite:
        return False
    difference = abs((first - second).evalf(_DIGITS))
    return bool(max(sizes) > 0 and difference.is_number and difference <= max(sizes) * 10**-_EQUAL_DIGITS)


def _terms(expression: Any) -> dict[Any, Any]:
    """What its symbols stand in → the coefficient of it, of an expression that is multiplied out."""
    from sympy import Add, expand

    found: dict[Any, Any] = {}
    for term in Add.make_args(expand(expression)):
        coefficient, rest = term.as_independent(*expression.free_symbols, as_Add=False)
        found[rest] = found.get(rest, 0) + coefficient
    return found


def _same_numbers(first: Any, second: Any, float_rounding: int, numeric_precision: int) -> bool:
    """In the place of math-verify's `sympy_numeric_eq`: whether two expressions are equal as numbers, term by term where they have symbols.

    False says nothing: math-verify goes on to simplify the difference.
    """
    from math_verify import grader
    from sympy import Expr, Float

    plain = all(isinstance(side, Expr) and not side.has(Float) for side in (first, second))
    if not plain or any(grader.get_pct_val(side) is not None for side in (first, second)):
        return bool(_ORIGINAL[0](first, second, float_rounding, numeric_precision))
    first, second = (grader.safe_sympy_doit(side) for side in (first, second))
    try:
        if not first.free_symbols and not second.free_symbols:
            return _same_constants(first, second)
        ours, others = _terms(first), _terms(second)
        return ours.keys() == others.keys() and all(_same_constants(value, others[rest]) for rest, value in ours.items())
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, ArithmeticError):
        return False


def install() -> None:
    """Put `_same_numbers` in its place.

    Raises:
        AttributeError: this version of math-verify has no `sympy_numeric_eq`.
    """
    from math_verify import grader

    if not _ORIGINAL:
        _ORIGINAL.append(grader.sympy_numeric_eq)
        grader.sympy_numeric_eq = _same_numbers


def equal(golds: list[str], answers: list[str]) -> bool:
    """Whether any reading of the gold answer equals any reading of the other."""
    from math_verify import verify

    install()

    readings = [parsed(gold) for gold in golds]
    others = [parsed(answer) for answer in answers]
    return any(verify(gold, answer, timeout_seconds=None) for gold in readings for answer in others)


def _held() -> int:
    """Bytes of memory that this process holds now.

    Its peak (`ru_maxrss`) would not do: Linux has a new process begin with its parent's, which holds a model.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Answer questions until the input ends: `{"id": …, "golds": […], "answers": […]}` → `{"id": …, "equal": …, "worn": …}`.

    The first line out is `"ready"`. `id` is the question's, so that nobody takes one question's verdict for another's. `worn`: what
    answers left behind fills so much memory that a new process should take over.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # whatever a library prints is no reply
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who asked decides what becomes of this process
    seconds = float(os.environ.get(SECONDS_VARIABLE, SECONDS))
    # What is imported late is imported now; and a math-verify that no longer asks our comparison must not go unnoticed.
    if not equal(["1"], ["\\frac{2}{2}"]) or equal(["2^{-99}"], ["2^{-98}"]):
        sys.exit("this version of math-verify compares numbers in a way that t2eval does not know")
    replies.write(json.dumps("ready") + "\n")
    replies.flush()
    os.dup2(silence, 2)  # only what kept it from starting is of interest, and an unread pipe fills up
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            verdict = equal(question["golds"], question["answers"])
        except Exception:  # noqa: BLE001 - an answer that the algebra cannot read is not equal
            verdict = False
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        replies.write(json.dumps({"id": question["id"], "equal": bool(verdict), "worn": _held() > _WORN}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
