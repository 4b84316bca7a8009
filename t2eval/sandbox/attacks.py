"""Attacks: programs that try to get out of the sandbox, or to be judged better than they are, and whether each was contained.

An attack program passes if and only if it succeeded, unless its `held` says otherwise. Those marked `proven` succeed, harmlessly,
where there is no isolation; a test runs them so, because an attack that cannot succeed anywhere shows nothing.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from t2eval.sandbox.run import Verdict, require, run_program

_SYSCALL = "import ctypes, os, platform\nlibc = ctypes.CDLL(None, use_errno=True)\narm = platform.machine() == 'aarch64'\n"
_SHORT = 1.0  # seconds, for programs that never end by themselves
_LATE = 30.0  # seconds after the limit at which the harness counts as held up, on an overloaded machine too


@dataclass(frozen=True)
class Stage:
    """What the attacks aim at: things of this machine that they must not reach."""

    home_file: Path
    host_file: Path
    listener: socket.socket
    memory_before: int = field(default_factory=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def constants(self) -> str:
        """Python assignments that tell an attack program where its targets are."""
        targets = {
            "HOME_FILE": str(self.home_file),
            "HOST_FILE": str(self.host_file),
            "PORT": self.listener.getsockname()[1],
            "PID": os.getpid(),
        }
        return "".join(f"{name} = {value!r}\n" for name, value in targets.items())

    def untouched(self) -> bool:
        """Whether the files outside are as they were."""
        return not self.home_file.exists() and stat.S_IMODE(self.host_file.stat().st_mode) == 0o600


@dataclass(frozen=True)
class Attack:
    """One program that must not get what it wants.

    Attributes:
        name: a short name.
        what: what it tries.
        source: the program, after `Stage.constants`.
        held: whether a verdict means that it was contained; default: any that is not `passed`.
        timeout: seconds.
        proven: it succeeds without isolation, and does no harm there.
    """

    name: str
    what: str
    source: str
    held: Callable[[Verdict, Stage], bool] = lambda verdict, _: not verdict.passed
    timeout: float = 5.0
    proven: bool = False


@dataclass(frozen=True)
class AttackResult:
    """Whether one attack was contained, with the verdict that its program got, and how long it took."""

    name: str
    what: str
    contained: bool
    verdict: Verdict
    seconds: float


def _status(*statuses: str) -> Callable[[Verdict, Stage], bool]:
    return lambda verdict, _: verdict.status in statuses


def _quiet(verdict: Verdict, stage: Stage) -> bool:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - stage.memory_before  # KiB
    return len(verdict.detail) < 10_000 and grown < 64 << 10


_FILES = (
    Attack("write-home", "write a file in the home folder", "open(HOME_FILE, 'w').write('x')", proven=True),
    Attack("read-host-file", "read another program's temporary file", "open(HOST_FILE).read()", proven=True),
    Attack("read-passwd", "read /etc/passwd", "open('/etc/passwd').read()", proven=True),
    Attack("chmod", "change the mode of a file outside", "import os; os.chmod(HOST_FILE, 0o644)", proven=True),
    Attack(
        "symlink",
        "reach a file outside through a symbolic link",
        "import os\nlink = f'/tmp/t2eval-link-{PID}'\n"
        "os.symlink('/etc/passwd', link)\ntry:\n    open(link).read()\nfinally:\n    os.unlink(link)",
        proven=True,
    ),
    Attack(
        "truncate",
        "empty a file that may only be read",
        "import os; os.open('/dev/null', os.O_RDONLY | os.O_TRUNC)",
        proven=True,
    ),
    Attack(
        "huge-file",
        "write a file of 256 MiB",
        "import os\nname = f'/tmp/t2eval-huge-{PID}'\ntry:\n    with open(name, 'wb') as file:\n        for _ in range(256):\n"
        "            file.write(bytes(1 << 20))\nfinally:\n    os.unlink(name)",
    ),
    Attack(
        "many-files",
        "make 2000 files",
        "import os\nnames = [f'/tmp/t2eval-many-{PID}-{n}' for n in range(2000)]\nmade = []\ntry:\n    for name in names:\n"
        "        open(name, 'w').close()\n        made.append(name)\nfinally:\n    for name in made:\n        os.unlink(name)",
        proven=True,
    ),
)
_NETWORK = (
    Attack(
        "loopback", "connect to a server on this machine", "import socket; socket.create_connection(('127.0.0.1', PORT), 1)", proven=True
    ),
    Attack("unix-socket", "make a Unix socket", "import socket; socket.socketpair()", proven=True),
)
_PROCESSES = (
    Attack("harness-environment", "read the harness's environment variables", "open(f'/proc/{PID}/environ', 'rb').read()", proven=True),
    Attack("fork", "fork through os", "import os\nif os.fork() == 0:\n    os._exit(0)\nos.wait()", proven=True),
    Attack(
        "fork-ctypes",
        "fork through a raw system call",
        _SYSCALL + "child = libc.syscall(220 if arm else 56, 17, 0, 0, 0, 0)\nif child == 0:\n    os._exit(0)\nassert child > 0\nos.wait()",
        proven=True,
    ),
    Attack(
        "daemon",
        "leave a process behind",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.closerange(0, 2000)\n    time.sleep(1)\n    os._exit(0)",
        proven=True,
    ),
    Attack("exec", "become another program", "import os; os.execv('/bin/sleep', ['sleep', '60'])", _status("error"), 20.0, proven=True),
    Attack("subprocess", "run a shell command", "import subprocess; subprocess.run(['/bin/sh', '-c', ':'], check=True)", proven=True),
    Attack("kill-harness", "signal the harness", "import os; os.kill(PID, 0)", proven=True),
    Attack("kill-supervisor", "signal the process that judges it", "import os; os.kill(os.getppid(), 0)", proven=True),
    Attack(
        "signal-by-fcntl",
        "have the kernel signal the judge (F_SETOWN)",
        "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        proven=True,
    ),
    Attack("ptrace", "trace the process that judges it", _SYSCALL + "assert libc.ptrace(0x4206, os.getppid(), 0, 0) == 0", proven=True),
    Attack(
        "read-memory",
        "read the memory of the process that judges it",
        _SYSCALL + "import struct\nbuffer = ctypes.create_string_buffer(8)\nhere = struct.pack('PN', ctypes.addressof(buffer), 8)\n"
        "there = struct.pack('PN', id(None), 8)\nassert libc.process_vm_readv(os.getppid(), here, 1, there, 1, 0) == 8",
        proven=True,
    ),
    Attack("namespaces", "make a user namespace", _SYSCALL + "assert libc.unshare(0x10000000) == 0"),
    Attack("io-uring", "open an io_uring", _SYSCALL + "assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0"),
    Attack(
        "raise-limits",
        "raise its own memory limit",
        "import resource\nhard = resource.getrlimit(resource.RLIMIT_AS)[1]\nassert hard > 0\n"
        "resource.setrlimit(resource.RLIMIT_AS, (hard * 2, hard * 2))",
    ),
)
_RESOURCES = (
    Attack(
        "print-gigabyte",
        "print a gigabyte",
        "import sys\nfor _ in range(512):\n    sys.stdout.write('x' * (1 << 20))\n    sys.stderr.write('x' * (1 << 20))",
        _quiet,
    ),
    Attack("memory", "allocate without end", "kept = []\nwhile True:\n    kept.append(bytearray(1 << 24))", _status("memory"), 20.0),
    Attack("sleep", "sleep for ever", "import time\nwhile True:\n    time.sleep(1000)", _status("timeout"), _SHORT),
    Attack(
        "busy",
        "compute for ever, deaf to signals",
        "import signal\nfor number in (1, 2, 3, 14, 15, 24):\n    signal.signal(number, signal.SIG_IGN)\nwhile True:\n    pass",
        _status("timeout"),
        _SHORT,
    ),
    Attack(
        "threads",
        "start 2000 threads",
        "import threading\ngo = threading.Event()\nfor _ in range(2000):\n    threading.Thread(target=go.wait, daemon=True).start()",
    ),
    Attack(
        "recursion",
        "recurse until the stack is gone",
        "import sys\nsys.setrecursionlimit(10**9)\nclass Deep:\n"
        "    def __getattr__(self, name):\n        return getattr(self, name)\nDeep().x",
        _status("killed", "error", "memory", "timeout"),
        20.0,
    ),
)
_FORGERIES = (
    Attack("exit-hard", "leave with exit code 0 before the asserts", "import os; os._exit(0)\nassert False"),
    Attack("exit", "sys.exit(0) before the asserts", "import sys; sys.exit(0)\nassert False"),
    Attack(
        "atexit",
        "say that it passed when it ends",
        "import atexit; atexit.register(print, 'passed')\nassert False",
        _status("failed", "timeout"),
    ),
    Attack("print-verdict", "print that it passed", "print('passed', flush=True)\nassert False", _status("failed", "timeout")),
    Attack(
        "descriptors",
        "write a verdict to every descriptor",
        "import os\nfor number in range(3, 4096):\n    for text in (b'passed', bytes(16) + b'passed'):\n        try:\n"
        "            os.write(number, text)\n        except OSError:\n            pass\nos._exit(0)",
    ),
    Attack(
        "monkeypatch",
        "replace what judges it",
        "import builtins, json, os, sys\nos._exit = os.write = os.read = json.dumps = lambda *arguments: b'passed'\n"
        "builtins.AssertionError = builtins.BaseException = builtins.exec = type('Quiet', (Exception,), {})\n"
        "sys.modules['__main__'].main = None\nassert False",
        _status("failed", "error", "timeout"),
    ),
    Attack("optimise", "have its asserts compiled away", "assert not __debug__"),
)
ATTACKS: tuple[Attack, ...] = (*_FILES, *_NETWORK, *_PROCESSES, *_RESOURCES, *_FORGERIES)


@contextmanager
def _stage() -> Iterator[Stage]:
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.NamedTemporaryFile(prefix="t2eval-") as host_file:
        stage = Stage(Path.home() / f".t2eval-attack-{os.getpid()}", Path(host_file.name), listener)
        try:
            yield stage
        finally:
            stage.home_file.unlink(missing_ok=True)


def run_attack(attack: Attack) -> AttackResult:
    """Run one attack in the sandbox.

    Raises:
        T2Error: programs cannot be isolated on this machine.
    """
    with _stage() as stage:
        began = time.monotonic()
        verdict = run_program(stage.constants() + attack.source, timeout=attack.timeout)
        seconds = time.monotonic() - began
        contained = attack.held(verdict, stage) and stage.untouched() and seconds < attack.timeout + _LATE
    return AttackResult(attack.name, attack.what, contained, verdict, seconds)


def _carry_over() -> AttackResult:
    """Two programs: the second looks for what the first left."""
    began = time.monotonic()
    name = f"/tmp/t2eval-left-{os.getpid()}"
    run_program(f"import sys\nsys.left = True\nopen({name!r}, 'w').write('x')")
    verdict = run_program(f"import os, sys\nassert hasattr(sys, 'left') or os.path.exists({name!r})")
    Path(name).unlink(missing_ok=True)  # there only without isolation
    return AttackResult("carry-over", "leave something for the next program", not verdict.passed, verdict, time.monotonic() - began)


def attack_report() -> list[AttackResult]:
    """Run every attack in the sandbox of this machine, and afterwards an honest program, which must still pass.

    Returns:
        One result an attack, in the order of `ATTACKS`, then `carry-over` and `aftermath`.

    Raises:
        T2Error: programs cannot be isolated on this machine.
    """
    require()
    results = [run_attack(attack) for attack in ATTACKS]
    results.append(_carry_over())
    began = time.monotonic()
    verdict = run_program("assert sum(range(10)) == 45")
    results.append(AttackResult("aftermath", "spoil the sandbox for an honest program", verdict.passed, verdict, time.monotonic() - began))
    return results
