"""Programs: find the code in a model's answer, complete it to something that can be run, and grade it in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence

from t2eval.sandbox import run_programs

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_CODE_LINE = re.compile(
    r"(async def|def|class|import|from)\s+\w|@\w|[)\]}#]|(if|for|while|try|with|else|elif|except|finally)\b.*:\s*(#.*)?$|\w+\s*(:.+)?=[^=]"
)
_DEFINITION = re.compile(r"(async def|def|class)\s+\w|@\w|from\s+[\w.]+\s+import\b|import\s+\w")
_STATEMENT = re.compile(_CODE_LINE.pattern + r"|(return|yield|raise|pass|break|continue|assert|nonlocal|global|del)\b|[\w.]+[\[(]")
_MAIN = re.compile(r"if\s+__name__\s*==")


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async )?(?:def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.MULTILINE) is not None


def _fenced(text: str, entry_point: str | None) -> str | None:
    """The fenced block that defines the entry point, else the first; a fence that was never closed runs to the end."""
    blocks = [str(block) for block in _FENCE.findall(text)]
    if not blocks:
        return None
    return next((block for block in blocks if entry_point and _defines(block, entry_point)), blocks[0])


def _definitions(text: str, entry_point: str | None) -> str:
    """The top-level statements of a text that holds definitions and perhaps prose: prose and the main block are left out."""
    kept: list[str] = []
    quotes = ""  # the triple quotes that are open, inside which a line at the margin is not a new statement
    keeping = False
    for line in text.splitlines():
        if not quotes and line[:1].strip():
            keeping = bool(_CODE_LINE.match(line) if kept else _DEFINITION.match(line)) and not _MAIN.match(line)
            complete = any(_DEFINITION.match(old) for old in kept) if entry_point is None else _defines("\n".join(kept), entry_point)
            if not keeping and complete:
                break
        if keeping:
            kept.append(line)
            quotes = _open_quotes(line, quotes)
    return "\n".join(kept).rstrip() + "\n"


def _open_quotes(line: str, quotes: str) -> str:
    for mark in re.findall(r"\"\"\"|'''", line):
        quotes = "" if mark == quotes else quotes or mark
    return quotes


def _body(text: str) -> str:
    """The indented lines with which an answer goes on where the prompt's function stopped."""
    lines = text.splitlines()
    while lines and not (_STATEMENT.match(lines[0]) or (lines[0][:1].isspace() and lines[0].strip())):
        lines.pop(0)
    if not lines:
        return ""
    if lines[0][:1].strip():  # without its indentation: the first line alone, as tokenizers do, or all of them
        following = next((line for line in lines[1:] if line.strip()), "")
        if len(following) - len(following.lstrip()) == (8 if lines[0].rstrip().endswith(":") else 4):
            lines[0] = "    " + lines[0]
        else:
            prose = next((index for index, line in enumerate(lines) if line[:1].strip() and not _STATEMENT.match(line)), len(lines))
            lines = ["    " + line if line.strip() else line for line in lines[:prose]]
    kept: list[str] = []
    quotes = ""
    for line in lines:
        if line[:1].strip() and not quotes:
            break
        kept.append(line)
        quotes = _open_quotes(line, quotes)
    return "\n".join(kept).rstrip() + "\n"


def extract_code(text: str, entry_point: str | None = None) -> str:
    """The code in a model's answer.

    Takes the fenced block if there is one (that which defines `entry_point`, of several), leaves out prose around definitions and a
    main block, and otherwise returns the text as it is.

    Args:
        text: the answer.
        entry_point: the name that the code should define, if known.

    Returns:
        Python source; not checked.
    """
    code = _fenced(text, entry_point)
    code = text if code is None else code
    if any(_DEFINITION.match(line) for line in code.splitlines()):
        return _definitions(code, entry_point)
    return code.rstrip() + "\n"


def complete(prompt: str, answer: str, entry_point: str) -> str:
    """The program that an answer makes of a prompt which ends inside a function.

    Args:
        prompt: imports, helpers, the function's signature and docstring.
        answer: the rest of the function, or the function once more, fenced or with prose around it.
        entry_point: the function's name.

    Returns:
        The prompt's imports and helpers with the function that the answer repeats, or the whole prompt with the body that it gives.
    """
    fenced = _fenced(answer, entry_point)
    code = answer if fenced is None else fenced
    goes_on = next((line[:1].isspace() for line in code.splitlines() if line.strip()), False)  # whatever it repeats afterwards
    if goes_on or not _defines(code, entry_point):
        return prompt.rstrip("\n") + "\n" + _body(code)
    start = re.search(rf"^(?:async )?def\s+{re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return (prompt[: start.start()] if start else prompt) + extract_code(answer, entry_point)


def pass_many(pairs: Sequence[tuple[str, str]], *, timeout: float = 5.0, workers: int | None = None) -> list[bool]:
    """Whether each program passes its test, run side by side in the sandbox.

    Args:
        pairs: programs and tests (Python text, run after the program).
        timeout: wall-clock seconds for each.
        workers: how many at a time; default: one a processor, at most 8.

    Raises:
        T2Error: programs cannot be isolated on this machine.
    """
    verdicts = run_programs([f"{program}\n{test}\n" for program, test in pairs], timeout=timeout, workers=workers)
    return [verdict.passed for verdict in verdicts]


def passes(program: str, test: str, timeout: float = 5.0) -> bool:
    """Whether one program passes its test in the sandbox. See `pass_many`."""
    return pass_many([(program, test)], timeout=timeout, workers=1)[0]
