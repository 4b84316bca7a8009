"""Supervisor: the warm interpreter inside the jail, which forks one fresh, locked-down process for each program.

Runs on its own (`python -s -S -c <this text> <config>`), so it imports nothing but the standard library. It reads requests
(`<Id`: length and seconds, then the source) from descriptor 0 and answers (`<I`: length, then JSON) on descriptor 1. It never
looks at a program except to pass it on: compiling, running and judging the exception happen in the forked process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import select
import signal
import struct
import sys
import time
import types
from typing import Any

# Programs often import these: loaded once here instead of once a program.
_WARM = "bisect collections copy datetime decimal fractions functools hashlib heapq itertools math operator re statistics string typing"

_libc = ctypes.CDLL(None, use_errno=True)
_NO_NONCE = bytes(16)
_MEMORY = _NO_NONCE + b"memory\0MemoryError"  # built now: there may be no memory left to build it later
_LONGEST_MESSAGE = 8192
_DETAIL = 500  # characters
_DESCRIPTORS = 64
_HIGHEST = 1024
_CLOSED = b"+"  # the first byte of a message: the jail was closed before the program began

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, *values: int) -> int:
    return int(_libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4])))


def _syscall(number: int, *values: Any) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *values))


def _landlock(read: list[str], write: list[str]) -> int:
    """A ruleset that lets these folders and files be read (or written), nothing else; its descriptor, or -1 without Landlock."""
    abi = _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if abi < 1:
        return -1
    bits = 13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16
    network, scopes = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)  # TCP; abstract sockets and signals to outside
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = struct.pack("<QQQ", (1 << bits) - 1, network, scopes)
    ruleset = _check(_syscall(_CREATE_RULESET, rules, ctypes.c_size_t(size), ctypes.c_uint32(0)), "landlock_create_ruleset")
    read_file, read_folder = 1 << 2, 1 << 3
    for path, rights in [(path, read_file | read_folder) for path in read] + [(path, (1 << bits) - 2) for path in write]:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = rights if os.path.isdir(path) else rights & (read_file | 1 << 1)
        rule = struct.pack("<Qi", allowed, handle)
        _check(_syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)), f"landlock_add_rule {path}")
        os.close(handle)
    return ruleset


def _drop_capabilities() -> None:
    """Root without capabilities: limits bind, and nothing can be mounted, traced or overridden."""
    for capability in range(64):
        _prctl(_PR_CAPBSET_DROP, capability)  # beyond the last capability, or without CAP_SETPCAP, this fails and does not matter
    header = struct.pack("<Ii", 0x20080522, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def _limit(config: dict[str, Any], seconds: float) -> None:
    """Soft and hard limits of this process: without capabilities it cannot raise them again."""
    cpu = int(seconds) + 2
    for kind, value in (
        (resource.RLIMIT_AS, config["memory"]),
        (resource.RLIMIT_FSIZE, config["file_size"]),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def _hide(verdict: int, nonce: int, null: int) -> tuple[int, int]:
    """Leave only 0, 1, 2 (to nowhere) and the two private descriptors, moved to unguessed numbers."""
    places = random.SystemRandom().sample(range(_DESCRIPTORS + 36, _HIGHEST - 1), 2)
    for source, place in zip((verdict, nonce), places, strict=True):
        os.dup2(source, place, inheritable=False)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    low, high = sorted(places)
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, _HIGHEST)
    return places[0], places[1]


def _explain(error: BaseException) -> bytes:
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 (the text of a program's exception is the program's too)
        said = "(its text cannot be had)"
    text = f"{type(error).__name__}: {said}"[:_DETAIL] + (f" (line {line})" if line else "")
    return text.encode("utf-8", "backslashreplace")


def _run(source: bytes, verdict: int, nonce: int) -> None:
    """Run a program in this process, then say how it went. The originals are bound first: programs patch modules."""
    read, write, leave, failure, memory, explain = os.read, os.write, os._exit, AssertionError, MemoryError, _explain
    module = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, ["program"]
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True, optimize=0), module.__dict__)
    except memory:
        write(verdict, _MEMORY)
    except failure as error:
        write(verdict, _NO_NONCE + b"failed\0" + explain(error))
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is the program's)
        write(verdict, _NO_NONCE + b"error\0" + explain(error))
    else:
        write(verdict, read(nonce, 16) + b"passed")
    leave(0)


def _watch(verdict: int, seconds: float) -> tuple[bytes, bool]:
    """What the program's process wrote until it closed the descriptor, and whether the time was up first."""
    message, end = b"", time.monotonic() + seconds
    watched = select.poll()
    watched.register(verdict, select.POLLIN)
    watched.register(0, 0)  # the harness went away (POLLHUP)
    while len(message) <= _LONGEST_MESSAGE:
        events = watched.poll(max(0.0, end - time.monotonic()) * 1000)
        if not events:
            return message, True
        for descriptor, _ in events:
            if descriptor == 0:
                os._exit(1)  # the program's process dies with this one (PDEATHSIG)
            chunk = os.read(verdict, _LONGEST_MESSAGE)
            if not chunk:
                return message, False
            message += chunk
    return message, False


