r"""Mathematics: whether two LaTeX answers mean the same, by math-verify behind a small documented normalisation.

Two answers are equal where their values are: `\frac{1}{2}`, `0.5` and `\frac{2}{4}`; `x^2-1` and `(x-1)(x+1)`; `1,2` and `2,1`.
Decimals are exact (0.333 is not 1/3). On top of math-verify:

1. Spelling is unified first (`t2eval.grading.latex`).
2. Answers in words are equal where their words are, in any case: `\text{no solution}` and `\text{No solution.}`.
3. A percent sign may be there or not: 50 % is 50 and 0.5. Where both have it, the numbers before it must be equal.
4. Numerals with a base must agree in digits and base.
5. A set is no tuple: `\{1,2\}` is not `(1,2)`, which math-verify reads as an interval.
6. Units, degrees and currencies are dropped, as MATH's problems name them: `5\text{ cm}` is 5.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from functools import lru_cache

from t2eval.errors import T2Error
from t2eval.grading import checker, latex

_START_SECONDS = 120.0
_REPLY_SECONDS = 60.0
"""The checker limits itself by processor time; this is for one that hangs without using any."""

_log = logging.getLogger("t2eval")


class _Checker:
    """The checker's process: started when it is first asked, and again where a question has killed it. One question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._questions = 0

    def equal(self, golds: list[str], answers: list[str]) -> bool:
        """As `t2eval.grading.checker.equal`; False where that takes too much time or memory.

        Raises:
            T2Error: the checker cannot be started.
        """
        with self._lock:
            for _ in range(2):
                verdict, costly = self._asked(golds, answers)
                if verdict is not None:
                    return verdict
                if costly:
                    break  # else the process was lost for another reason, which is not the answer's fault: once more, to a new one
            _log.debug("Comparing %.80r with %.80r took too long: not equal.", golds, answers)
            return False

    def _asked(self, golds: list[str], answers: list[str]) -> tuple[bool | None, bool]:
        """The verdict of one question, None where the process ended over it, and whether it ended by its limit of processor time.

        A process that did not answer its question, whatever the reason (Ctrl-C between question and reply as well), is thrown away: its
        next reply would be taken for that of the next question.
        """
        process = self._started()
        assert process.stdin is not None
        self._questions += 1
        question = {"id": self._questions, "golds": golds, "answers": answers}
        in_step = False
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            reply = json.loads(self._line(process, _REPLY_SECONDS))
            if not isinstance(reply, dict) or reply["id"] != question["id"]:
                return None, False
            in_step = not reply["worn"]
            return bool(reply["equal"]), False
        except (BrokenPipeError, ValueError):  # it ended; a ValueError is an empty line, or half of one
            return None, _ended_by_limit(process)
        finally:
            if not in_step:
                self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", checker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        process, ready = self._process, False
        try:
            ready = self._line(process, _START_SECONDS).strip() == b'"ready"'
        finally:
            if not ready:
                process.kill()
                said = process.communicate()[1].decode(errors="replace").strip().splitlines()
                self._process = None
        if not ready:
            raise T2Error(
                f"The checker of mathematical answers (math-verify) could not be started: {said[-1] if said else 'it said nothing'}. "
                "Install what it needs: pip install 'math-verify[antlr4_11_0]'."
            )
        return process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """The next line that it says; empty where it ended or said nothing in time. Replies are shorter than a pipe's buffer."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() if ready else b""

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def forget(self) -> None:
        """In a forked process: the parent's checker is not ours to ask."""
        self._lock = threading.Lock()
        self._process = None


def _ended_by_limit(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process that does not answer has run into its limit of processor time, rather than been killed from outside."""
    try:
        return process.wait(1.0) == -signal.SIGPROF
    except subprocess.TimeoutExpired:
        return False


_CHECKER = _Checker()
atexit.register(_CHECKER.stop)
os.register_at_fork(after_in_child=_CHECKER.forget)


def _readings(plain: str, other: str) -> list[str]:
    """What an answer may stand for: itself; for a percentage the number, and its hundredth unless the other is a percentage too."""
    number = latex.without_percent(plain)
    if number is None:
        return [plain]
    return [number] if latex.without_percent(other) is not None else [number, rf"\frac{{{number}}}{{100}}"]


@lru_cache(maxsize=50_000)
def equivalent(gold: str, answer: str) -> bool:
    r"""Whether an answer means the same as the gold answer.

    Args:
        gold: LaTeX, without its box.
        answer: LaTeX, without its box. Empty, unreadable, longer than 2,000 characters or too costly to compare (3 s of processor time,
            2 GiB): not equal.

    Raises:
        T2Error: the checker cannot be started.

    >>> equivalent(r"\frac{1}{2}", "0.5")
    True
    """
    if not answer.strip() or max(len(gold), len(answer)) > latex.LONGEST:
        return False
    plain_gold, plain_answer = latex.normalised(gold), latex.normalised(answer)
    if not plain_answer.strip():  # only marks that mean nothing
        return False
    if latex.compact(plain_gold) == latex.compact(plain_answer):
        return True
    said, words = latex.words(gold), latex.words(answer)
    if said is not None and said == words:
        return True
    numeral, other = latex.number_base(plain_gold), latex.number_base(plain_answer)
    if numeral is not None and other is not None:
        return numeral == other
    if {latex.brackets(plain_gold), latex.brackets(plain_answer)} == {"set", "tuple"}:
        return False
    return _CHECKER.equal(_readings(plain_gold, plain_answer), _readings(plain_answer, plain_gold))


def boxed_equivalent(gold: str, text: str) -> bool:
    r"""Whether the last `\boxed{…}` of a model's text holds the gold answer. A text without a box is wrong."""
    answer = latex.boxed(text)
    return answer is not None and equivalent(gold, answer)
