"""Supervisor: the warm interpreter inside the jail, which forks one fresh, locked-down process for each program.

Runs on its own (`python -s -S -c <the text of isolation.boot> <config>`), so it imports nothing but the standard library and the modules
that come with it. It reads requests (`<qIId`: number, lengths of program and test, seconds, then the two) from descriptor 0 and answers on
descriptor 1 (`<I`: length, then JSON, then as many bytes of the program's own words as the JSON's `said` says).
It never looks at a program except to pass it on: compiling, running and
judging the exception happen in the forked process. A program that comes with a test gets a second process for that: the test calls the
program through a `Channel`, compares there what comes back, and has the verdict's descriptor, of which the program's process knows nothing.

What a program may use is processor time, and as much time in which it does nothing; waiting for a core does not count (`watch`).

A forked process has a copy of this one's memory, so a program could read there what came before it. Sources and words therefore only pass
through two regions that are wiped, and never become Python objects here.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import gc
import importlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
import symtable
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from t2eval.sandbox.channel import Channel, Gone
from t2eval.sandbox.counting import Counter
from t2eval.sandbox.walls import (
    HIGHEST,
    close_in,
    drop_capabilities,
    landlock,
    mount_private,
    open_to_all,
    tasks,
    threads_unbound,
    undumpable,
)
from t2eval.sandbox.watching import watch

# Programs often import these: loaded once here instead of once a program.
_WARM = "bisect collections copy datetime decimal fractions functools hashlib heapq itertools math operator re statistics string typing"

_NO_NONCE = bytes(16)
_GONE = _NO_NONCE + b"gone\0"  # a test's word for it: the program's process said no more
_MEMORY = _NO_NONCE + b"memory\0MemoryError"  # built now: there may be no memory left to build it later
_LONGEST_MESSAGE = 8192
_DETAIL = 500  # characters
_LONGEST_SOURCE = (1 << 20) + 8  # bytes of program and test
_FORK_SECONDS = 20.0  # how long to try again where the machine has no process to spare
_PLACES = {"<program>": "", "<test>": " of the test"}
_CLOSED = b"+"  # the first byte of a message: the jail was closed before the program began


def _explain(error: BaseException) -> bytes:
    told = error.__dict__.get("told") if type(error).__module__ == "builtins" else None
    if isinstance(told, bytes):  # it was raised in the program's process, and explained there
        return told
    line, place = 0, ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in _PLACES:
            line, place = trace.tb_lineno, _PLACES[trace.tb_frame.f_code.co_filename]
        trace = trace.tb_next
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 (the text of a program's exception is the program's too)
        said = "(its text cannot be had)"
    text = f"{type(error).__name__}: {said}"[:_DETAIL] + (f" (line {line}{place})" if line else "")
    return text.encode("utf-8", "backslashreplace")


def _compiled(source: str, name: str) -> types.CodeType:
    return compile(source, name, "exec", dont_inherit=True, optimize=0)


def _module() -> dict[str, Any]:
    """The names of a fresh `__main__`."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, ["program"]
    return module.__dict__


def _report(run: Callable[[], None], channel: Channel | None, verdict: int, nonce: int) -> None:
    """Run something in this process, then say how it went. The originals are bound first: programs patch modules."""
    read, write, leave, failure, memory, explain = os.read, os.write, os._exit, AssertionError, MemoryError, _explain
    said = _NO_NONCE + b"error\0"
    try:
        run()
    except memory:
        said = _MEMORY
    except failure as error:
        said = _NO_NONCE + b"failed\0" + explain(error)
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is the program's)
        said = _NO_NONCE + b"error\0" + explain(error)
    else:
        said = b"" if channel and (channel.gone or channel.unfit) else read(nonce, 16) + b"passed"
    if channel and channel.gone:
        said = _GONE
    elif channel and channel.unfit:
        said = _NO_NONCE + b"unfit\0" + channel.unfit.encode("utf-8", "backslashreplace")[:_DETAIL]
    write(verdict, said)
    leave(0)


def _test(source: str, channel: Channel) -> None:
    """Run a test, whose names that it does not define itself are the program's."""
    channel.ask("begin")
    names = channel.names = _module()
    # By `from __main__ import sum` a test takes a name from its program that is Python's own as well.
    names["__getattr__"] = lambda name: _theirs(channel, name)
    code = _compiled(source, "<test>")
    for name in sorted(_free(symtable.symtable(source, "<test>", "exec"), set()) - set(dir(builtins))):
        kind = channel.ask("kind", name)
        if kind == "module" and name in sys.stdlib_module_names:
            names[name] = importlib.import_module(name)
        elif kind != "missing":
            names[name] = channel.ask("name", name)
    exec(code, names)


