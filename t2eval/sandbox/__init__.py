"""Sandbox: run a model-written program and say whether it passed.

Examples:
    >>> from t2eval.sandbox import run_program
    >>> run_program("def double(x):\\n    return 2 * x\\nassert double(2) == 4").status
    'passed'
    >>> run_program("assert 1 == 2").status
    'failed'
"""

from t2eval.sandbox.attacks import AttackResult, attack_report
from t2eval.sandbox.isolation import Isolation
from t2eval.sandbox.run import Verdict, available, close, require, run_program, run_programs

__all__ = ["AttackResult", "Isolation", "Verdict", "attack_report", "available", "close", "require", "run_program", "run_programs"]
