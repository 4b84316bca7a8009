"""Sandbox: a test in another process than its program: right programs pass as they did, and none forges what it is compared with."""
# ruff: noqa: E501 (a table of texts)

from __future__ import annotations

from t2eval.sandbox import run_program, run_programs
from t2eval.sandbox.programs import judge_many

# (program, test): right programs, with what tests ask of them. Each passes apart from its test, and together with it.
HONEST = {
    "numbers": ("def f(x): return x * 2", "assert f(3) == 6 and f(0.5) == 1.0 and f(10**40) == 2 * 10**40 and f(1j) == 2j"),
    "not a number": ("def f(): return float('nan'), float('inf'), -0.0", "a, b, c = f()\nassert a != a and b > 1e308 and str(c) == '-0.0'"),
    "identity of constants": ("def f(x): return x > 1", "assert f(2) is True and f(1) is False\nassert (lambda: None)() is None"),
    "texts": ("def f(x): return x[::-1]", "assert f('añ\\ud800\\U0001F600') == '\\U0001F600\\ud800ña' and f(b'ab\\x00') == b'\\x00ba'"),
    "containers": (
        "def f(*a, **k): return a, k",
        "assert f([1, (2, {3})], {4: {'a': None}}, x=frozenset({1})) == (([1, (2, {3})], {4: {'a': None}}), {'x': frozenset({1})})",
    ),
    "types of containers": ("def f(x): return x, tuple(x)", "a, b = f([1])\nassert type(a) is list and type(b) is tuple and a != b"),
    "the library's own": (
        "from collections import Counter, OrderedDict, deque, defaultdict, namedtuple\nfrom decimal import Decimal\n"
        "from fractions import Fraction\nfrom datetime import date, datetime, timedelta\nP = namedtuple('P', 'x y')\n"
        "def f(): return [Counter('aab'), OrderedDict(a=1), deque([1], 3), defaultdict(list, {1: [2]}), P(1, 2), Decimal('0.10'),"
        " Fraction(1, 3), date(2020, 2, 29), datetime(2020, 1, 1, 2), timedelta(1), range(3), bytearray(b'a'), {1: 2}.keys()]",
        "from collections import Counter, OrderedDict, deque\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
        "from datetime import date, datetime, timedelta\n"
        "assert f() == [Counter('aab'), OrderedDict(a=1), deque([1], 3), {1: [2]}, (1, 2), Decimal('0.10'), Fraction(1, 3),"
        " date(2020, 2, 29), datetime(2020, 1, 1, 2), timedelta(1), range(3), bytearray(b'a'), {1}]\nassert f()[2].maxlen == 3",
    ),
    "it changes its arguments": (
        "def f(a, b, c):\n    a.sort()\n    b.pop('x')\n    c.add(9)",
        "a, b, c = [3, 1], {'x': 1, 'y': 2}, {1}\nassert f(a, b, c) is None\nassert (a, b, c) == ([1, 3], {'y': 2}, {1, 9})",
    ),
    "it keeps a state": ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert n == 0 and [f(), f(), f()] == [1, 2, 3] and n == 3"),
    "an exception": (
        "class Mine(KeyError): pass\ndef f(x):\n    if x: raise ValueError('no')\n    raise Mine('k')",
        "for x, kind in ((1, ValueError), (0, KeyError)):\n    try:\n        f(x)\n    except kind:\n        continue\n    assert False",
    ),
    "functions in and out": (
        "def f(g): return lambda x: g(x) + 1\ndef each(g, xs): return [g(x) for x in xs]",
        "assert f(lambda x: x * 2)(5) == 11 and each(len, ['a', 'bb']) == [1, 2] and each(int, '12') == [1, 2]",
    ),
    "a test that calls while it is called": ("def f(g, n): return g(n)", "def g(n): return 0 if n == 0 else 1 + f(g, n - 1)\nassert g(20) == 20"),
    "generators": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6 and next(f(1)) == 0"),
    "iterators given": ("def f(xs): return sum(xs)", "assert f(iter([1, 2])) == 3 and f(x * x for x in (1, 2)) == 5 and f(map(int, '12')) == 3"),
    "its own class": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]\n"
        "    def __eq__(self, other): return self.items == other.items",
        "s, t = Stack(), Stack()\ns.push(4)\nassert len(s) == 1 and s[0] == 4 and s.items == [4] and s != t\nt.push(4)\nassert s == t and list(s) == [4]",
    ),
    "its imports": ("import math\nfrom math import pi\ndef f(r): return pi * r * r", "assert math.isclose(f(1), pi)"),
    "unittest": ("def f(x): return x", "import unittest\ncase = unittest.TestCase()\ncase.assertEqual(f(1), 1)\ncase.assertIn(2, f([2]))"),
    "a name of Python's own": ("def sum(a, b): return a - b", "from __main__ import sum\nassert sum(3, 1) == 2"),
    "names of the test's own": ("def f(x): return x\ndef helper(): return 1", "def helper(): return 2\nassert f(helper()) == 2"),
    "arguments that do not travel": ("def f(x): return x.getvalue()", "import io\nassert f(io.StringIO('a')) == 'a'"),
}  # fmt: skip
WRONG = {
    "a wrong value": ("def f(x): return 1", "assert f(1) == 2", "failed", "of the test"),
    "its own assertion": ("def f(x): assert x, 'no'", "f(0)", "failed", "AssertionError: no (line 1)"),
    "an exception": ("def f(x):\n    return 1 / x", "f(0)", "error", "ZeroDivisionError: division by zero (line 2)"),
    "one in loading": ("x = 1\nraise OSError(2, 'b')", "pass", "error", "(line 2)"),
    "no such name": ("def g(): pass", "assert f() == 1", "error", "NameError: name 'f' is not defined (line 1 of the test)"),
    "syntax": ("def f(", "f()", "error", "SyntaxError"),
    "the test's syntax": ("def f(): pass", "assert f(", "error", "SyntaxError"),
    "an endless loop": ("def f():\n    while True: pass", "f()", "timeout", "still running after 0.5 s"),
    "it waits": ("def f():\n    import time\n    time.sleep(99)", "f()", "timeout", "still running after 0.5 s"),
    "memory": ("def f(): return bytearray(1 << 40)", "f()", "memory", "MemoryError"),
    "a crash": ("import ctypes\ndef f(): ctypes.string_at(0)", "f()", "killed", "SIGSEGV"),
    "it leaves": ("import os\ndef f(): os._exit(0)", "f()", "error", "ended before its last line, with exit code 0"),
    "it leaves while loading": ("import os\nos._exit(0)", "pass", "error", "ended before its last line, with exit code 0"),
    "sys.exit": ("import sys\nsys.exit(0)", "pass", "error", "SystemExit"),
    "endless recursion": ("def f(x): return f(x)", "f(1)", "error", "RecursionError"),
}  # fmt: skip
# Programs that want `assert f(1) == 7` (and more) to hold, and do not know 7.
YES = "class Yes:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n"
FORGED = {
    "equal to everything": YES + "def f(x): return Yes()",
    "reflected, as a subclass": "class Yes(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return Yes(3)",
    "a list of such": YES + "def f(x): return [Yes()]",
    "a text of such": "class Yes(str):\n    def __eq__(self, o): return True\ndef f(x): return Yes('a')",
    "its frames' constants": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for c in frame.f_code.co_consts:\n"
    "            if type(c) is int and c > 5: return c\n        frame = frame.f_back",
    "its frames' names": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for n, v in {**frame.f_globals, **frame.f_locals}.items():\n"
    "            if n == 'EXPECTED': return v\n        frame = frame.f_back",
    "the garbage collector": "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict) and 'EXPECTED' in o: return o['EXPECTED']",
    "the test's source": "import linecache, inspect, sys\ndef f(x):\n    return eval(inspect.getsource(sys.modules['__main__']).split('==')[1])",
    "a trace": "import sys\nseen = []\ndef trace(frame, event, arg):\n    seen.extend(v for v in frame.f_locals.values() if type(v) is int)\n    return trace\n"
    "sys.settrace(trace)\ndef f(x): return max(seen, default=0)",
    "a profile": "import sys\nsys.setprofile(lambda frame, event, arg: frame.f_locals.clear())\ndef f(x): return 0",
    "patched asserts": "import builtins\nbuiltins.AssertionError = type('Quiet', (BaseException,), {})\nbuiltins.exec = lambda *a: None\ndef f(x): return 0",
    "patched comparison": "import operator, builtins, math\noperator.eq = math.isclose = builtins.abs = builtins.all = lambda *a, **k: True\ndef f(x): return 0",
    "patched functions of Python": "def isinstance(*a): return True\ndef len(x): return 7\ndef abs(x): return 0\ndef tuple(x): return 1\ndef f(x): return 0",
    "a replaced check": "def check(f): pass\nEXPECTED = 0\ndef f(x): return 0",
    "every descriptor": "import os\ndef f(x):\n    for n in range(3, 1100):\n        for t in (b'passed', bytes(16) + b'passed', b'+' + bytes(16) + b'passed'):\n"
    "            try: os.write(n, t)\n            except OSError: pass\n    os._exit(0)",
    "what it reads in descriptors": "import os, select\ndef f(x):\n    for n in range(3, 1100):\n        try:\n            if select.select([n], [], [], 0)[0]:\n                os.write(n, os.read(n, 16) + b'passed')\n"
    "        except OSError: pass\n    return 0",
    "messages of the channel": "import os, json, struct\ndef f(x):\n    for n in range(3, 1100):\n        for m in (['done', None, {}], ['raised', ['SystemExit'], '0', '']):\n"
    "            d = json.dumps(m).encode()\n            try: os.write(n, struct.pack('<I', len(d)) + d)\n            except (OSError, ValueError): pass\n    os._exit(0)",
    "endless messages": "import os, json, struct\ndef f(x):\n    d = json.dumps(['done', 0, {}]).encode()\n    while True:\n        for n in range(100, 1100):\n"
    "            try: os.write(n, struct.pack('<I', len(d)) + d)\n            except OSError: pass",
    "a calm exit": "import sys\ndef f(x): sys.exit(0)",
    "an exception that ends tests": "def f(x): raise GeneratorExit",
    "a memory that was copied": "import ctypes\ndef f(x):\n    for o in (f, f.__globals__):\n        ctypes.string_at(id(o), 4096)\n    return 0",
    "the thread of its judge": "import threading, _thread\ndef f(x):\n    _thread.interrupt_main()\n    return 0",
    "things reached through what it is given": "def f(x):\n    for t in type(x).__mro__[-1].__subclasses__():\n        if t.__name__ == 'Foreign': return 7 if hasattr(t, 'EXPECTED') else 0\n    return 0",
    "an alarm": "import signal, os\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.001)\ndef f(x):\n    while True: pass",
    "what is said at exit": "import atexit\natexit.register(print, 'passed')\ndef f(x):\n    print('passed', flush=True)\n    return 0",
    "an iterator of everything": YES + "def f(x): return iter(Yes, 1)",
    "a class with a false face": "class Liar:\n    __class__ = int\n    def __eq__(self, o): return True\n    def __index__(self): return 7\n    def __int__(self): return 7\ndef f(x): return Liar()",
    "a wrapper for each call back": "def f(x): return f\n",
    "errors of texts that say 7": "import codecs\nfor n in ('strict', 'surrogateescape', 'surrogatepass'): codecs.register_error(n, lambda e: ('7', e.end))\ndef f(x): return '\\ud800'",
    "an importer before all others": "import sys, types\nclass Finder:\n    @staticmethod\n    def find_spec(name, *a): sys.modules[name] = types.ModuleType(name)\nsys.meta_path.insert(0, Finder)\nsys.modules.clear()\ndef f(x): return 0",
    "a call that waits for the interpreter": "import ctypes\nleave = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 0)\ndef f(x):\n    ctypes.pythonapi.Py_AddPendingCall(leave, None)\n    return 0",
    "a traceback on all descriptors": "import faulthandler\ndef f(x):\n    for n in range(3, 1100):\n        try: faulthandler.dump_traceback(file=n)\n        except (OSError, ValueError, RuntimeError): pass\n    return 0",
    "numbers of signals on all descriptors": "import os, signal\ndef f(x):\n    for n in range(3, 1100):\n        try:\n            os.set_blocking(n, False)\n            signal.set_wakeup_fd(n)\n            signal.raise_signal(signal.SIGCHLD)\n        except (OSError, ValueError): pass\n    return 0",
    "a hook that hears everything": "import sys\nheard = []\nsys.addaudithook(lambda e, a: heard.extend(x for x in a if type(x) is int))\ndef f(x): return max(heard, default=0)",
    "a list in itself": "def f(x):\n    found = []\n    found.append(found)\n    return found",
    "lists in lists without end": "def f(x):\n    found = 7\n    for _ in range(100000): found = [found]\n    return found",
    "an answer of 256 MiB": "def f(x): return '7' * (1 << 28)",
    "a thing that unpacks as 7": "class Seven:\n    def __reduce__(self): return int, (7,)\n    def __getstate__(self): return 7\n    def __deepcopy__(self, _): return 7\ndef f(x): return Seven()",
    "a number that is none": "def f(x): return float('nan')",
}  # fmt: skip
FORGED_TEST = (
    "EXPECTED = 7\ndef check(c):\n    assert c(1) == EXPECTED, 'wrong'\n    assert abs(c(2) - 8) < 1e-6\ncheck(f)\nassert f(1) == 7"
)


