r"""LaTeX answers: the box, what is equal on all hand-made pairs, and answers that are made to hang or to break the grader."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2eval.errors import T2Error
from t2eval.grading import checker, latex, mathematics
from t2eval.grading.mathematics import boxed_equivalent, equivalent

PAIRS = Path(__file__).parents[1] / "fixtures" / "math_pairs.tsv"
DISAGREEMENTS = {(r"5\text{ cm}", r"5\text{ m}"): True, ("2x > 6", "x > 3"): False}
"""The pairs whose label the grader misses, with its verdict; tasks/math/README.md says why."""

BOXES: dict[str, str | None] = {
    r"so \boxed{5}.": "5",
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{\left\{1,\sqrt{2}\right\}} is the set": r"\left\{1,\sqrt{2}\right\}",
    r"first \boxed{1}, then \boxed{2}": "2",
    r"\boxed {3}": "3",
    r"\fbox{4}": "4",
    r"$\boxed 5$ it is": "5",
    r"$\boxed5$": "5",
    r"\boxed{ 6 }": "6",
    r"\boxed{\boxed{7}}": "7",
    r"\boxed{}": "",
    r"\boxed{5": None,
    r"\boxed{1} and \boxed{2": None,
    r"\boxedeq 5": None,
    "5": None,
    "": None,
    r"\boxed{" + "x" * 2001 + "}": None,
}


@pytest.mark.parametrize("text", BOXES)
def test_the_last_box_is_the_answer(text: str) -> None:
    assert latex.boxed(text) == BOXES[text]


def _pairs() -> list[dict[str, str]]:
    with PAIRS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_pairs_are_many_hard_and_of_both_kinds() -> None:
    pairs = _pairs()
    assert len(pairs) >= 200 and len({(pair["gold"], pair["answer"]) for pair in pairs}) == len(pairs)
    assert {pair["equal"] for pair in pairs} == {"yes", "no"}
    assert sum(pair["equal"] == "no" for pair in pairs) > 100
    assert all(None not in pair.values() and pair["answer"] for pair in pairs)


def test_every_pair_agrees_with_its_label_but_for_the_ones_that_the_readme_lists(root: Path) -> None:
    wrong = {}
    for pair in _pairs():
        verdict = equivalent(pair["gold"], pair["answer"])
        if verdict != (pair["equal"] == "yes"):
            wrong[pair["gold"], pair["answer"]] = verdict
    assert wrong == DISAGREEMENTS
    readme = (root / "tasks" / "math" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{gold}`" in readme and f"`{answer}`" in readme for gold, answer in DISAGREEMENTS)


def test_a_model_s_text_is_graded_by_its_last_box() -> None:
    assert boxed_equivalent(r"\frac{1}{2}", r"I think it is \boxed{2}, no: $\boxed{0.5}$.")
    assert not boxed_equivalent("2", r"It is \boxed{2}, no: \boxed{0.5}.")
    assert not boxed_equivalent("5", "The answer is 5.")
    assert not boxed_equivalent("5", r"\boxed{}")


# ---------------------------------------------------------------------- hostile answers
@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A checker that gives up after 0.3 s of processor time."""
    mathematics._CHECKER.stop()
    monkeypatch.setenv(checker.SECONDS_VARIABLE, "0.3")
    yield
    mathematics._CHECKER.stop()


@pytest.mark.parametrize(
    "answer",
    ["9^{9^{9^{9}}}", "(" * 300, r"\sum_{i=1}^{1000000000} i^{i}", "x^{" * 200 + "x" + "}" * 200],
    ids=["power", "nest", "sum", "tower"],
)
def test_an_answer_that_would_take_forever_is_wrong_and_the_next_is_graded(answer: str, hasty: None) -> None:
    start = time.monotonic()
    assert not equivalent("42", answer)
    assert time.monotonic() - start < 60  # of a busy machine; 0.3 s of processor time
    assert equivalent("42", r"\frac{84}{2}")


BROKEN = [
    "",
    " ",
    "\x00",
    "\ud800",
    "😀",
    "答案",
    r"\frac{",
    r"\frac{0}{0}",
    "NaN",
    "nan",
    r"\infty",
    "}}}}",
    "$$$$",
    "\\",
    "\n\n",
    "x" * 2001,
]


@pytest.mark.parametrize("answer", BROKEN, ids=range(len(BROKEN)))
def test_an_answer_that_cannot_be_read_is_wrong(answer: str) -> None:
    assert equivalent("42", answer) is False


