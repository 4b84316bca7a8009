"""Programs: the code is found in every form in which models answer, and graded by running it."""
# ruff: noqa: E501 (a table of texts)

from __future__ import annotations

import time

import pytest

from t2eval.sandbox import available
from t2eval.sandbox.programs import complete, extract_code, pass_many

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

HARD = {
    "crlf body": "    result = 0\r\n    for x in xs:\r\n        result += x\r\n    return result\r\n",
    "crlf fenced": "Sure:\r\n```python\r\ndef total(xs):\r\n    return sum(xs)\r\n```\r\nDone.\r\n",
    "cr only": "```python\rdef total(xs):\r    return sum(xs)\r```\r",
    "tabs function": "```python\ndef total(xs):\n\tresult = 0\n\tfor x in xs:\n\t\tresult += x\n\treturn result\n```",
    "tabs body": "\tresult = 0\n\tfor x in xs:\n\t\tresult += x\n\treturn result\n",
    "indented fence": "1. Use sum:\n\n   ```python\n   def total(xs):\n       return sum(xs)\n   ```\n",
    "indented fence deep": "- item\n    ```python\n    def total(xs):\n        return sum(xs)\n    ```\n",
    "tilde fence": "~~~python\ndef total(xs):\n    return sum(xs)\n~~~\n",
    "four backticks": "````python\ndef total(xs):\n    return sum(xs)\n````\n",
    "fence with text before on line": "Here: ```python\ndef total(xs):\n    return sum(xs)\n```",
    "fence closes on code line": "```python\ndef total(xs):\n    return sum(xs)```",
    "helper in own fence, then main": "First a helper:\n```python\ndef add(a, b):\n    return a + b\n```\nThen:\n```python\ndef total(xs):\n    r = 0\n    for x in xs:\n        r = add(r, x)\n    return r\n```\n",
    "imports in own fence": "```python\nimport functools\n```\n\n```python\ndef total(xs):\n    return functools.reduce(lambda a, b: a + b, xs, 0)\n```\n",
    "test fence after": "```python\ndef total(xs):\n    return sum(xs)\n```\nTest:\n```python\nassert total([1]) == 2\n```\n",
    "bash fence first": "```bash\npip install numpy\n```\n```python\ndef total(xs):\n    return sum(xs)\n```\n",
    "output fence after": "```python\ndef total(xs):\n    return sum(xs)\n```\nOutput:\n```\n6\n```",
    "two versions, last is improved": "```python\ndef total(xs):\n    return sum(xs)\n```\nor\n```python\ndef total(xs):\n    return 0\n```\n",
    "usage example inside": "```python\ndef total(xs):\n    return sum(xs)\n\nprint(total([1, 2]))\nassert total([1]) == 1\n```\n",
    "usage example wrong assert inside": "```python\ndef total(xs):\n    return sum(xs)\n\nassert total([1]) == 3\n```\n",
    "input at margin": "```python\nn = int(input())\ndef total(xs):\n    return sum(xs)\n```\n",
    "doctest style": ">>> def total(xs):\n...     return sum(xs)\n...\n>>> total([1, 2])\n3\n",
    "doctest style fenced": "```python\n>>> def total(xs):\n...     r = 0\n...     for x in xs:\n...         r += x\n...     return r\n>>> total([1])\n1\n```",
    "doctest in docstring": 'def total(xs):\n    """\n    >>> total([1])\n    1\n    """\n    return sum(xs)\n',
    "helper after": "```python\ndef total(xs):\n    return add_all(xs)\n\ndef add_all(xs):\n    return sum(xs)\n```",
    "helper after unfenced": "def total(xs):\n    return add_all(xs)\n\ndef add_all(xs):\n    return sum(xs)\n\nThis is it.\n",
    "constant after": "def total(xs):\n    return sum(xs) + ZERO\n\nZERO = 0\n",
    "class with method and alias": "```python\nclass Solution:\n    def total(self, xs):\n        return sum(xs)\n\ntotal = Solution().total\n```",
    "async coroutine driven": "async def work(xs):\n    return sum(xs)\n\ndef total(xs):\n    try:\n        work(xs).send(None)\n    except StopIteration as stop:\n        return stop.value\n",
    "lambda": "total = lambda xs: sum(xs)\n",
    "lambda fenced": "```\ntotal = lambda xs: sum(xs)\n```",
    "annotated assign": "total: object = lambda xs: sum(xs)\n",
    "decorated": "import functools\n\n@functools.lru_cache\ndef inner(xs):\n    return sum(xs)\n\ndef total(xs):\n    return inner(tuple(xs))\n",
    "decorator on entry": "def same(f):\n    return f\n\n@same\ndef total(xs):\n    return sum(xs)\n",
    "german prose": "Natürlich! Hier ist die Lösung:\n\ndef total(xs):\n    return sum(xs)\n\nDiese Funktion summiert.\n",
    "chinese prose": "当然可以。下面是代码：\n```python\ndef total(xs):\n    # 求和\n    return sum(xs)\n```\n希望有帮助。",
    "chinese prose unfenced": "下面是代码：\ndef total(xs):\n    return sum(xs)\n这个函数求和。\n",
    "prose starting with code words": "for this task, I use sum:\n\ndef total(xs):\n    return sum(xs)\n",
    "prose with 'if' after": "def total(xs):\n    return sum(xs)\n\nif you want, this also works: sum\n",
    "prose 'import' line": "import is not needed here.\n\ndef total(xs):\n    return sum(xs)\n",
    "prose 'from' line": "from the description it follows that:\ndef total(xs):\n    return sum(xs)\n",
    "prose 'class' line": "class names are not needed.\n\ndef total(xs):\n    return sum(xs)\n",
    "thinking tags": "<think>\nI could write def total(xs): ...\n```python\ndef total(xs):\n    return 1\n```\n</think>\n```python\ndef total(xs):\n    return sum(xs)\n```",
    "truncated after function": "```python\ndef total(xs):\n    return sum(xs)\n\ndef other(xs):\n    return su",
    "truncated in next def line": "```python\ndef total(xs):\n    return sum(xs)\n\ndef oth",
    "truncated in string": 'def total(xs):\n    return sum(xs)\n\ntext = """abc\n',
    "truncated main": "def total(xs):\n    return sum(xs)\n\nif __name__ == '__main__':\n    print(tot",
    "nul byte after": "def total(xs):\n    return sum(xs)\n\0\0\n",
    "nul in comment after": "```python\ndef total(xs):\n    return sum(xs)  # a\n```\n\0",
    "repeated prompt wholly": f"```python\n{PROMPT}    return sum(xs)\n```",
    "repeated prompt unfenced": PROMPT + "    return sum(xs)\n",
    "signature repeated, fenced inside body": "def total(xs: List[int]) -> int:\n```python\n    return sum(xs)\n```",
    "bom": "\ufeffdef total(xs):\n    return sum(xs)\n",
    "fenced no newline at end of prose": "The answer:```python\ndef total(xs):\n    return sum(xs)\n```",
    "multi-line signature": "def total(\n    xs,\n    start=0,\n):\n    return sum(xs, start)\n",
    "if else at margin around def": "try:\n    import numpy_missing\nexcept ImportError:\n    numpy_missing = None\n\ndef total(xs):\n    return sum(xs)\n",
    "body with blank first lines": "\n\n    return sum(xs)\n",
    "body with backslash": "    return 0 + \\\n        sum(xs)\n",
    "body comment at margin": "    r = 0\n# add all\n    for x in xs:\n        r += x\n    return r\n",
    "body docstring again": '    """ Sum. """\n    return sum(xs)\n',
    "two-space body": "  r = 0\n  for x in xs:\n    r += x\n  return r\n",
    "future import": "```python\nfrom __future__ import annotations\n\ndef total(xs: list[int]) -> int:\n    return sum(xs)\n```",
    "string with fence inside": "```python\ndef total(xs):\n    '''\n    Example:\n    ```\n    total([1])\n    ```\n    '''\n    return sum(xs)\n```",
    "language line": "python\ndef total(xs):\n    return sum(xs)\n",
    "type alias": "Vector = list\n\ndef total(xs: Vector):\n    return sum(xs)\n",
    "star prose bullets": "* first we sum\n* then return\n\ndef total(xs):\n    return sum(xs)\n\n* done\n",
    "sys.path statement": "import sys\nsys.setrecursionlimit(5000)\n\ndef total(xs):\n    return xs[0] + total(xs[1:]) if xs else 0\n",
    "call before def": "import collections\ncounts = collections.Counter()\ncounts['a'] += 1\n\ndef total(xs):\n    return sum(xs) + counts['b']\n",
    "semicolon def": "def total(xs): return sum(xs)\n",
}
# The function was not defined, or no machine could know what was meant.
WRONG = {
    "nothing": "",
    "a wrong body": "    return 0\n",
    "prose": "I do not know.",
    "another name": "```python\ndef totals(xs):\n    return sum(xs)\n```",
    "cut off in the function": "    return sum(xs",
    "cut off in the fenced function": "```python\ndef total(xs):\n    r = 0\n    for x in xs",
    "a method is not the function": "```python\nclass Solution:\n    def total(self, xs):\n        return sum(xs)\n```",
    "a coroutine is not a number": "async def total(xs):\n    return sum(xs)\n",
    "the test given back": "assert total([]) == 0\nassert total([1, 2, 3]) == 6\n",
    "another language": "```javascript\nfunction total(xs) { return xs.reduce((a, b) => a + b, 0) }\n```",
    "an early exit": "    import os\n    os._exit(0)\n",
    "NUL bytes in the code": "    return sum(xs)\0\n",
    "lone surrogates in the code": "    return sum(xs)  # \ud800\n",
    "ten million letters": "a" * 10_000_000,
    "ten million brackets": "def total(xs):\n    return " + "(" * 10_000_000,
    "two million fences": "```\n" * 2_500_000,
    "nested far too deep": "def total(xs):\n    return " + "-" * 60_000 + "1\n",
}


