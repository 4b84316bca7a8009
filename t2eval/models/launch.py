"""Launch: whether lm-eval's command line runs us, and how a user's mistake ends it.

lm-eval prints a stack trace for any exception of a model class. Under its command line we therefore end with one message and an exit code.
In a program that imports us nothing of this happens: it gets a `T2Error`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2eval.environment import harness
from t2eval.errors import T2Error, UsageError, did_you_mean, listed, near_matches
from t2eval.models.registry import lm_eval_models
from t2eval.paths import tasks_dir


def under_lm_eval() -> bool:
    """Whether this process is lm-eval's command line (`lm_eval`, `lm-eval run`, `python -m lm_eval`)."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and str(spec.name).split(".")[0] == "lm_eval":
        return True
    command = Path(sys.argv[0]) if sys.argv else Path()
    return command.stem in ("lm_eval", "lm-eval") or (command.name == "__main__.py" and command.parent.name == "lm_eval")


def explain_typos() -> None:
    """Under lm-eval's command line, with a model of ours: a task or model that nobody knows ends with one message, not a stack trace.

    Such a name is refused before our classes are asked for anything, so the interpreter's last word is ours to say. Any other exception is
    shown as always.
    """
    if not under_lm_eval() or getattr(sys.excepthook, "explains_typos", False):
        return
    usual = sys.excepthook

    def hook(kind: Any, error: Any, trace: Any) -> None:
        message = typo_message(error)
        if message is None:
            usual(kind, error, trace)
        else:
            print(f"t2eval: {message}", file=sys.stderr, flush=True)

    hook.explains_typos = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def typo_message(error: BaseException) -> str | None:
    """What to say of lm-eval's error about a name that it does not know; None for any other error."""
    if not isinstance(error, (ValueError, KeyError)):
        return None
    text = str(error.args[0] if error.args else "")
    if task := re.match(r"Tasks? not found: (.+)", text):
        known = [path.stem for path in tasks_dir().rglob("*.yaml")]
        names = [name.strip() for name in task.group(1).split(",")]
        near = [match for name in names for match in near_matches(name, known)]
        hint = did_you_mean(map(repr, near))
        return f"Unknown task {task.group(1)!r}.{hint} `lm_eval ls tasks` and `t2 tasks` list what there is; --include_path adds a folder."
    if model := re.match(r"Attempted to load model '([^']+)'|Unknown model '([^']+)'", text):
        return unknown_model(model.group(1) or model.group(2))
    return None


def unknown_model(name: str) -> str:
    """What to say of a model that lm-eval does not know: what may have been meant, our models, and lm-eval's own."""
    ours = list(lm_eval_models())
    theirs = [other for other in harness.registered("model") if other not in ours]
    hint = did_you_mean(map(repr, near_matches(name, [*ours, *theirs])))
    return f"Unknown model {name!r}.{hint} Available: {listed(ours)}; and lm-eval's own: {listed(theirs)}."


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
