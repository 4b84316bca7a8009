"""Counting: a limit on threads where the kernel's own does not bind, for it counts none of root's.

A second filter has the kernel ask the supervisor about each thread that begins or ends (seccomp's user notification, Linux 5.5). What
is asked about are numbers in registers, which the program cannot change meanwhile; all else the other filter decides.

Runs inside the jail, without t2eval: it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_SET_FILTER, _NEW_LISTENER = 1, 8
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctls on the listener
_CONTINUE = 1


def install(code: bytes, call: int) -> int:
    """Have this process's threads asked about.

    Args:
        code: `t2eval.sandbox.filters.counted`.
        call: the number of the system call `seccomp`.

    Returns:
        The listener's descriptor, which belongs in the supervisor.

    Raises:
        OSError: this kernel cannot.
    """
    memory = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
    listener = int(_libc.syscall(ctypes.c_long(call), ctypes.c_long(_SET_FILTER), ctypes.c_long(_NEW_LISTENER), program))
    if listener < 0:
        code_of_error = ctypes.get_errno()
        raise OSError(code_of_error, f"seccomp listener: {os.strerror(code_of_error)}")
    return listener


def hand_over(code: bytes, call: int, link: int) -> None:
    """`install`, and send the listener through a Unix socket."""
    listener = install(code, call)
    with socket.socket(fileno=link) as end:
        socket.send_fds(end, [b"+"], [listener])
    os.close(listener)


class Counter:
    """The supervisor's end for one program.

    Args:
        link: the socket on which the listener comes.
        most: threads that may live at a time, the first included.
        clone, exits: the numbers of the two system calls.
    """

    def __init__(self, link: socket.socket, most: int, clone: int, exits: int) -> None:
        self.most, self.clone, self.exits, self.living = most, clone, exits, 1
        _, found, _, _ = socket.recv_fds(link, 1, 1)
        self.listener = found[0] if found else -1

    def answer(self) -> None:
        """Take one question, and let the thread begin or end, or not."""
        question = bytearray(80)  # id, process, flags; number, architecture, instruction, six arguments
        try:
            fcntl.ioctl(self.listener, _RECEIVE, question, True)
        except OSError:  # who asked is gone
            return
        identity, _, _, number = struct.unpack_from("<QIIi", question)
        refused = number == self.clone and self.living >= self.most
        self.living += 0 if refused else 1 if number == self.clone else -1 if number == self.exits else 0
        reply = bytearray(struct.pack("<QqiI", identity, 0, -errno.EAGAIN if refused else 0, 0 if refused else _CONTINUE))
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.listener, _SEND, reply, True)

    def close(self) -> None:
        if self.listener >= 0:
            os.close(self.listener)
            self.listener = -1