def _theirs(channel: Channel, name: str) -> Any:
    if name.startswith("__") or channel.ask("kind", name) == "missing":
        raise AttributeError(name)
    return channel.ask("name", name)


def _free(table: symtable.SymbolTable, bound: set[str]) -> set[str]:
    """The names that a text reads and does not bind at its top."""
    top = table.get_type() == "module"
    symbols = table.get_symbols()
    if top:
        bound = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()}
    used = {symbol.get_name() for symbol in symbols if symbol.is_referenced() and (top or symbol.is_global())}
    return used.union(*(_free(child, bound) for child in table.get_children())) - bound


def _serve(source: str, channel: Channel) -> None:
    """The program's end: load it when the test begins, then answer what the test asks for."""
    channel.names = _module()
    channel.load = lambda: exec(_compiled(source, "<program>"), channel.names)
    with contextlib.suppress(Gone):
        channel.serve()


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
        if said == _GONE:
            return _ended(state)
        for status in ("failed", "error", "memory", "unfit"):
            mark = status.encode() + b"\0"
            if said[16 : 16 + len(mark)] == mark:
                return status, "", said[16 + len(mark) :][: 4 * _DETAIL]
    if len(said):
        return "error", "something else was written to the verdict's descriptor", nothing
    return _ended(state)


def _ended(state: int) -> tuple[str, str, memoryview]:
    """The verdict on a process that said nothing more."""
    nothing = memoryview(b"")
    if os.WIFSIGNALED(state):
        return "killed", f"ended by {signal.Signals(os.WTERMSIG(state)).name}", nothing
    return "error", f"ended before its last line, with exit code {os.waitstatus_to_exitcode(state)}", nothing


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


def _text(region: memoryview) -> str:
    """Text, and not bytes: in those a comment (`# -*- coding: latin-1 -*-`) says what letters they stand for."""
    return bytes(region).decode("utf-8").removeprefix("\ufeff")


def _spawn(deed: Callable[[], None]) -> int:
    """A process that does this one thing and ends."""
    child = _fork()
    if child == 0:
        try:
            deed()
        finally:
            os._exit(70)
    return child


