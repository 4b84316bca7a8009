"""Launch: whether lm-eval's command line runs us, and how a user's mistake ends it.

lm-eval prints a stack trace for any exception of a model class. Under its command line we therefore end with one message and an exit code.
In a program that imports us nothing of this happens: it gets a `T2Error`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from t2eval.errors import T2Error, UsageError


def under_lm_eval() -> bool:
    """Whether this process is lm-eval's command line (`lm_eval`, `lm-eval run`, `python -m lm_eval`)."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and str(spec.name).split(".")[0] == "lm_eval":
        return True
    command = Path(sys.argv[0]) if sys.argv else Path()
    return command.stem in ("lm_eval", "lm-eval") or (command.name == "__main__.py" and command.parent.name == "lm_eval")


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Under lm-eval's command line: a `T2Error` ends the process with its text and 1, a `UsageError` with 2; elsewhere it passes."""
    try:
        yield
    except T2Error as error:
        if not under_lm_eval():
            raise
        print(f"t2eval: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
