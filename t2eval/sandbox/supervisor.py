"""Supervisor: the warm interpreter inside the jail, which forks one fresh, locked-down process for each program.

Runs on its own (`python -s -S -c <this text> <config>`), so it imports nothing but the standard library. It reads requests
(`<qId`: number, length and seconds, then the source) from descriptor 0 and answers on descriptor 1 (`<I`: length, then JSON, then as many
bytes of the program's own words as the JSON's `said` says). It never looks at a program except to pass it on: compiling, running and
judging the exception happen in the forked process.

What a program may use is processor time, and as much time in which it does nothing; waiting for a core does not count (`_watch`).

A forked process has a copy of this one's memory, so a program could read there what came before it. Sources and words therefore only pass
through two regions that are wiped, and never become Python objects here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import mmap
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
_LONGEST_SOURCE = 1 << 20
_PATIENCE = 10  # times its seconds that a program may take in all, on a machine that gives it no core
_IDLE = 0.02  # share of a core below which a stretch of time counts as doing nothing: a starved program gets more
_FORK_SECONDS = 20.0  # how long to try again where the machine has no process to spare
_CLOSED = b"+"  # the first byte of a message: the jail was closed before the program began

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 22, 24, 38
_CAP_DAC_READ_SEARCH, _CAP_SETUID = 2, 7
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


def _keep_capabilities(kept: int) -> None:
    """Root with these capabilities (a bit each) only: without any, limits bind, and nothing can be mounted, traced or overridden."""
    header = struct.pack("<Ii", 0x20080522, 0)
    held = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, held), "capget")
    kept &= struct.unpack("<III", held.raw[:12])[1]  # what is permitted: more cannot be had
    _check(_libc.capset(header, struct.pack("<IIIIII", kept, kept, 0, 0, 0, 0)), "capset")


def _drop_capabilities() -> None:
    """All but those that `_become_nobody` needs, for good."""
    for capability in range(64):
        _prctl(_PR_CAPBSET_DROP, capability)  # beyond the last capability, or without CAP_SETPCAP, this fails and does not matter
    _keep_capabilities(1 << _CAP_SETUID | 1 << _CAP_DAC_READ_SEARCH)


def _open_to_all(folders: list[str]) -> bool:
    """Whether any user may read these folders: not where they lie below a home that only its owner may enter."""
    for folder in folders:
        parts = folder.rstrip("/").split("/")
        if any(not os.stat("/".join(parts[:end]) or "/").st_mode & 1 for end in range(1, len(parts) + 1)):
            return False
    return True


def _become_nobody(user: int, reads_all: bool) -> None:
    """A user of this jail's own, so that the kernel counts its threads: root's are not counted.

    The saved user stays root, that the supervisor may still send signals; no system call is left to go back to it. Where the user may not
    change (no root, or a namespace of one user), nothing happens, and that user's threads are counted.
    """
    _prctl(_PR_SET_KEEPCAPS, 1)
    _libc.setresuid(ctypes.c_uint(user), ctypes.c_uint(user), ctypes.c_uint(0))
    # Landlock still says which folders, for a program that has to pass through a home of root's to its interpreter's.
    _keep_capabilities(0 if reads_all or os.getuid() != user else 1 << _CAP_DAC_READ_SEARCH)


def _tasks() -> int:
    """Tasks that the limit on them counts already: this user's on the whole machine. Root's programs become users without any."""
    count = 0
    for entry in os.listdir("/proc") if os.path.isdir("/proc/1") else []:
        with contextlib.suppress(OSError):
            if entry.isdecimal() and os.stat(f"/proc/{entry}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{entry}/task"))
    return count


def _limit(config: dict[str, Any], seconds: float) -> None:
    """Soft and hard limits of this process: without capabilities it cannot raise them again."""
    cpu = int(seconds) + 2
    for kind, value in (
        (resource.RLIMIT_AS, config["memory"]),
        (resource.RLIMIT_FSIZE, config["file_size"]),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_NPROC, config["tasks"]),
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


def _run(source: str, verdict: int, nonce: int) -> None:
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


def _processor_time(process: int) -> float:
    """Seconds of processor time that a process has used, threads included."""
    try:
        return time.clock_gettime(~process << 3 | 2)  # the kernel's CPUCLOCK_SCHED of a process
    except OSError:  # it ended just now
        return 0.0


def _watch(verdict: int, child: int, seconds: float, said: mmap.mmap) -> tuple[int, str]:
    """Read what the program's process writes until it closes the descriptor, or has used up its time.

    Returns:
        How many bytes it wrote, and how that ended: "" (it closed the descriptor, or wrote too much), `time` (it used its seconds of
        processor time, or did nothing for as long), `starved` (neither, in ten times its seconds).
    """
    room, length = memoryview(said), 0
    begin = checked = time.monotonic()
    used = idle = 0.0
    stretch = max(seconds / 8, 0.1)
    watched = select.poll()
    watched.register(verdict, select.POLLIN)
    watched.register(0, 0)  # the harness went away (POLLHUP)
    while length < len(said):
        events = watched.poll(max(0.0, checked + stretch - time.monotonic()) * 1000)
        for descriptor, _ in events:
            if descriptor == 0:
                os._exit(1)  # the program's process dies with this one (PDEATHSIG)
            got = os.readv(verdict, [room[length:]])
            if not got:
                return length, ""
            length += got
        now = time.monotonic()
        if now - checked >= stretch:
            before, used = used, _processor_time(child)
            idle += now - checked if used - before < _IDLE * (now - checked) else 0.0
            checked = now
            if used >= seconds or idle >= seconds:
                return length, "time"
            if now - begin >= _PATIENCE * seconds:
                return length, "starved"
    return length, ""


def _judge(said: memoryview, nonce: bytes, state: int, ended: str, seconds: float) -> tuple[str, str, memoryview]:
    """Status, detail in our words, and the program's own. Only the nonce, which it can read after its last line, makes it `passed`."""
    nothing = said[:0]
    if ended:
        return "timeout", f"still running after {seconds:g} s", nothing
    if os.WIFSIGNALED(state) and os.WTERMSIG(state) == signal.SIGXCPU:
        return "timeout", f"used up its processor time for {seconds:g} s", nothing
    if said[:1] != _CLOSED:
        why = f"the jail could not be closed around it (exit code {os.waitstatus_to_exitcode(state)}), so it was not run"
        return "refused", why, nothing
    said = said[1:]
    if said == nonce + b"passed" and state == 0:
        return "passed", "", nothing
    if said[:16] == _NO_NONCE:
        for status in ("failed", "error", "memory"):
            mark = status.encode() + b"\0"
            if said[16 : 16 + len(mark)] == mark:
                return status, "", said[16 + len(mark) :][: 4 * _DETAIL]
    if len(said):
        return "error", "something else was written to the verdict's descriptor", nothing
    if os.WIFSIGNALED(state):
        return "killed", f"ended by {signal.Signals(os.WTERMSIG(state)).name}", nothing
    return "error", f"ended before its last line, with exit code {os.waitstatus_to_exitcode(state)}", nothing


