"""Isolation: which jail this machine can build around a program, and the command that starts one.

`bubblewrap` (namespaces, Landlock where the kernel has it, seccomp, limits) is the default, `landlock` (Landlock, seccomp, limits) the
fallback; a jail counts only after a canary program has tried the walls from inside. Without either, programs are refused.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import zoneinfo
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from t2eval.errors import T2Error, unknown
from t2eval.sandbox import filters

Kind = Literal["bubblewrap", "landlock", "none"]
VARIABLE = "T2EVAL_SANDBOX"
MEMORY = 512 << 20  # bytes of address space a program may have
FILE_SIZE = 16 << 20  # bytes of one file
TASKS = 64  # threads, its first one included
_INSIDE = ("counting", "watching", "walls", "foreign", "channel", "supervisor")  # run in the jail; each needs those before it
_FIRST_USER = 1 << 30
_PRIVATE = "/tmp"  # the jail's own, not the machine's
_REMEDY = (
    "Install bubblewrap (`apt-get install bubblewrap`), or use Linux 5.13 or later with Landlock on x86_64 or aarch64. "
    f"`{VARIABLE}=none` runs programs without isolation, at your own risk."
)


@dataclass(frozen=True)
class Isolation:
    """What stands between a program and this machine.

    Attributes:
        kind: `bubblewrap`, `landlock`, `none` (the user said so), or `None`: nothing can be had, programs are refused.
        reason: why this one, in words.
    """

    kind: Kind | None
    reason: str


def asked() -> str:
    """What `T2EVAL_SANDBOX` asks for: `auto`, `bubblewrap`, `landlock` or `none`.

    Raises:
        UsageError: another value.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "bubblewrap", "landlock", "none"):
        raise unknown(f"{VARIABLE} value", wanted, ["auto", "bubblewrap", "landlock", "none"])
    return wanted


def refusal(isolation: Isolation) -> T2Error:
    """The error for a machine where no jail can be had."""
    return T2Error(f"Programs are not run here: {isolation.reason}. {_REMEDY}")


def missing(kind: Kind) -> str | None:
    """Why a kind cannot even be tried here, or `None`."""
    if kind != "none" and not filters.supported():
        return f"no seccomp filter for {sys.platform} on {os.uname().machine}"
    if kind == "bubblewrap" and shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    return None


def _interpreter() -> tuple[str, list[str]]:
    """The base interpreter (not the environment's link to it) and the folders that it reads, parents before children."""
    executable = os.path.realpath(sys.executable)
    library = sysconfig.get_config_var("LIBDIR")
    candidates = [sysconfig.get_path("stdlib"), library, "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    candidates += [path for path in zoneinfo.TZPATH if path.startswith("/usr/")]
    folders = sorted({path for path in candidates if path and os.path.isdir(path)})
    return executable, folders


def boot() -> str:
    """A text that runs the supervisor with the modules it needs, where nothing of t2eval can be imported."""
    texts = {f"t2eval.sandbox.{name}": (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in _INSIDE}
    return (
        f"import json, sys, types\nfor name, text in {texts!r}.items():\n    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(text, name, 'exec'), module.__dict__)\ndel sys.modules[name], text\nmodule.main(json.loads(sys.argv[1]))\n"
    )


def start(kind: Kind) -> subprocess.Popen[bytes]:
    """Start a supervisor in a jail of this kind: its own session, a clean environment, pipes on 0, 1 and 2."""
    executable, folders = _interpreter()
    devices = ["/dev/urandom"]
    bubblewrap = kind == "bubblewrap"
    config = {
        "isolate": kind != "none",
        "landlock": kind == "landlock",
        "filter": filters.build(writable=bubblewrap, modes=bubblewrap and (os.geteuid() != 0 or _root_can())).hex()
        if kind != "none"
        else "",
        "counted": [filters.counted()[0].hex(), *filters.counted()[1:]] if kind != "none" else [],
        "read": folders + devices,
        "write": ["/dev/null"] + ([_PRIVATE] if bubblewrap else []),
        "private": _PRIVATE if bubblewrap else "",
        "memory": MEMORY,
        "file_size": FILE_SIZE,
        "tasks": TASKS,
        "user": _FIRST_USER + secrets.randbelow(1 << 29),  # nobody's, and no other jail's
    }
    command = [executable, "-s", "-S", "-B", "-c", boot(), json.dumps(config)]
    if bubblewrap:
        command = _bubblewrap(executable, folders, devices) + command
    # A fixed hash seed, so that a program's verdict does not change from run to run.
    environment = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8", "HOME": _PRIVATE, "PYTHONUTF8": "1"}
    environment["MALLOC_ARENA_MAX"] = "1"  # else each thread reserves 64 MiB of the addresses that a program may have
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment,
        start_new_session=True,  # Ctrl-C in a terminal reaches the harness only, which then ends its jails
        bufsize=0,
    )


@lru_cache(maxsize=1)
def _root_can() -> bool:
    """Whether bubblewrap works here as root, without a user namespace: only then can a program be made another user than root."""
    if os.geteuid() != 0:
        return False
    command = [shutil.which("bwrap") or "bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--ro-bind", "/", "/", "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _bubblewrap(executable: str, folders: list[str], devices: list[str]) -> list[str]:
    """No network, no processes but its own, nothing to read but the interpreter.

    The supervisor is process 1 of its namespace, so whatever it leaves dies with it. It keeps CAP_SYS_ADMIN (of a
    user namespace where there is one) just long enough to mount a small private folder, for bubblewrap's own has no limit on files, and
    two more to make each program another user, who can still read its interpreter where that lies in a home of root's.
    """
    command = [shutil.which("bwrap") or "bwrap", *([] if _root_can() else ["--unshare-user-try"]), "--unshare-pid", "--unshare-net"]
    command += ["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--as-pid-1", "--cap-drop", "ALL"]
    for capability in ("SYS_ADMIN", "SETUID", "DAC_READ_SEARCH"):
        command += ["--cap-add", f"CAP_{capability}"]
    for path in [*folders, executable]:
        command += ["--ro-bind", path, path]
    for path in ["/dev/null", *devices]:
        command += ["--dev-bind", path, path]
    return [*command, "--dir", _PRIVATE, "--remount-ro", "/", "--chdir", "/", "--"]
