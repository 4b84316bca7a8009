"""Quiet: what other libraries say of themselves is kept from the user of t2's own commands, who is told what is needed by these.

Errors pass, and so does every warning that says something of the user's data or settings.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import warnings
from typing import Any

_SHORT_SECONDS = 1.0


def quiet_lm_eval() -> None:
    """`quiet_libraries`, and leave out lm-eval's remarks on how it is called too."""
    quiet_libraries()
    quiet_git()


def quiet_libraries() -> None:
    """Leave out other libraries' bars where the output is no terminal, and their warnings.

    Bars on a terminal stay while they run, where they run for a second, and leave nothing behind. May be called before or after the
    libraries are imported, and more than once. lm-eval is not imported.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    calm_bars()
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", message="Could not find a config file in")  # PEFT looks for the base's vocabulary on the Hub
    for noisy in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=noisy)
    for name in ("lm_eval", "datasets", "huggingface_hub", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()


def calm_bars() -> None:
    """Give tqdm's bars, also those that ask to be shown, another default: none where the output is no terminal, else one that goes away.

    lm-eval passes `disable=False` by name, so tqdm's own TQDM_DISABLE does not reach it.
    """
    from tqdm import std

    plain = std.tqdm.__init__
    if hasattr(plain, "__wrapped__") and getattr(plain, "calm", False):
        return

    @functools.wraps(plain)
    def calm(self: Any, *arguments: Any, **named: Any) -> None:
        out = named.get("file") or sys.stderr
        if not getattr(out, "isatty", lambda: False)():
            named["disable"] = True
        named.setdefault("leave", False)
        named.setdefault("delay", _SHORT_SECONDS)
        plain(self, *arguments, **named)

    calm.calm = True  # type: ignore[attr-defined]
    std.tqdm.__init__ = calm


def quiet_git() -> None:
    """lm-eval asks git for the commit of the current folder: outside of a repository git's complaint stays out of the user's sight."""
    from lm_eval import evaluator

    if not hasattr(evaluator, "get_git_commit_hash"):
        return

    def commit() -> str | None:
        try:
            asked = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return asked.stdout.strip() or None

    evaluator.get_git_commit_hash = commit
