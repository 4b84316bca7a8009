"""Seccomp filters: the system calls that a model-written program may make, as a BPF program packed by hand.

An allow-list: a call that is not named here answers EPERM, whichever the kernel adds later. Numbers are from the kernel's
`unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64); `None` marks a call that aarch64 does not have.
"""

from __future__ import annotations

import errno
import platform
import struct

# name: (x86_64, aarch64). The busiest first: the filter is a linear search.
_COMPUTE: dict[str, tuple[int, int | None]] = {
    "read": (0, 63), "write": (1, 64), "mmap": (9, 222), "munmap": (11, 215), "brk": (12, 214), "futex": (202, 98),
    "lseek": (8, 62), "fstat": (5, 80), "newfstatat": (262, 79), "stat": (4, None), "close": (3, 57), "mprotect": (10, 226),
    "mremap": (25, 216), "madvise": (28, 233), "clock_gettime": (228, 113), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "getdents64": (217, 61), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "close_range": (436, 436), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "pause": (34, None),
    "alarm": (37, None), "getitimer": (36, 102), "setitimer": (38, 103), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrandom": (318, 278),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "exit": (60, 93), "exit_group": (231, 94), "getpid": (39, 172),
    "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "getcpu": (309, 168),
    "membarrier": (324, 283), "set_tid_address": (218, 96), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "rseq": (334, 293), "arch_prctl": (158, None), "restart_syscall": (219, 128), "lstat": (6, None), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "umask": (95, 166), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "statfs": (137, 43), "fstatfs": (138, 44),
    "fadvise64": (221, 223),
}  # fmt: skip
# Only where the program has a private folder to write in. No chown or xattr: Landlock does not watch those.
_WRITE: dict[str, tuple[int, int | None]] = {
    "ftruncate": (77, 46), "truncate": (76, 45), "fsync": (74, 82), "fdatasync": (75, 83), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "symlink": (88, None), "symlinkat": (266, 36), "link": (86, None), "linkat": (265, 37),
    "sendfile": (40, 71), "copy_file_range": (326, 285),
}  # fmt: skip
# Only where, besides, the program owns nothing but what it wrote itself (not /dev/null): `shutil.copy` sets a copy's mode and times.
_MODES: dict[str, tuple[int, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
# Answered as on a file system that has none.
_ATTRIBUTES: dict[str, tuple[int, int | None]] = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10),
    "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13),
}  # fmt: skip
# Looked at by their arguments: name: (x86_64, aarch64).
_OPEN, _OPENAT, _CLONE, _CLONE3 = (2, None), (257, 56), (56, 220), (435, 435)
_SECCOMP = (317, 277)
_FCNTL, _IOCTL, _PRCTL, _PRLIMIT = (72, 25), (16, 29), (157, 167), (302, 261)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. Not F_SETOWN and
# F_SETSIG: together they send any signal to any process.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
_PR_SET_NAME = 15
_CLONE_THREAD = 0x10000
_O_TRUNC = 0x200

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables above, AUDIT_ARCH_*

_LOAD, _JEQ, _JSET, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO, _NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data; argument i starts at 16 + 8 i, low half first


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    return _op(_LOAD, 16 + 8 * index)


_YES = _op(_RETURN, _ALLOW)
_NO = _op(_RETURN, _ERRNO | errno.EPERM)


def _when(number: int | None, body: bytes) -> bytes:
    """`body` (which must return) for system call `number`; nothing where the machine has no such call."""
    return b"" if number is None else _op(_JEQ, number, 0, len(body) // 8) + body


def _one_of(index: int, values: tuple[int, ...]) -> bytes:
    """Allow if the low half of an argument is one of some values, else refuse."""
    return _argument(index) + b"".join(_op(_JEQ, value, 0, 1) + _YES for value in values) + _NO


def _opening(index: int) -> bytes:
    """Refuse to truncate without opening for writing: a kernel with Landlock ABI 1 or 2 does not watch that."""
    safe_modes = _op(_AND, 3) + _op(_JEQ, 1, 1, 0) + _op(_JEQ, 2, 0, 1) + _YES + _NO
    return _argument(index) + _op(_JSET, _O_TRUNC, 1, 0) + _YES + safe_modes


def supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.system() == "Linux" and platform.machine() in _MACHINES


def counted(machine: str | None = None) -> tuple[bytes, int, int, int]:
    """A filter that asks its listener about `clone` and `exit` and lets all else pass, for `t2eval.sandbox.counting`.

    Returns:
        The filter, and the numbers of `seccomp`, `clone` and `exit`.
    """
    column, _ = _MACHINES[machine or platform.machine()]
    numbers = tuple(pair[column] for pair in (_SECCOMP, _CLONE, _COMPUTE["exit"]))
    call, clone, exits = (int(number or 0) for number in numbers)
    ask = _op(_RETURN, _NOTIFY)
    return b"".join([_op(_LOAD, _NUMBER), _when(clone, ask), _when(exits, ask), _YES]), call, clone, exits


def build(*, writable: bool, modes: bool = False, machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        writable: whether the calls that change a file system pass (the program has a private folder).
        modes: whether, besides, it may change modes and times (it owns nothing but what it wrote).
        machine: `x86_64` or `aarch64`; default: this machine.

    Returns:
        8 bytes an instruction, for `PR_SET_SECCOMP`.

    Raises:
        KeyError: no table for the machine; ask `supported` first.
    """
    column, arch = _MACHINES[machine or platform.machine()]
    # A foreign architecture (int 0x80, x32) has other numbers: kill. x32 numbers match no entry and are refused.
    parts = [_op(_LOAD, _ARCH), _op(_JEQ, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    parts += [_when(numbers[column], _YES) for numbers in (_COMPUTE | (_WRITE if writable else {}) | (_MODES if modes else {})).values()]
    if writable:
        parts += [_when(numbers[column], _op(_RETURN, _ERRNO | errno.ENOTSUP)) for numbers in _ATTRIBUTES.values()]
    parts += [
        _when(_OPEN[column], _opening(1)),
        _when(_OPENAT[column], _opening(2)),
        _when(_CLONE[column], _argument(0) + _op(_JSET, _CLONE_THREAD, 0, 1) + _YES + _NO),
        _when(_CLONE3[column], _op(_RETURN, _ERRNO | errno.ENOSYS)),  # its flags lie in memory; glibc then tries clone
        _when(_FCNTL[column], _one_of(1, _FCNTL_COMMANDS)),
        _when(_IOCTL[column], _one_of(1, _IOCTL_COMMANDS)),
        _when(_PRCTL[column], _one_of(0, (_PR_SET_NAME,))),
        _when(_PRLIMIT[column], _one_of(0, (0,))),
        _NO,
    ]
    return b"".join(parts)
