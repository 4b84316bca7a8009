"""The attack set (tests/sandbox/attacks): hostile programs, each with the verdicts that it must get, under each kind of jail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from t2eval.sandbox import attacks, filters, isolation, run_programs
from t2eval.sandbox.attacks import ATTACKS
from tests.sandbox.test_apart import FORGED

ALL = "T2EVAL_ATTACKS_ALL"
"""Set by `make attacks`: under Landlock too, the programs that are ended by their time."""
FOLDER = Path(__file__).parent / "attacks"
# What each of these needs to say is refused by the filter, or by the kernel's own word that there is no such call.
_CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
result = libc.syscall(ctypes.c_long({number}), *[ctypes.c_long(-1)] * 6)
if result == 0 and {forks}:
    os._exit(0)
assert not (result == -1 and ctypes.get_errno() in (1, 38))
"""


def programs() -> dict[str, tuple[str, tuple[str, ...]]]:
    """name → program and the verdicts that it may get."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path in sorted(FOLDER.glob("*.txt")):
        if path.stem == "calls":
            continue
        for part in path.read_text(encoding="utf-8").split("=== ")[1:]:
            head, _, source = part.partition("\n")
            name, _, verdicts = head.partition(" :: ")
            found[f"{path.stem}: {name}"] = (source, tuple(verdicts.split()))
    column = 1 if os.uname().machine == "x86_64" else 2
    for line in (FOLDER / "calls.txt").read_text(encoding="utf-8").splitlines():
        name, number = line.split()[0], line.split()[column]
        if number != "-":
            found[f"call: {name}"] = (_CALL.format(number=number, forks=name.endswith("fork")), ("failed",))
    return found


def test_every_program_of_the_set_gets_its_verdict(kind: str) -> None:
    table = programs()
    if kind == "landlock" and not os.environ.get(ALL):  # time is counted by the same lines
        table = {name: entry for name, entry in table.items() if entry[1] != ("timeout",)}
    with attacks._stage() as stage:
        verdicts = run_programs([stage.constants() + source for source, _ in table.values()], timeout=0.5)
        assert stage.untouched()
    wrong = {
        name: verdict for (name, (_, expected)), verdict in zip(table.items(), verdicts, strict=True) if verdict.status not in expected
    }
    assert wrong == {}
    assert all(verdict.passed for verdict in run_programs(["assert sum(range(10)) == 45"] * 3)), "and honest programs still pass"


def test_the_set_is_as_large_as_it_should_be() -> None:
    table = programs()
    assert len(table) >= 200 and len(table) + len(ATTACKS) + len(FORGED) >= 260
    assert not [name for name, (_, verdicts) in table.items() if "passed" in verdicts or not verdicts]


def test_the_filters_of_both_processors_refuse_the_calls() -> None:
    from tests.sandbox.test_sandbox import _interpret

    for column, (machine, arch) in enumerate({"x86_64": 0xC000003E, "aarch64": 0xC00000B7}.items(), start=1):
        for writable in (True, False):
            code = filters.build(writable=writable, modes=writable, machine=machine)
            for line in (FOLDER / "calls.txt").read_text(encoding="utf-8").splitlines():
                number = line.split()[column]
                if number != "-":
                    assert _interpret(code, int(number), arch, (2**64 - 1,) * 6) == 0x50001, line


def test_a_processor_without_a_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters.platform, "machine", lambda: "riscv64")
    for asked in ("bubblewrap", "landlock"):
        assert "no seccomp filter" in str(isolation.missing(asked))  # type: ignore[arg-type]
