"""Walls: what closes the jail around one process, and nothing can open again: folders, capabilities, user, descriptors, limits.

Runs inside the jail, without t2eval: it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import struct
from typing import Any

from t2eval.sandbox.counting import hand_over, install

_libc = ctypes.CDLL(None, use_errno=True)
DESCRIPTORS = 64
HIGHEST = 1024  # descriptor

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


def landlock(read: list[str], write: list[str]) -> int:
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


def drop_capabilities() -> None:
    """All but those that `_become_nobody` needs, for good."""
    for capability in range(64):
        _prctl(_PR_CAPBSET_DROP, capability)  # beyond the last capability, or without CAP_SETPCAP, this fails and does not matter
    _keep_capabilities(1 << _CAP_SETUID | 1 << _CAP_DAC_READ_SEARCH)


def open_to_all(folders: list[str]) -> bool:
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


def tasks() -> int:
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
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_NPROC, config["tasks"]),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def mount_private(folder: str) -> None:
    """A small folder of this jail's own: nosuid, nodev, noexec; few files, so that not even empty ones can fill the memory."""
    data = b"size=16m,nr_inodes=256,mode=777"
    _check(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", ctypes.c_ulong(2 | 4 | 8), data), "mount")
    os.chdir(folder)


def undumpable() -> None:
    """No other process may look into this one."""
    _prctl(_PR_SET_DUMPABLE, 0)


def hide(kept: tuple[int, ...], null: int) -> list[int]:
    """Leave only 0, 1, 2 (to nowhere) and the private descriptors, moved to unguessed numbers, which are returned in the same order."""
    places = random.SystemRandom().sample(range(DESCRIPTORS + 36, HIGHEST - 1), len(kept))
    for source, place in zip(kept, places, strict=True):
        os.dup2(source, place, inheritable=False)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    first = 3
    for place in [*sorted(places), HIGHEST]:
        os.closerange(first, place)
        first = place + 1
    return places


def threads_unbound(config: dict[str, Any]) -> bool:
    """Whether the kernel's limit on threads would not bind a program, and they can be counted: tried by a process that ends at once.

    It does not bind root, where that may not become another user: in a namespace that has one user only.
    """
    child = os.fork()
    if child == 0:
        try:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
            _become_nobody(config["user"], True)
            if os.getuid() == 0:
                os.close(install(bytes.fromhex(config["counted"][0]), config["counted"][1]))
                os.kill(os.getpid(), signal.SIGKILL)  # no `exit` that would be asked about
        finally:
            os._exit(1)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def close_in(config: dict[str, Any], ruleset: int, seconds: float, kept: tuple[int, ...], null: int, link: bool = False) -> list[int]:
    """Lock this process down. The order matters: each step refuses what the ones before it need.

    Args:
        config: see `t2eval.sandbox.isolation.start`.
        ruleset: Landlock's, or -1.
        seconds: the program's limit.
        kept: the descriptors that it keeps.
        null: of /dev/null.
        link: the last of `kept` is a socket on which the supervisor gets what counts threads.

    Returns:
        Where the descriptors are now that it keeps.

    Raises:
        OSError: a wall could not be put up.
    """
    os.setsid()
    if config["isolate"]:
        _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
        if ruleset >= 0:
            _check(_syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self")
    places = hide(kept, null)
    _limit(config, seconds)
    if config["isolate"]:
        _become_nobody(config["user"], config["open"])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of the user, which takes it back
    if link:
        hand_over(bytes.fromhex(config["counted"][0]), config["counted"][1], places.pop())
    if config["isolate"]:
        code = bytes.fromhex(config["filter"])
        memory = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
        _check(_libc.prctl(ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(2), program, ctypes.c_ulong(0), ctypes.c_ulong(0)), "seccomp")
    return places