def _child(source: memoryview, config: dict[str, Any], ruleset: int, seconds: float, descriptors: tuple[int, int, int]) -> None:
    """Lock this process down, then run the program in it. The order matters: each step refuses what the ones before it need."""
    os.setsid()
    if config["isolate"]:
        _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
        if ruleset >= 0:
            _check(_syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self")
    verdict, nonce = _hide(*descriptors)
    _limit(config, seconds)
    if config["isolate"]:
        _become_nobody(config["user"], config["open"])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of the user, which takes it back
    if config["isolate"]:
        code = bytes.fromhex(config["filter"])
        memory = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
        _check(_libc.prctl(ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(2), program, ctypes.c_ulong(0), ctypes.c_ulong(0)), "seccomp")
    os.write(verdict, _CLOSED)
    # Text, and not bytes: in those a comment (`# -*- coding: latin-1 -*-`) says what letters they stand for.
    _run(bytes(source).decode("utf-8").removeprefix("\ufeff"), verdict, nonce)


def _fork() -> int:
    """`os.fork`, which waits a while where the machine has no process or memory to spare."""
    end = time.monotonic() + _FORK_SECONDS
    while True:
        try:
            return os.fork()
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def _one(
    source: mmap.mmap, length: int, said: mmap.mmap, config: dict[str, Any], ruleset: int, seconds: float, null: int
) -> tuple[str, str, memoryview, bool]:
    """Fork, run, watch, kill, judge: status, our detail, the program's own words, and whether it got no core."""
    verdict_read, verdict_write = os.pipe()
    nonce_read, nonce_write = os.pipe()
    child = _fork()
    if child == 0:
        try:
            os.close(nonce_write)
            _child(memoryview(source)[:length], config, ruleset, seconds, (verdict_write, nonce_read, null))
        finally:
            os._exit(70)
    source[:length] = bytes(length)  # the next program's process must not find it
    # Drawn after the fork: it is in no memory that the program can reach.
    nonce = os.urandom(16)
    os.write(nonce_write, nonce)
    for descriptor in (verdict_write, nonce_read, nonce_write):
        os.close(descriptor)
    count, ended = _watch(verdict_read, child, seconds, said)
    os.close(verdict_read)
    if ended or count == len(said):
        os.kill(child, signal.SIGKILL)
    words = memoryview(said)[:count]
    # One that has passed only has to leave, for which it may have to wait for a core.
    state = _reap(child, 30.0 if words == _CLOSED + nonce + b"passed" else 0.2)
    return (*_judge(words, nonce, state, ended, seconds), ended == "starved")


def _reap(child: int, seconds: float) -> int:
    """The exit state of a process that closed its descriptor; one that did so and goes on is killed, with its whole group."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0002)
    # Before the last wait, which frees the number of the group for others.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _receive(place: memoryview) -> None:
    """Fill a place with bytes from the harness; ends this process when the harness has gone."""
    while len(place):
        got = os.readv(0, [place])
        if not got:
            os._exit(0)
        place = place[got:]


def _answer(reply: dict[str, Any], said: memoryview) -> None:
    data = json.dumps({**reply, "said": len(said)}).encode()
    for part in (memoryview(struct.pack("<I", len(data)) + data), said):
        while len(part):
            part = part[os.write(1, part) :]


def main() -> None:
    """Prepare the jail, say so, and serve until the harness goes away."""
    config = json.loads(sys.argv[1])
    sys.path[:] = [entry for entry in sys.path if entry]
    for name in _WARM.split():
        importlib.import_module(name)
    private = config["private"]
    if private:
        # nosuid, nodev, noexec; few files, so that not even empty ones can fill the memory.
        _check(_libc.mount(b"tmpfs", private.encode(), b"tmpfs", ctypes.c_ulong(2 | 4 | 8), b"size=16m,nr_inodes=256,mode=777"), "mount")
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
    config["open"] = _open_to_all(config["read"])
    config["tasks"] += 0 if private or os.getuid() == 0 else _tasks()
    private_memory = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    source, said = (mmap.mmap(-1, size, private_memory) for size in (_LONGEST_SOURCE, _LONGEST_MESSAGE))
    header = bytearray(struct.calcsize("<qId"))
    gc.collect()
    gc.freeze()
    _answer({"ready": True}, memoryview(b""))
    while True:
        _receive(memoryview(header))
        number, length, seconds = struct.unpack("<qId", header)
        _receive(memoryview(source)[:length])
        status, detail, words, starved = _one(source, length, said, config, ruleset, seconds, null)
        # A program that left files behind must not meet the next one: the harness then starts a fresh jail.
        spent = bool(private and os.listdir(private))
        _answer({"number": number, "status": status, "detail": detail, "spent": spent, "starved": starved}, words)
        del words
        said[:] = bytes(len(said))


if __name__ == "__main__":
    main()
