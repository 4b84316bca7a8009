"""Programs: find the code in a model's answer, complete it to something that can be run, and grade it in the sandbox.

An answer is only ever read line by line, never parsed or compiled here: what a model wrote can bring a parser down. The time that
takes is bounded: of an answer, the first 64 Ki characters count.

A program must define the function that was asked for. A method of that name in a class (`class Solution`) is not it.
"""

from __future__ import annotations

import io
import re
import textwrap
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass, field

from t2eval.sandbox import Verdict, run_programs

_LONGEST = 1 << 16
_OPENING = re.compile(r"(?P<before>[^`~]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[\w+#.-]*)$")  # of a line without the space at its end
_IMPORT = r"from\s+[\w.]+\s+import\s+[\w(*]|import\s+[\w.]+(\s+as\s+\w+)?(\s*,\s*[\w.]+(\s+as\s+\w+)?)*\s*(#.*|;.*)?$"
_DEFINITION = re.compile(rf"(async\s+)?def\s+\w+\s*[(\[]|class\s+\w+\s*[(:\[]|@\w|{_IMPORT}")
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*(\[[^\]]*\])*\s*(:[^=]+)?(\+|-|\*|/|//|%|\||&)?=(?!=)\s*\S")
_BLOCK = re.compile(r"(if|for|while|try|with|else|elif|except|finally)\b.*:\s*(#.*)?$")
_CODE_LINE = re.compile(rf"(async def|def|class|import|from)\s+\w|@\w|[)\]}}#]|{_BLOCK.pattern}|{_ASSIGNMENT.pattern}")
_STATEMENT = re.compile(_CODE_LINE.pattern + r"|(return|yield|raise|pass|break|continue|assert|nonlocal|global|del)\b|[\w.]+[\[(]")
_MAIN = re.compile(r"if\s+__name__\s*==")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
_HEADER = re.compile(r"@|((async\s+)?def|class|if|for|while|try|with|else|elif|except|finally)\b")
_PYTHON = ("", "python", "python3", "py", "py3", "python2", "pycon")


@dataclass
class _Fenced:
    """One fenced block of an answer."""

    info: str
    indent: int  # of the fence: its lines may be indented as much
    fence: str
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.lines.append(line[min(self.indent, len(line) - len(line.lstrip())) :])

    @property
    def code(self) -> str:
        return "\n".join(self.lines) + "\n"


def _clean(answer: str) -> str:
    """The part of an answer that counts: what follows its thoughts, cut to a length that is read in no time, with plain newlines."""
    text = answer.rpartition("</think>")[2][:_LONGEST]
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")


def _defines(code: str, name: str) -> bool:
    word = re.escape(name)
    return re.search(rf"^(?:(?:async\s+)?def|class)\s+{word}\b|^{word}[ \t]*(?::[^=\n]+)?=(?!=)", code, re.MULTILINE) is not None


def _words(code: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", code))


def _given_names(code: str) -> set[str]:
    """What a text defines, assigns or imports at the margin."""
    names: set[str] = set()
    for line in code.split("\n"):
        if match := re.match(r"(?:(?:async\s+)?def|class)\s+(\w+)|([A-Za-z_]\w*)\s*(?::[^=]+)?=(?!=)", line):
            names.add(match[1] or match[2])
        elif re.match(_IMPORT, line):
            names |= {part.split()[-1].split(".")[0] for part in re.split(r"\bimport\b", line, maxsplit=1)[1].split(",") if part.split()}
    return names


def _open_quotes(line: str, quotes: str) -> str:
    """The triple quotes that are open after a line, given those that are open before it."""
    for mark in re.findall(r"\"\"\"|'''", line):
        quotes = "" if mark == quotes else quotes or mark
    return quotes


def _split(text: str, through_quotes: bool = True) -> tuple[list[_Fenced], str]:
    """The fenced blocks, and the text around them. A fence that was never closed runs to the end; one inside a docstring closes nothing."""
    blocks: list[_Fenced] = []
    outside: list[str] = []
    current: _Fenced | None = None
    quotes = ""
    for line in text.split("\n"):
        if current is None:
            if match := _OPENING.match(line.rstrip()):
                before = match["before"]
                current = _Fenced(match["info"].lower(), len(before) if not before.strip() else 0, match["fence"])
                blocks.append(current)
                quotes = ""
            else:
                outside.append(line)
            continue
        code, fence, rest = line.rpartition(current.fence)
        if fence and not rest.strip() and not (quotes and through_quotes):
            if code.strip():
                current.add(code)
            current = None
        elif not quotes and (match := _OPENING.match(line.rstrip())) and match["info"] and not match["before"].strip():
            current = _Fenced(match["info"].lower(), len(match["before"]), match["fence"])  # the one before it was never closed
            blocks.append(current)
        else:
            current.add(line)
            quotes = _open_quotes(line, quotes)
    if current is not None and quotes and through_quotes:
        return _split(text, through_quotes=False)
    return blocks, "\n".join(outside)


def _undressed(code: str, entry_point: str | None) -> str:
    """Code without what stands before each of its lines: the prompts of an interactive session, or an indentation that all share."""
    if entry_point is None or _defines(code, entry_point):
        return code
    session = [line[4:] for line in code.split("\n") if line.startswith((">>> ", "... "))]
    shifted = textwrap.dedent(code)
    first = next((line for line in shifted.split("\n") if line.strip()), "")
    for plain, sound in (
        ("\n".join(session), True),
        (shifted, _DEFINITION.match(first) and not re.search(r"^return\b", shifted, re.MULTILINE)),
    ):
        if sound and _defines(plain, entry_point):
            return plain + "\n"
    return code


def _find(answer: str, entry_point: str | None) -> tuple[str, str]:
    """Where the code is in an answer, and what of its other blocks that code needs.

    Of several blocks that which defines the entry point, else the text around them if that does, else the first that may be Python.
    """
    text = _clean(answer)
    blocks, outside = _split(text)
    if not blocks:
        return _undressed(text, entry_point), ""
    codes = [_undressed(block.code, entry_point) for block in blocks]
    chosen = next((index for index, code in enumerate(codes) if entry_point and _defines(code, entry_point)), None)
    if chosen is None and entry_point and not _cut_off(_definitions(outside, entry_point).split("\n")) and _defines(outside, entry_point):
        return outside, _needed(outside, codes)
    if chosen is None:
        chosen = next((index for index, block in enumerate(blocks) if block.info in _PYTHON), 0)
        return codes[chosen], ""
    others = [code for code in codes if entry_point and not _defines(code, entry_point)]
    return codes[chosen], _needed(codes[chosen], others)


def _needed(code: str, others: Sequence[str]) -> str:
    """The definitions of other blocks that this code, or one of them, uses and does not give itself."""
    used, given = _words(code), _given_names(code)
    kept: list[str] = []
    for other in reversed(others):
        if not any(_DEFINITION.match(line) for line in other.split("\n")):
            continue
        names = _given_names(other)
        if any(name in used and name not in given for name in names):
            kept.append(_definitions(other, None))
            used |= _words(other)
            given |= names
    return "".join(reversed(kept))


def _definitions(text: str, entry_point: str | None) -> str:
    """The top-level statements of a text that holds definitions and perhaps prose: prose and the main block are left out."""
    kept: list[str] = []
    quotes = ""  # the triple quotes that are open, inside which a line at the margin is not a new statement
    keeping = complete = False
    for line in text.split("\n"):
        if not quotes and line[:1].strip():
            starts = _DEFINITION.match(line) or (_ASSIGNMENT.match(line) and "input(" not in line)
            keeping = bool(_CODE_LINE.match(line) if kept else starts) and not _MAIN.match(line)
            if not keeping and complete:
                break
        if keeping:
            kept.append(line)
            quotes = _open_quotes(line, quotes)
            complete = complete or bool(_DEFINITION.match(line) if entry_point is None else _defines(line, entry_point))
    return "\n".join(_finished(kept, entry_point)).rstrip() + "\n"


def _finished(lines: list[str], entry_point: str | None) -> list[str]:
    """The lines without a last top-level statement that was cut off, if the entry point stands before it."""
    last = next((index for index in range(len(lines) - 1, -1, -1) if lines[index][:1].strip() and lines[index][0] not in ")]}#"), 0)
    quotes = ""
    for index, line in enumerate(lines):  # a line at the margin of a text that is still open belongs to the statement that opened it
        if not quotes and line[:1].strip() and line[0] not in ")]}#":
            last = index
        quotes = _open_quotes(line, quotes)
    before = "\n".join(lines[:last])
    return lines[:last] if entry_point and _defines(before, entry_point) and _cut_off(lines[last:]) else lines


def _cut_off(statement: list[str]) -> bool:
    """Whether one top-level statement ends in the middle: an open bracket or text, a header without a body, a decorator alone."""
    try:
        for _ in tokenize.generate_tokens(io.StringIO("\n".join(statement) + "\n").readline):
            pass
    except (tokenize.TokenError, SyntaxError):
        return True
    inline = ":" in statement[0] and not re.search(r":\s*(#.*)?$", statement[0])
    body = inline or any(line.strip() for line in statement[1:])
    return _HEADER.match(statement[0]) is not None and not body


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _body(text: str, indent: int) -> str:
    """The indented lines with which an answer goes on where the prompt's function stopped, indented as that function is."""
    lines = [re.sub(r"^[ \t]+", lambda margin: margin[0].expandtabs(4), line) for line in text.split("\n")]
    start = next((index for index, line in enumerate(lines) if _STATEMENT.match(line) or (line[:1].isspace() and line.strip())), None)
    if start is None:
        return ""
    lines = lines[start:]
    if lines[0][:1].strip():  # without its indentation: the first line alone, as tokenizers do, or all of them
        following = next((line for line in lines[1:] if line.strip()), "")
        if _indent(following) == (2 * indent if lines[0].rstrip().endswith(":") else indent):
            lines[0] = " " * indent + lines[0]
        else:
            prose = next((index for index, line in enumerate(lines) if line[:1].strip() and not _STATEMENT.match(line)), len(lines))
            lines = [" " * indent + line if line.strip() else line for line in lines[:prose]]
    kept: list[str] = []
    quotes = ""
    for line in lines:
        if line[:1].strip() and not quotes and not line.startswith("#"):
            break
        kept.append(line)
        quotes = _open_quotes(line, quotes)
    shift = indent - _indent(lines[0])
    if shift:
        kept = [" " * shift + line if shift > 0 else line[min(-shift, _indent(line)) :] for line in kept]
    return "\n".join(kept).rstrip() + "\n"


def extract_code(text: str, entry_point: str | None = None) -> str:
    """The code in a model's answer.

    Takes the fenced block if there is one (that which defines `entry_point`, of several, with the helpers and imports that other
    blocks give it), leaves out prose around definitions and a main block, and otherwise returns the text as it is.

    Args:
        text: the answer.
        entry_point: the name that the code should define, if known.

    Returns:
        Python source; not checked.
    """
    code, helpers = _find(text, entry_point)
    if any(_DEFINITION.match(line) for line in code.split("\n")) or (entry_point and _defines(code, entry_point)):
        return _future_first(helpers + _definitions(code, entry_point))
    return code.rstrip() + "\n"


def _future_first(program: str) -> str:
    """The program with its `from __future__` lines where Python wants them."""
    lines = _FUTURE.findall(program)
    return "".join(line.rstrip("\n") + "\n" for line in dict.fromkeys(lines)) + _FUTURE.sub("", program) if lines else program


def complete(prompt: str, answer: str, entry_point: str) -> str:
    """The program that an answer makes of a prompt which ends inside a function.

    Args:
        prompt: imports, helpers, the function's signature and docstring.
        answer: the rest of the function, or the function once more, fenced or with prose around it.
        entry_point: the function's name.

    Returns:
        The prompt's imports and helpers with the function that the answer repeats, or the whole prompt with the body that it gives.
    """
    code, _ = _find(answer, entry_point)
    goes_on = next((line[:1].isspace() for line in code.split("\n") if line.strip()), False)  # whatever it repeats afterwards
    if goes_on or not _defines(code, entry_point):
        last = next((line for line in reversed(prompt.split("\n")) if line.strip()), "")
        return prompt.rstrip("\n") + "\n" + _body(code, _indent(last) or 4)
    start = re.search(rf"^(?:async )?def\s+{re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return _future_first((prompt[: start.start()] if start else prompt) + extract_code(answer, entry_point))


def judge_many(
    pairs: Sequence[tuple[str, str]], *, together: bool = False, timeout: float = 5.0, workers: int | None = None
) -> list[Verdict]:
    """How each program ended on its test, run side by side in the sandbox.

    Args:
        pairs: programs and tests (Python text). A test runs in a process of its own, as in `run_programs`.
        together: run each test behind its program in one process: for tests that need the program's own objects. The program can forge it.
        timeout: seconds for each, as in `run_program`.
        workers: how many at a time; default: one a core, at most 8.

    Raises:
        T2Error: programs cannot be isolated on this machine.
    """
    if together:
        return run_programs([f"{program}\n{test}\n" for program, test in pairs], timeout=timeout, workers=workers)
    return run_programs([program for program, _ in pairs], [test for _, test in pairs], timeout=timeout, workers=workers)


def pass_many(pairs: Sequence[tuple[str, str]], *, together: bool = False, timeout: float = 5.0, workers: int | None = None) -> list[bool]:
    """Whether each program passes its test. See `judge_many`."""
    return [verdict.passed for verdict in judge_many(pairs, together=together, timeout=timeout, workers=workers)]


def passes(program: str, test: str, timeout: float = 5.0) -> bool:
    """Whether one program passes its test in the sandbox. See `pass_many`."""
    return pass_many([(program, test)], timeout=timeout, workers=1)[0]