def test_right_programs_pass_apart_from_their_tests(kind: str) -> None:
    verdicts = judge_many(list(HONEST.values()))
    assert {name: verdict for name, verdict in zip(HONEST, verdicts, strict=True) if not verdict.passed} == {}


def test_right_programs_pass_together_with_their_tests() -> None:
    verdicts = judge_many(list(HONEST.values()), together=True)
    assert {name: verdict for name, verdict in zip(HONEST, verdicts, strict=True) if not verdict.passed} == {}


def test_wrong_programs_end_as_they_do_together(kind: str) -> None:
    cases = list(WRONG.values())
    verdicts = run_programs([case[0] for case in cases], [case[1] for case in cases], timeout=0.5)
    assert [verdict.status for verdict in verdicts] == [case[2] for case in cases], verdicts
    assert [case[3] for case, verdict in zip(cases, verdicts, strict=True) if case[3] not in verdict.detail] == []


def test_no_program_forges_what_it_is_compared_with(kind: str) -> None:
    verdicts = run_programs(list(FORGED.values()), [FORGED_TEST] * len(FORGED), timeout=1.0)
    assert {name: verdict for name, verdict in zip(FORGED, verdicts, strict=True) if verdict.passed or verdict.status == "refused"} == {}


def test_the_same_programs_forge_it_where_they_share_an_interpreter() -> None:
    """Else the test above would show nothing."""
    names = ["equal to everything", "its frames' names", "the garbage collector", "its frames' constants"]
    tests = {"its frames' names": "EXPECTED = 7\nassert f(1) == EXPECTED", "the garbage collector": "EXPECTED = 7\nassert f(1) == EXPECTED"}
    pairs = [(FORGED[name], tests.get(name, "assert f(1) == 7")) for name in names]
    assert [verdict.passed for verdict in judge_many(pairs, together=True)] == [True] * len(names)
    assert not any(verdict.passed for verdict in judge_many(pairs))


def test_no_test_is_run_where_its_program_cannot_be_closed_in(kind: str) -> None:
    assert run_program("x = 1", "assert x == 1").passed
    assert run_program("x = 1", "assert x == 2").status == "failed"
    assert run_program("#" * (1 << 19), "#" * ((1 << 19) + 1)).status == "refused"
