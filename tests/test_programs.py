"""Programs: the code is found in every form in which models answer, and graded by running it."""

from __future__ import annotations

import pytest

from t2eval.programs import complete, extract_code, pass_many, passes
from t2eval.sandbox import available

PROMPT = (
    "from typing import List\n\ndef helper(x):\n    return x\n\n"
    'def total(xs: List[int]) -> int:\n    """ Sum.\n    >>> total([1, 2])\n    3\n    """\n'
)
TEST = "assert total([]) == 0\nassert total([1, 2, 3]) == 6"
needs_sandbox = pytest.mark.skipif(available().kind is None, reason=f"no sandbox: {available().reason}")

ANSWERS = {
    "body": "    result = 0\n    for x in xs:\n        result += helper(x)\n    return result\n",
    "body, first indentation lost": "result = 0\n    for x in xs:\n        result += x\n    return result",
    "body, first indentation lost before a block": "for x in xs:\n        pass\n    return sum(xs)",
    "body, all indentation lost": "result = 0\nfor x in xs:\n    result += x\nreturn result\n\nThis adds them all.",
    "body, then another function": "    return sum(xs)\n\n\ndef other(x):\n    return x +\n",
    "body, then itself again": "    return sum(xs)\n\ndef total(xs):\n    return None\n",
    "body, then prose": "    return sum(xs)\n\nThis works because of `sum`.\n",
    "body with text at the margin": '    text = """\nat the margin\n"""\n    return sum(xs)\n',
    "prose, then body": "Here is the rest:\n\n    return sum(xs)\n",
    "fenced body": "```python\n    return sum(xs)\n```\n",
    "fenced body at the margin": "Sure!\n```python\nreturn sum(xs)\n```\nIt adds.",
    "fenced function": "Sure, here it is:\n\n```python\ndef total(xs):\n    return sum(helper(x) for x in xs)\n```\nHope this helps!",
    "fence never closed": "```python\nimport math\n\n\ndef total(xs):\n    return int(math.fsum(xs))\n",
    "second of two fences": "An example:\n```\ntotal([1]) == 1\n```\nThe function:\n```py\ndef total(xs):\n    return sum(xs)\n```\n",
    "function unfenced": "def total(xs: List[int]) -> int:\n    return sum(xs)\n",
    "function between prose": "You can use sum:\n\ndef total(xs):\n    return sum(xs)\n\nThis function adds.\nfoo bar",
    "main block": "def total(xs):\n    return sum(xs)\n\nif __name__ == '__main__':\n    print(total(input()))\n",
    "fenced main block": "```python\ndef total(xs):\n    return sum(xs)\n\nif __name__ == '__main__':\n    raise SystemExit\n```",
    "helpers after a main block's kind of line": "ADD = 1\n\ndef inner(xs):\n    return sum(xs)\n\ndef total(xs):\n    return inner(xs)\n",
}


@needs_sandbox
@pytest.mark.parametrize("form", ANSWERS)
def test_every_form_of_a_right_answer_passes(form: str) -> None:
    program = complete(PROMPT, ANSWERS[form], "total")
    assert passes(program, TEST), program


@needs_sandbox
@pytest.mark.parametrize(
    "answer", ["", "    return 0\n", "I do not know.", "```python\ndef totals(xs):\n    return sum(xs)\n```", "    return sum(xs"]
)
def test_wrong_answers_fail(answer: str) -> None:
    assert not passes(complete(PROMPT, answer, "total"), TEST)


def test_extract_code_leaves_a_plain_program_alone() -> None:
    assert extract_code("x = 3\nprint(x)\n") == "x = 3\nprint(x)\n"
    assert extract_code("def f(x):\n    return x + 2\n") == "def f(x):\n    return x + 2\n"


def test_extract_code_takes_the_block_that_defines_the_entry_point() -> None:
    text = "```\nf(1)\n```\nthen\n```python\ndef f(x):\n    return x\n```"
    assert extract_code(text, "f") == "def f(x):\n    return x\n"
    assert extract_code(text).strip() == "f(1)"


@needs_sandbox
def test_pass_many_keeps_the_order() -> None:
    pairs = [(f"def f():\n    return {n}", "assert f() % 2 == 0") for n in range(9)]
    assert pass_many(pairs, workers=2) == [n % 2 == 0 for n in range(9)]