class _Job:
    """One program: its processes, what they say, and the verdict.

    Args:
        source: the region that holds the program and then the test; wiped once the processes have it.
        lengths: bytes of the program and of the test; without a test the program judges itself by its own asserts.
        said: the region for what is written to the verdict's descriptor.
    """

    def __init__(self, source: mmap.mmap, lengths: tuple[int, int], said: mmap.mmap, jail: _Jail, seconds: float) -> None:
        self.source, self.lengths, self.said, self.jail, self.seconds = source, lengths, said, jail, seconds

    def _close_in(self, *kept: int, links: tuple[int, ...] = ()) -> list[int]:
        return close_in(self.jail.config, self.jail.ruleset, self.seconds, (*kept, *links), self.jail.null, bool(links))

    def _alone(self, verdict: int, nonce: int, links: tuple[int, ...]) -> None:
        verdict, nonce = self._close_in(verdict, nonce, links=links)
        os.write(verdict, _CLOSED)
        program = _text(memoryview(self.source)[: self.lengths[0]])
        _report(lambda: exec(_compiled(program, "<program>"), _module()), None, verdict, nonce)

    def _tester(self, verdict: int, nonce: int, reads: int, writes: int) -> None:
        verdict, nonce, reads, writes = self._close_in(verdict, nonce, reads, writes)
        if os.read(reads, 1) != _CLOSED:
            return  # the program's jail is open, so nothing is run
        os.write(verdict, _CLOSED)
        test = _text(memoryview(self.source)[self.lengths[0] : sum(self.lengths)])
        channel = Channel(reads, writes, trusted=True, explain=_explain)
        _report(lambda: _test(test, channel), channel, verdict, nonce)

    def _program(self, reads: int, writes: int, links: tuple[int, ...]) -> None:
        reads, writes = self._close_in(reads, writes, links=links)
        os.write(writes, _CLOSED)
        _serve(_text(memoryview(self.source)[: self.lengths[0]]), Channel(reads, writes, trusted=False, explain=_explain))

    def _counter(self, ours: socket.socket | None, theirs: socket.socket | None) -> Counter | None:
        """What counts the program's threads, where the kernel does not."""
        if ours is None or theirs is None:
            return None
        theirs.close()
        with ours:
            return Counter(ours, self.jail.config["tasks"], *self.jail.config["counted"][2:])

    def run(self) -> tuple[str, str, memoryview, bool]:
        """Fork, run, watch, kill, judge: status, our detail, the program's own words, and whether it got no core."""
        program, test = self.lengths
        pipes = [os.pipe() for _ in range(4 if test else 2)]
        (verdict_read, verdict_write), (nonce_read, nonce_write), *between = pipes
        children = []
        ours, theirs = socket.socketpair() if self.jail.config["count"] else (None, None)
        links = () if theirs is None else (theirs.fileno(),)
        try:
            if test:
                (to_test, from_program), (to_program, from_test) = between
                children.append(_spawn(lambda: self._tester(verdict_write, nonce_read, to_test, from_test)))
                self.source[program : program + test] = bytes(test)  # the program's process must not find it
                children.append(_spawn(lambda: self._program(to_program, from_program, links)))
            else:
                children.append(_spawn(lambda: self._alone(verdict_write, nonce_read, links)))
        finally:
            self.source[: program + test] = bytes(program + test)  # nor the next one's
        # Drawn after the forks: it is in no memory that the program can reach.
        nonce = os.urandom(16)
        os.write(nonce_write, nonce)
        for descriptor in {end for pipe in pipes for end in pipe} - {verdict_read}:
            os.close(descriptor)
        counter = self._counter(ours, theirs)
        count, ended = watch(verdict_read, children, self.seconds, self.said, counter)
        os.close(verdict_read)
        if ended or count == len(self.said):
            for child in children:
                os.kill(child, signal.SIGKILL)
        words = memoryview(self.said)[:count]
        # One that has passed only has to leave, for which it may have to wait for a core.
        passed = words == _CLOSED + nonce + b"passed"
        if len(children) == 2 and words != _CLOSED + _GONE:
            os.kill(children[1], signal.SIGKILL)  # it waits for more of the test, or does as it likes
        if counter is not None:
            counter.close()  # who asks now is told that there is no such call, and ends all the same
        states = [_reap(child, 30.0 if passed else 0.2) for child in children]
        state = states[-1] if words == _CLOSED + _GONE else states[0]
        return (*_judge(words, nonce, state, ended, self.seconds), ended == "starved")


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


@dataclasses.dataclass(frozen=True)
class _Jail:
    """What every program's process is closed in with: the settings, a Landlock ruleset's descriptor (or -1), and /dev/null's."""

    config: dict[str, Any]
    ruleset: int
    null: int


def main(config: dict[str, Any]) -> None:
    """Prepare the jail, say so, and serve until the harness goes away."""
    sys.path[:] = [entry for entry in sys.path if entry]
    for name in _WARM.split():
        importlib.import_module(name)
    private = config["private"]
    if private:
        mount_private(private)
    null = os.open(os.devnull, os.O_RDWR)
    resource.setrlimit(resource.RLIMIT_NOFILE, (HIGHEST, HIGHEST))
    ruleset = -1
    if config["isolate"]:
        drop_capabilities()
        undumpable()
        ruleset = landlock(config["read"], config["write"])
        if ruleset < 0 and config["landlock"]:
            raise OSError("this kernel has no Landlock")
    config["open"] = open_to_all(config["read"])
    config["tasks"] += 0 if private or os.getuid() == 0 else tasks()
    config["count"] = config["isolate"] and os.getuid() == 0 and threads_unbound(config)
    jail = _Jail(config, ruleset, null)
    private_memory = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    source, said = (mmap.mmap(-1, size, private_memory) for size in (_LONGEST_SOURCE, _LONGEST_MESSAGE))
    header = bytearray(struct.calcsize("<qIId"))
    gc.collect()
    gc.freeze()
    _answer({"ready": True}, memoryview(b""))
    while True:
        _receive(memoryview(header))
        number, *lengths, seconds = struct.unpack("<qIId", header)
        _receive(memoryview(source)[: sum(lengths)])
        status, detail, words, starved = _Job(source, (lengths[0], lengths[1]), said, jail, seconds).run()
        # A program that left files behind must not meet the next one: the harness then starts a fresh jail.
        spent = bool(private and os.listdir(private))
        _answer({"number": number, "status": status, "detail": detail, "spent": spent, "starved": starved}, words)
        del words
        said[:] = bytes(len(said))