def _all_pass(answers: dict[str, str]) -> list[str]:
    """The names of the answers whose programs do not pass."""
    programs = [complete(PROMPT, answer, "total") for answer in answers.values()]
    passed = pass_many([(program, TEST) for program in programs])
    return [name for name, ok in zip(answers, passed, strict=True) if not ok]


@needs_sandbox
def test_every_form_of_a_right_answer_passes() -> None:
    assert _all_pass(ANSWERS) == []
    assert _all_pass(HARD) == []
    assert len(HARD) >= 60


@needs_sandbox
def test_forms_that_repeat_the_function_pass_without_the_prompt_too() -> None:
    """`t2_mbpp_pro` has no prompt to be completed."""
    bodies = {name for name, answer in HARD.items() if "body" in name or "future" in name}
    programs = {name: "from typing import List\n" + extract_code(answer, "total") for name, answer in HARD.items() if name not in bodies}
    passed = pass_many([(program, TEST) for program in programs.values()])
    assert [name for name, ok in zip(programs, passed, strict=True) if not ok] == []


@needs_sandbox
def test_wrong_answers_fail() -> None:
    assert _all_pass(WRONG) == list(WRONG)


@pytest.mark.parametrize(
    "unit",
    ["a", " ", "\t", "\tx\n", "`", "```\n", "``` \t", "def total(x):\n", "@a\n", '"""\n', "(", "a = 1\n", "total = ", "import a, ", "a[", "a[]",
     "if :", ": ", ">>> a\n", "\r", "</think>", "\0", "async ", "from __future__ import a\n", "\\\n", "```\nimport a\n```\n", "\ud800", "求和"],
)  # fmt: skip
def test_reading_ten_million_characters_takes_no_time(unit: str) -> None:
    answer = unit * (10_000_000 // len(unit)) + "x"
    began = time.process_time()
    complete(PROMPT, answer, "total")
    extract_code("def total(x): return 1\n" + answer, "total")
    assert time.process_time() - began < 5.0


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