@pytest.mark.parametrize("piece", ["x", "{", r"\boxed{", "}", r"\boxed", "\\"])
def test_ten_million_characters_take_no_time(piece: str) -> None:
    text = r"\boxed{" + piece * (10_000_000 // len(piece))
    start = time.process_time()
    assert not boxed_equivalent("1", text)
    assert time.process_time() - start < 1.0
    assert boxed_equivalent("1", text + r" \boxed{1}")


def test_an_answer_is_never_evaluated_as_python(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path('{mark}').touch()"
    for answer in (code, rf"\text{{{code}}}", rf"\mathrm{{{code}}}", f"1+{code}"):
        assert not equivalent("42", answer)
    assert not mark.exists()


def test_threads_may_ask_at_once() -> None:
    verdicts: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: verdicts.append(equivalent(str(n), rf"\frac{{{2 * n}}}{{2}}"))) for n in range(1, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 24


def test_a_forked_process_has_a_checker_of_its_own() -> None:
    assert equivalent("7", r"\frac{14}{2}")
    child = os.fork()
    if child == 0:
        os._exit(0 if mathematics._CHECKER.equal(["8"], [r"\frac{16}{2}"]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert equivalent("9", r"\frac{18}{2}")


def test_a_checker_that_cannot_start_is_an_error_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    mathematics._CHECKER.stop()
    monkeypatch.setattr(mathematics.checker, "__name__", "t2eval.grading.no_such_module")
    with pytest.raises(T2Error, match=r"could not be started: .*no_such_module.*pip install 'math-verify"):
        equivalent("1111", r"\frac{2222}{2}")


def test_a_large_parent_does_not_wear_the_checker_out() -> None:
    """A process begins with its parent's peak of memory, which is that of a model: the checker would be replaced after each answer."""
    script = (
        "from t2eval.grading import checker, mathematics\n"
        "held = bytearray(checker._WORN + 2**27)\n"
        "held[::4096] = bytes(len(held[::4096]))\n"
        "own = mathematics._Checker()\n"
        "pids = set()\n"
        "for answer in ('1', '2/2', '\\\\\\\\frac{3}{3}'):\n"
        "    assert own.equal(['1'], [answer])\n"
        "    pids.add(own._process and own._process.pid)\n"
        "own.stop()\n"
        "assert len(pids) == 1 and None not in pids, pids\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- values that are small, or differ by little
DIFFERENT = [
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"), (r"\frac{1}{10^{18}}", r"\frac{2}{10^{18}}"), (r"\frac{1}{100!}", r"\frac{1}{99!}"),
    (r"\frac{1}{1000!}", r"\frac{1}{999!}"), (r"\frac{2^{100}+1}{3\cdot 2^{101}}", r"\frac{1}{3\cdot 2^{101}}"),
    (r"\frac{2^{100}+1}{2^{100}}", "1"), (r"\frac{1}{2^{99}}", "0"), (r"\binom{300}{150}^{-1}", r"\binom{300}{149}^{-1}"),
    (r"\frac{\pi}{10^{30}}", r"\frac{2\pi}{10^{30}}"), (r"\frac{\sqrt{2}}{3^{80}}", r"\frac{\sqrt{3}}{3^{80}}"), ("e^{-50}", "e^{-51}"),
    (r"\sqrt{10^{40}+1}", "10^{20}"), (r"\frac{x}{10^{20}}", r"\frac{2x}{10^{20}}"), (r"x+\frac{1}{10^{20}}", r"x+\frac{2}{10^{20}}"),
    (r"\left(\frac{1}{2^{70}}, 1\right)", r"\left(\frac{1}{2^{71}}, 1\right)"), (r"\{10^{-20}, 1\}", r"\{10^{-21}, 1\}"),
    (r"x = 3^{-60}", r"x = 3^{-61}"), (r"[0, 10^{-20}]", r"[0, 10^{-21}]"),
    (r"\begin{pmatrix}10^{-20}\\1\end{pmatrix}", r"\begin{pmatrix}10^{-21}\\1\end{pmatrix}"),
    (r"10^{-20}i", r"2\cdot 10^{-20}i"), (r"0.00000000000000000001", r"0.00000000000000000002"),
    (r"\log 2\cdot 10^{-30}", r"\log 3\cdot 10^{-30}"),
    (r"\pm 2021", "2021"), ("12:00", "1:00"), (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"), ("n=2,3,4", "n=1,2,3"),
    (r"1,2,\ldots,n", r"1,3,5,\ldots,2n-1"),
]  # fmt: skip
SAME = [
    (r"\frac{1}{2^{99}}", "2^{-99}"), (r"\frac{1}{100!}", r"\frac{1}{100\cdot 99!}"), (r"\frac{2}{10^{18}}", r"\frac{1}{5\cdot 10^{17}}"),
    (r"\frac{\sqrt{8}}{10^{30}}", r"\frac{2\sqrt{2}}{10^{30}}"), (r"\sqrt{2+\sqrt{3}}", r"\frac{\sqrt{6}+\sqrt{2}}{2}"),
    ("e^{-50}", r"\frac{1}{e^{50}}"),
    (r"\frac{x^2-1}{10^{20}}", r"\frac{(x-1)(x+1)}{10^{20}}"), (r"\frac{\sqrt{2}}{2}x", r"\frac{x}{\sqrt{2}}"),
    (r"\log_2 8", "3"), (r"\cos\frac{\pi}{12}", r"\frac{\sqrt{6}+\sqrt{2}}{4}"), (r"\{2^{-70}, 1\}", r"\{1, \frac{1}{2^{70}}\}"),
    ("2^{0.5}", r"\sqrt{2}"),
    (r"\frac{1+i}{10^{20}}", r"10^{-20}+10^{-20}i"), ("0", r"\sqrt{3-2\sqrt{2}}-\sqrt{2}+1"), (r"\ln(e^{-40})", "-40"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_values_that_differ_are_not_equal_however_small_they_are(gold: str, answer: str) -> None:
    assert not equivalent(gold, answer)
    assert not equivalent(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_values_that_are_the_same_are_equal_however_small_they_are(gold: str, answer: str) -> None:
    assert equivalent(gold, answer)
    assert equivalent(answer, gold)


# ---------------------------------------------------------------------- a checker that is lost between question and reply
@pytest.fixture
def own() -> Iterator[mathematics._Checker]:
    found = mathematics._Checker()
    yield found
    found.stop()


def test_after_an_interrupt_each_verdict_belongs_to_its_own_question(own: mathematics._Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the checker thinks: the reply to that question must not become the verdict of the next one."""
    assert own.equal(["1"], ["1"])

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    for gold, answer in (("1", "2"), ("3", r"\frac{6}{2}")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(own, "_line", interrupted)
            own.equal([gold], [answer])
        assert own.equal(["4"], [r"\frac{8}{2}"])
        assert not own.equal(["5"], ["6"])
        assert own.equal(["7"], [r"\frac{14}{2}"])


def test_an_interrupt_by_a_real_signal_leaves_the_checker_in_step() -> None:
    script = (
        "import signal\n"
        "from t2eval.grading.mathematics import equivalent\n"
        "assert equivalent('1', '2/2')\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "for wait in (0.001, 0.003, 0.01, 0.05):\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, wait)\n"
        "        for number in range(1, 10**6):\n"
        "            assert equivalent(str(number), r'\\frac{%d}{2}' % (2 * number)), number\n"
        "            assert not equivalent(str(number), r'\\frac{%d}{2}' % (2 * number + 1)), number\n"
        "            equivalent.cache_clear()\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
        "for number in range(1, 4):\n"
        "    assert equivalent(f'{number}00', r'\\frac{%d}{2}' % (200 * number))\n"
        "    assert not equivalent(f'{number}00', r'\\frac{%d}{2}' % (200 * number + 1))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reply_to_another_question_is_no_verdict(own: mathematics._Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    line, replies = own._line, []

    def stale(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        replies.append(line(process, seconds))
        return b'{"id": 0, "equal": true, "worn": false}\n' if len(replies) == 2 else replies[-1]

    monkeypatch.setattr(own, "_line", stale)
    assert not own.equal(["1"], ["2"]), "asked again, of a new process"
    assert len(replies) == 4


def test_a_checker_that_was_killed_from_outside_is_asked_again(own: mathematics._Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    line, killed = own._line, []

    def killing(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        if own._questions and not killed:
            killed.append(process.pid)
            process.kill()
        return line(process, seconds)

    monkeypatch.setattr(own, "_line", killing)
    assert own.equal(["1"], [r"\frac{2}{2}"])
    assert killed
