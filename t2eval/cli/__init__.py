"""The command line: parse, call the library, print.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a gate said no, 130 interrupted. Commands import the library inside their functions, so
that `t2 --help` needs neither torch nor transformers.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from t2eval import __version__
from t2eval.cli.bench import bench, demo, leaderboard
from t2eval.cli.expert import expert
from t2eval.cli.machine import doctor, lm_eval, sandbox
from t2eval.cli.paper import paper
from t2eval.cli.tasks import tasks
from t2eval.cli.train import train_expert
from t2eval.errors import T2Error, UsageError

INTERRUPTED = 130


class Commands(click.Group):
    """A group in which every error becomes one message and an exit code."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **named: Any) -> Any:
        """Run a command; unless `standalone_mode` is off, end the process with its exit code."""
        run: Any = super().main
        named.setdefault("prog_name", "t2")
        occupy_streams()
        if not standalone_mode:
            return run(*arguments, standalone_mode=False, **named)
        try:
            result = run(*arguments, standalone_mode=False, **named)
            sys.stdout.flush()
        except click.ClickException as error:
            with _read_or_not():
                error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            with _read_or_not():
                click.echo("Interrupted: what was finished is kept.", err=True)
            sys.exit(INTERRUPTED)
        except Exception as error:  # noqa: BLE001 - the last place that can turn an error into a message
            code = 1
            with _read_or_not():
                code = _explain(error)
            sys.exit(code)
        sys.exit(result if isinstance(result, int) else 0)


def occupy_streams() -> None:
    """Put /dev/null where input, output or errors were closed (`t2 … >&-`).

    Else the next file that is opened gets that number, and what is printed goes into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  for the life of the process


@contextmanager
def _read_or_not() -> Iterator[None]:
    """While something is said that perhaps nobody reads: whoever read the output or the errors may have gone (`t2 … 2>&1 | head`).

    Then nothing more can be said there, not even by the interpreter's last flush, which would change the exit code.
    """
    with suppress(BrokenPipeError):
        yield
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _explain(error: Exception) -> int:
    """Print what went wrong, and give the exit code."""
    if os.environ.get("T2EVAL_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, T2Error):
        click.echo(f"Error: {error}", err=True)
        # Long commands turn Ctrl-C into a message that says how to go on.
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            return INTERRUPTED
        return 2 if isinstance(error, UsageError) else 1
    if isinstance(error, BrokenPipeError):
        raise error  # to `_read_or_not`: there is nobody to tell
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        click.echo(f"Error: the disk is full{where}. Free some space and run the same command again.", err=True)
        return 1
    if isinstance(error, OSError) and error.filename:
        click.echo(f"Error: {error.filename}: {error.strerror}.", err=True)
        return 1
    click.echo(f"Unexpected error: {type(error).__name__}: {error}", err=True)
    click.echo("Please report it with the output of the same command under T2EVAL_DEBUG=1.", err=True)
    return 1


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="t2eval")
def main() -> None:
    """Self-adaptive language models: train experts, adapt at test time, benchmark.

    \b
    Examples:
      t2 doctor                        is everything in place?
      t2 demo --output runs/demo       train an expert and see the leaderboard, in minutes
      t2 train-expert --task embedded_math_seen --output runs/math --max-seconds 120
      lm_eval --model t2-fewshot --tasks embedded_math_unseen
    """


for _command in (doctor, demo, tasks, train_expert, expert, bench, leaderboard, paper, sandbox, lm_eval):
    main.add_command(_command)
