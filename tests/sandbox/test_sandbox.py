"""Sandbox: verdicts, walls, and what happens when the harness is interrupted, forked or threaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2eval import sandbox
from t2eval.errors import T2Error, UsageError
from t2eval.sandbox import Verdict, attacks, available, filters, isolation, jail, run, run_program, run_programs

ROOT = Path(__file__).resolve().parents[2]
SPIN = "while True: pass"


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(isolation.VARIABLE, "none")
    yield
    sandbox.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found += [int(entry.name), *_descendants(int(entry.name))]
    return found


@pytest.mark.parametrize(
    ("source", "status", "detail"),
    [
        ("assert 1 + 1 == 2", "passed", ""),
        ("import json, math, os, re, typing, unittest, dataclasses, threading, sqlite3\nassert math.gcd(4, 6) == 2", "passed", ""),
        ("if __name__ == '__main__':\n    print('x' * 100)", "passed", ""),
        ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", "passed", ""),
        ("x = 1\nassert x == 2, 'two'", "failed", "AssertionError: two (line 2)"),
        ("1 / 0", "error", "ZeroDivisionError: division by zero (line 1)"),
        ("def", "error", "SyntaxError"),
        ("input()", "error", "EOFError"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "error", "E: (its text cannot be had)"),
        (SPIN, "timeout", "still running after 0.5 s"),
        ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV"),
        ("x = bytearray(1 << 40)", "memory", "MemoryError"),
        ("print('\\x1b[2J'); raise ValueError('\\x1b[2J\\n')", "error", "ValueError:  [2J  (line 1)"),
        ("\ud800", "refused", "not text"),
        ("#" * (1 << 20) + "#", "refused", "more than"),
    ],
)
def test_verdicts(kind: str, source: str, status: str, detail: str) -> None:
    verdict = run_program(source, timeout=0.5 if source == SPIN else 20.0)
    assert (verdict.status, verdict.passed) == (status, status == "passed"), verdict
    assert detail in verdict.detail
    assert len(verdict.detail) < 1000


def test_every_attack_is_contained(kind: str) -> None:
    results = sandbox.attack_report()
    assert [result for result in results if not result.contained] == []
    assert len(results) >= 30


def test_attacks_succeed_where_there_is_no_isolation(unguarded: None) -> None:
    """Else their containment would show nothing."""
    proven = [attack for attack in attacks.ATTACKS if attack.proven]
    assert len(proven) >= 18
    assert [attack.name for attack in proven if attacks.run_attack(attack).contained] == []


def test_the_verdict_of_the_others_does_not_depend_on_isolation(unguarded: None) -> None:
    forgeries = [attack for attack in attacks.ATTACKS if attack.name in ("exit-hard", "exit", "atexit", "descriptors", "optimise", "sleep")]
    assert len(forgeries) == 6
    assert [result for result in map(attacks.run_attack, forgeries) if not result.contained] == []


def test_what_is_not_covered() -> None:
    """docs/sandbox.md says so: a program that shares the interpreter with its asserts can make them true."""
    if available().kind is None:
        pytest.skip(available().reason)
    forged = "class Yes:\n    def __eq__(self, other): return True\ndef f(x): return Yes()\nassert f(1) == 7"
    assert run_program(forged).passed


def test_programs_are_judged_in_order_and_apart(kind: str) -> None:
    sources = [f"import builtins\nassert not hasattr(builtins, 'left')\nbuiltins.left = 1\nassert {n} % 3" for n in range(20)]
    statuses = [verdict.status for verdict in run_programs(sources, workers=2)]
    assert statuses == ["passed" if n % 3 else "failed" for n in range(20)]
    assert run_programs([]) == []


def test_a_private_folder_in_bubblewrap_and_none_under_landlock(kind: str) -> None:
    wrote = run_program("import tempfile\nwith tempfile.NamedTemporaryFile() as file:\n    file.write(b'x')")
    assert wrote.status == ("passed" if kind == "bubblewrap" else "error"), wrote
    left = run_programs(["open('left', 'w').close()", "import os\nassert not os.path.exists('left')"], workers=1)
    assert left[1].passed


def test_nothing_of_the_harness_is_in_a_programs_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2EVAL_SECRET", "x")
    sandbox.close()
    assert run_program("import os\nassert not [name for name in os.environ if 'SECRET' in name or name == 'PATH'], os.environ").passed


def test_hashes_are_the_same_in_every_run(kind: str) -> None:
    source = "raise ValueError(hash('t2eval'))"
    first = run_program(source)
    sandbox.close()
    assert run_program(source) == first


def test_a_dead_supervisor_is_replaced(kind: str) -> None:
    run_program("pass")
    assert jail.idle
    for supervisor in jail.idle:
        os.killpg(supervisor.process.pid, signal.SIGKILL)
        supervisor.process.wait()
    assert run_programs(["pass"] * 4, workers=2) == [Verdict(True, "passed", "")] * 4


def test_threads_may_share_it(kind: str) -> None:
    outcomes: list[list[Verdict]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(run_programs(["pass", "assert 0"] * 5, workers=2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[verdict.status for verdict in outcome] for outcome in outcomes] == [["passed", "failed"] * 5] * 4


def test_a_forked_process_starts_its_own(kind: str) -> None:
    run_program("pass")
    before = {supervisor.process.pid for supervisor in jail.idle}
    child = os.fork()
    if child == 0:
        fresh = not jail.idle and run_program("pass").passed and not before & {supervisor.process.pid for supervisor in jail.idle}
        sandbox.close()
        os._exit(0 if fresh else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run_program("pass").passed
    assert before & {supervisor.process.pid for supervisor in jail.idle}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_harness_leaves_no_process(kind: str, number: signal.Signals) -> None:
    script = (
        "from t2eval.sandbox import run_programs\nrun_programs(['pass'])\nprint('go', flush=True)\n"
        f"run_programs([{SPIN!r}] * 4, timeout=600, workers=2)"
    )
    harness = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    assert harness.stdout is not None and harness.stderr is not None
    try:
        assert harness.stdout.readline() == "go\n"
        end = time.monotonic() + 60
        while len(left := _descendants(harness.pid)) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(left) >= 4
        harness.send_signal(number)
        harness.wait(60)
        while any(_alive(pid) for pid in left) and time.monotonic() < end:
            time.sleep(0.05)
        assert [pid for pid in left if _alive(pid)] == []
        assert ("KeyboardInterrupt" in harness.stderr.read()) == (number == signal.SIGINT)
    finally:
        harness.kill()
        harness.communicate()


def test_without_any_isolation_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(isolation.VARIABLE, raising=False)
    monkeypatch.setattr(run, "_known", {})
    monkeypatch.setattr(run, "missing", lambda kind: f"no {kind} here")
    assert available().kind is None
    with pytest.raises(T2Error, match=r"no bubblewrap here; no landlock here.*apt-get install bubblewrap.*T2EVAL_SANDBOX=none"):
        run_program("pass")


def test_landlock_takes_over_where_bubblewrap_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isolation.VARIABLE, "landlock")
    if available().kind is None:
        pytest.skip(available().reason)
    monkeypatch.delenv(isolation.VARIABLE)
    monkeypatch.setattr(run, "_known", {})
    real = isolation.missing
    monkeypatch.setattr(run, "missing", lambda kind: "bubblewrap is not installed" if kind == "bubblewrap" else real(kind))
    assert (available().kind, available().reason) == ("landlock", "bubblewrap is not installed; landlock holds")


def test_a_jail_with_a_hole_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary notices a filter that lets calls through."""
    monkeypatch.setenv(isolation.VARIABLE, "landlock")
    if available().kind is None:
        pytest.skip(available().reason)
    sandbox.close()
    monkeypatch.setattr(run, "_known", {})
    monkeypatch.setattr(filters, "build", lambda **_: filters._op(0x06, 0x7FFF0000))
    state = available()
    assert state.kind is None
    assert "it can fork" in state.reason or "verdict's descriptor" in state.reason