def _judge(message: bytes, nonce: bytes, state: int, timed_out: bool, seconds: float) -> tuple[str, str]:
    """Status and detail. Only the nonce, which the process can read after its last line, makes it `passed`."""
    if timed_out:
        return "timeout", f"still running after {seconds:g} s"
    if os.WIFSIGNALED(state) and os.WTERMSIG(state) == signal.SIGXCPU:
        return "timeout", f"used up its processor time for {seconds:g} s"
    if not message.startswith(_CLOSED):
        return "refused", f"the jail could not be closed around it (exit code {os.waitstatus_to_exitcode(state)}), so it was not run"
    message = message[len(_CLOSED) :]
    if message == nonce + b"passed" and state == 0:
        return "passed", ""
    if message.startswith(_NO_NONCE):
        status, _, detail = message[len(_NO_NONCE) :].partition(b"\0")
        if status in (b"failed", b"error", b"memory"):
            return status.decode(), detail.decode("utf-8", "replace")
    if message:
        return "error", "something else was written to the verdict's descriptor"
    if os.WIFSIGNALED(state):
        return "killed", f"ended by {signal.Signals(os.WTERMSIG(state)).name}"
    return "error", f"ended before its last line, with exit code {os.waitstatus_to_exitcode(state)}"


def _child(source: bytes, config: dict[str, Any], ruleset: int, seconds: float, descriptors: tuple[int, int, int]) -> None:
    """Lock this process down, then run the program in it. The order matters: each step refuses what the ones before it need."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if config["isolate"]:
        _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
        if ruleset >= 0:
            _check(_syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self")
    verdict, nonce = _hide(*descriptors)
    _limit(config, seconds)
    if config["isolate"]:
        code = bytes.fromhex(config["filter"])
        memory = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
        _check(_libc.prctl(ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(2), program, ctypes.c_ulong(0), ctypes.c_ulong(0)), "seccomp")
    os.write(verdict, _CLOSED)
    _run(source, verdict, nonce)


def _one(source: bytes, config: dict[str, Any], ruleset: int, seconds: float, null: int) -> tuple[str, str]:
    """Fork, run, watch, kill, judge: the status and detail of one program."""
    verdict_read, verdict_write = os.pipe()
    nonce_read, nonce_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(nonce_write)
            _child(source, config, ruleset, seconds, (verdict_write, nonce_read, null))
        finally:
            os._exit(70)
    # Drawn after the fork: it is in no memory that the program can reach.
    nonce = os.urandom(16)
    os.write(nonce_write, nonce)
    for descriptor in (verdict_write, nonce_read, nonce_write):
        os.close(descriptor)
    message, timed_out = _watch(verdict_read, seconds)
    os.close(verdict_read)
    if timed_out or len(message) > _LONGEST_MESSAGE:
        os.kill(child, signal.SIGKILL)
    state = _reap(child)
    return _judge(message, nonce, state, timed_out, seconds)


def _reap(child: int) -> int:
    """The exit state of a process that closed its descriptor; one that did so and goes on is killed, with its whole group."""
    end = time.monotonic() + 0.2
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0002)
    # Before the last wait, which frees the number of the group for others.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _receive(length: int) -> bytes:
    """Exactly so many bytes from the harness; ends this process when the harness has gone."""
    data = b""
    while len(data) < length:
        chunk = os.read(0, length - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return data


def _answer(reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode()
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(1, data) :]


def main() -> None:
    """Prepare the jail, say so, and serve until the harness goes away."""
    config = json.loads(sys.argv[1])
    sys.path[:] = [entry for entry in sys.path if entry]
    for name in _WARM.split():
        importlib.import_module(name)
    private = config["private"]
    if private:
        # nosuid, nodev, noexec; few files, so that not even empty ones can fill the memory.
        _check(_libc.mount(b"tmpfs", private.encode(), b"tmpfs", ctypes.c_ulong(2 | 4 | 8), b"size=16m,nr_inodes=256,mode=700"), "mount")
        os.chdir(private)
    null = os.open(os.devnull, os.O_RDWR)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_HIGHEST, _HIGHEST))
    ruleset = -1
    if config["isolate"]:
        _drop_capabilities()
        _prctl(_PR_SET_DUMPABLE, 0)
        ruleset = _landlock(config["read"], config["write"])
        if ruleset < 0 and config["landlock"]:
            raise OSError("this kernel has no Landlock")
    gc.collect()
    gc.freeze()
    _answer({"ready": True})
    while True:
        length, seconds = struct.unpack("<Id", _receive(12))
        status, detail = _one(_receive(length), config, ruleset, seconds, null)
        # A program that left files behind must not meet the next one: the harness then starts a fresh jail.
        _answer({"status": status, "detail": detail, "spent": bool(private and os.listdir(private))})


if __name__ == "__main__":
    main()