def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isolation.VARIABLE, "landlok")
    with pytest.raises(UsageError, match="Did you mean 'landlock'"):
        available()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("writable", [True, False])
def test_the_filter_says_what_it_should(machine: str, writable: bool) -> None:
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    column = {"x86_64": 0, "aarch64": 1}[machine]
    code = filters.build(writable=writable, machine=machine)
    allow, refuse, absent, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000

    def verdict(numbers: tuple[int, int], *arguments: int, architecture: int = arch) -> int:
        return _interpret(code, numbers[column], architecture, arguments)

    assert verdict((0, 63)) == allow  # read
    assert verdict((0, 63), architecture=0x40000003) == kill  # i386
    assert verdict((56, 220), 0x10000) == allow  # clone, a thread
    assert verdict((56, 220), 17) == refuse  # clone, a process
    assert verdict((435, 435)) == absent  # clone3
    never = {"execve": (59, 221), "execveat": (322, 281), "socket": (41, 198), "connect": (42, 203), "kill": (62, 129), "tkill": (200, 130)}
    never |= {"tgkill": (234, 131), "ptrace": (101, 117), "process_vm_writev": (311, 271), "io_uring_setup": (425, 425), "bpf": (321, 280)}
    never |= {
        "unshare": (272, 97),
        "mount": (165, 40),
        "setns": (308, 268),
        "pidfd_send_signal": (424, 424),
        "x32 fork": (0x40000039, 9999),
    }
    never |= {"fchmodat": (268, 53), "fchownat": (260, 54), "seccomp": (317, 277), "memfd_create": (319, 279), "shmget": (29, 194)}
    assert [name for name, numbers in never.items() if verdict(numbers) != refuse] == []
    assert verdict((263, 35)) == (allow if writable else refuse)  # unlinkat
    assert verdict((73, 32)) == refuse  # flock, by which programs could keep each other waiting
    assert verdict((188, 5)) == (0x5005F if writable else refuse)  # setxattr: no such thing here
    modes = filters.build(writable=True, modes=True, machine=machine)
    assert _interpret(modes, (268, 53)[column], arch, ()) == allow  # fchmodat
    assert _interpret(modes, (260, 54)[column], arch, ()) == refuse  # fchownat
    assert verdict((72, 25), 0, 0) == allow  # fcntl F_DUPFD
    assert verdict((72, 25), 0, 8) == refuse  # fcntl F_SETOWN
    assert verdict((302, 261), 0) == allow and verdict((302, 261), 1) == refuse  # prlimit64 of itself, of another
    assert verdict((157, 167), 15) == allow and verdict((157, 167), 1) == refuse  # prctl
    assert [verdict((257, 56), 0, 0, flags) for flags in (0, 0x200, 0x201, 0x242, 0x203)] == [allow, refuse, allow, allow, refuse]


def _interpret(code: bytes, number: int, arch: int, arguments: tuple[int, ...]) -> int:
    """Run a BPF program as the kernel would."""
    import struct

    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("<HBBI", code))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = instructions[at]
        at += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif operation == 0x54:
            accumulator &= value
        else:
            held = accumulator == value if operation == 0x15 else bool(accumulator & value)
            at += if_true if held else if_false
